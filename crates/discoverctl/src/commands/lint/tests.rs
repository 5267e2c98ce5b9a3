use expect_test::expect;

use super::*;
use crate::store::tests::store;

fn answers<T: serde::de::DeserializeOwned>(of: &[(&str, Result<&str, &str>)]) -> Answers<T> {
    let parse = |text: &str| serde_json::from_str(text).unwrap();
    of.iter().map(|(node, answer)| (node.parse().unwrap(), answer.map(parse).map_err(str::to_owned))).collect()
}

fn linted(
    keys: &[(&str, &str)],
    status: &[(&str, Result<&str, &str>)],
    services: &[(&str, Result<&str, &str>)],
    quarantine: &[(&str, Result<&str, &str>)],
) -> String {
    let (status, services, quarantine) = (answers(status), answers(services), answers(quarantine));
    let store = store(keys);
    let scene = Scene {
        store: &store,
        status: &status,
        services: &services,
        quarantine: &quarantine,
        certificates: &Answers::new(),
        now: SystemTime::UNIX_EPOCH,
    };
    let line = |Finding { key, kind, what, .. }: &Finding| format!("{key} [{kind}] {what}\n");
    scene.findings().iter().map(line).collect()
}

#[test]
fn the_store_alone() {
    let keys = [
        ("control/accept-store", r#"{"cluster":"7"}"#),
        ("http-services/api/domain", "shop.test"),
        ("http-services/api/upstreams/a", r#"{"address":"10.0.0.1:80","permanent":true}"#),
        ("http-services/default/upstreams/a", r#"{"address":"10.0.0.1:80","permanent":true}"#),
        ("http-services/shop/active", "blue=1 green=1"),
        ("http-services/shop/balance", "by mood"),
        ("http-services/shop/colour", "x"),
        ("http-services/shop/domain", "shop.test"),
        ("http-services/shop/overrides/a", r#"{"weight":7,"sate":"drain"}"#),
        ("http-services/shop/overrides/gone", "{}"),
        ("http-services/shop/sslpass", ""),
        ("http-services/shop/tls", "off"),
        ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","permanent":true,"color":"blue","waight":7}"#),
        ("http-services/shop/upstreams/b", "10.0.0.1:80"),
        ("http-services/shop/upstreams/c", "?"),
        ("services/shop/domain", "old.test"),
        ("tcp-services/db/balance", "leastconn"),
    ];
    expect![[r#"
        control/accept-store [accept_store_left] a wiped store was accepted, and this is left over
        http-services/api/domain [rival_claim] shop.test/ is named by http-shop too; who had it first holds it
        http-services/shop/active [color_without_upstream] no upstream has the color green
        http-services/shop/balance [unreadable] `by mood`: expected roundrobin, leastconn, random, source or uri
        http-services/shop/colour [unknown_key] unknown key
        http-services/shop/domain [rival_claim] shop.test/ is named by http-api too; who had it first holds it
        http-services/shop/overrides/a [unknown_field] fields that mean nothing: `sate`
        http-services/shop/overrides/gone [empty_override] it imposes nothing
        http-services/shop/overrides/gone [override_without_upstream] there is no upstream gone
        http-services/shop/sslpass [old_layout] http-services/shop/tls beats it
        http-services/shop/upstreams/a [unknown_field] fields that mean nothing: `waight`
        http-services/shop/upstreams/b [double_address] 10.0.0.1:80 is that of http-services/shop/upstreams/a too: it gets a double share
        http-services/shop/upstreams/b [no_lease] a record without a lease never goes by itself
        http-services/shop/upstreams/c [unreadable] `?`: an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000
        services/shop/domain [old_layout] http-services/shop/domain says the same thing, and counts
        tcp-services/db/ [no_domain] no ports: no request finds it
        tcp-services/db/ [no_upstream] no upstream: its clients get 503
    "#]]
    .assert_eq(&linted(&keys, &[], &[], &[]));
}

#[test]
fn the_balancers() {
    let said = |cluster: &str, more: &str| {
        format!(r#"{{"cluster":"{cluster}","applied":9,"pending":[],"held":[],"draining":{{}}{more}}}"#)
    };
    let refuses = r#","quarantined":{"http-services/shop/verify":"no file"},"url":"http://x""#;
    let (one, two) = (said("7", refuses), said("8", r#","url":"http://x""#));
    let keys = [
        ("balancers/lb1", one.as_str()),
        ("balancers/lb2", two.as_str()),
        ("balancers/lb3", "?"),
        ("http-services/shop/domain", "shop.test"),
        ("http-services/shop/tls", "maybe"),
        ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","permanent":true}"#),
    ];
    let status = [("lb1", Ok(r#"{"in_sync":false,"words":"out of sync: no disk"}"#)), ("lb2", Err("refused"))];
    let holds = |id: &str| format!(r#"{{"services":[{{"id":"{id}","routes":[{{"host":"shop.test","path":"/"}}]}}]}}"#);
    let (shop, api) = (holds("http-shop"), holds("http-api"));
    let services = [("lb1", Ok(shop.as_str())), ("lb2", Ok(api.as_str()))];
    let quarantine = [(
        "lb1",
        Ok(
            r#"{"quarantine":{"http-services/shop/verify":"no file x in --ca-dir","http-services/shop/tls":"`maybe`"}}"#,
        ),
    )];
    expect![[r#"
        balancers/ [disagreement] shop.test/ is served by http-api on lb2, http-shop on lb1
        balancers/lb1 [out_of_sync] out of sync: no disk
        balancers/lb2 [other_store] it follows the cluster 8, and this is 7
        balancers/lb3 [balancer_garbled] it makes no sense
        http-services/shop/tls [disagreement] refused on lb1, followed on lb2
        http-services/shop/tls [unreadable] `maybe`: expected both, terminate, off, passthrough or reencrypt
        http-services/shop/verify [disagreement] refused on lb1, followed on lb2
        http-services/shop/verify [quarantined] no file x in --ca-dir on lb1
    "#]]
    .assert_eq(&linted(&keys, &status, &services, &quarantine));
}
