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
    upstreams: &[(&str, Result<&str, &str>)],
) -> String {
    let (status, services) = (answers(status), answers(services));
    let (quarantine, upstreams) = (answers(quarantine), answers(upstreams));
    let store = store(keys);
    let (certificates, now) = (Answers::new(), SystemTime::UNIX_EPOCH);
    let asked = BalancerAnswers { status, services, quarantine, upstreams, certificates, now };
    let input = LintInput::new(&store, &asked);
    let line = |Finding { key, kind, what, .. }: &Finding| format!("{key} [{kind}] {what}\n");
    input.find_all().iter().map(line).collect()
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
        control/accept-store [accept_store_left] left over: no balancer retains what the store lacks
        http-services/api/domain [rival_claim] shop.test/ is named by http-shop too; which of them has it, no balancer says
        http-services/shop/active [color_without_upstream] no upstream has the color green
        http-services/shop/balance [unreadable] `by mood`: expected roundrobin, leastconn, random, source or uri
        http-services/shop/colour [unknown_key] unknown key
        http-services/shop/domain [rival_claim] shop.test/ is named by http-api too; which of them has it, no balancer says
        http-services/shop/overrides/a [unknown_field] fields that mean nothing: `sate`
        http-services/shop/overrides/gone [empty_override] it imposes nothing
        http-services/shop/overrides/gone [override_without_upstream] there is no record of upstream gone
        http-services/shop/sslpass [old_layout] http-services/shop/tls beats it
        http-services/shop/upstreams/a [unknown_field] fields that mean nothing: `waight`
        http-services/shop/upstreams/b [double_address] 10.0.0.1:80 is that of http-services/shop/upstreams/a too
        http-services/shop/upstreams/b [no_lease] a record without a lease never goes by itself
        http-services/shop/upstreams/c [unreadable] `?`: an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000
        services/shop/domain [old_layout] http-services/shop/domain stands too, and counts
        tcp-services/db/ [no_domain] no ports
        tcp-services/db/ [no_upstream] no upstream's record; a balancer may retain upstreams, and no balancer lives that could be asked
    "#]]
    .assert_eq(&linted(&keys, &[], &[], &[], &[]));
}

#[test]
fn missing_copies_and_hosts_without_a_name_of_their_own_are_found() {
    let keys = [
        ("http-services/shop/domain", "shop.test"),
        ("http-services/shop/overrides/gone", r#"{"state":"drain","host":"web-3"}"#),
        ("http-services/shop/slots/1", r#"{"id":"a","host":"web-1","replicas":2}"#),
        ("http-services/shop/standby/c", "?"),
        ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","permanent":true,"host":"localhost"}"#),
        ("http-services/shop/upstreams/b", r#"{"address":"10.0.0.2:80","permanent":true,"host":"localhost"}"#),
        ("http-services/shop/upstreams/d", r#"{"address":"10.0.0.2:81","permanent":true,"host":"web-2"}"#),
        ("http-services/shop/upstreams/e", r#"{"address":"10.0.0.3:81","permanent":true,"host":"web-2"}"#),
        ("tcp-services/db/slots/0", "{}"),
        ("tcp-services/db/slots/1", r#"{"id":"a","replicas":1}"#),
    ];
    expect![[r#"
        http-services/shop/ [copies_missing] 1 of 2 copies run, at web-1, and no copy that stands by takes a slot: see why with discoverctl explain
        http-services/shop/overrides/gone [override_without_upstream] there is no record of upstream gone, which was taken out with host web-3
        http-services/shop/standby/c [unreadable] JSON: expected value at line 1 column 1
        http-services/shop/upstreams/a [host_name] several hosts are called localhost: 10.0.0.1, 10.0.0.2
        http-services/shop/upstreams/b [host_name] several hosts are called localhost: 10.0.0.1, 10.0.0.2
        tcp-services/db/slots/0 [unknown_key] `0`: expected a slot's number from 1 to 65535
    "#]]
    .assert_eq(&linted(&keys, &[], &[], &[], &[]));
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
    .assert_eq(&linted(&keys, &status, &services, &quarantine, &[]));
}

/// One balancer that retains an upstream of the service without a key, and one that can't be asked.
#[test]
fn what_is_retained_is_told_and_nothing_is_said_of_its_clients() {
    let retains = r#"{"applied":9,"upstreams":[{"service":"http-mail","id":"a","held":true,"held_by":"guard",
        "held_since":"2026-11-29T12:00:00.000Z","color":"green","haproxy":{"status":"UP","up":true,"weight":100},
        "verdict":{"gets_requests":true,"because":null,"also":[{"cause":"held","words":"retained"}]}}]}"#;
    let keys = [
        ("http-services/mail/domain", "mail.test"),
        ("http-services/mail/active", "green"),
        ("http-services/mail/overrides/a", r#"{"weight":7}"#),
    ];
    let served = r#"{"services":[{"id":"http-mail","routes":[{"host":"mail.test","path":"/"}]}]}"#;
    let of = |lb2| linted(&keys, &[], &[("lb1", Ok(served))], &[], &[("lb1", Ok(retains)), ("lb2", lb2)]);
    expect![[r#"
        http-services/mail/ [no_upstream] no upstream's record; lb1 retains upstreams and serves them
        http-services/mail/overrides/a [override_without_upstream] upstream a has no record; lb1 retains it, and this counts there
        http-services/mail/upstreams/a [held] its key is gone; retained by lb1 since 2026-11-29T12:00:00.000Z
    "#]]
    .assert_eq(&of(Err("refused")));
    let nobody = linted(&keys[..1], &[], &[], &[], &[("lb2", Err("refused"))]);
    assert!(nobody.contains("a balancer may retain upstreams, and lb2 can't be asked"), "{nobody}");
    let none = linted(&keys[..1], &[], &[], &[], &[("lb2", Ok("{}"))]);
    assert!(none.contains("[no_upstream] no upstream: its clients get 503"), "{none}");
    // The whole service is gone from the store.
    let gone = linted(&[], &[], &[], &[], &[("lb1", Ok(retains))]);
    assert!(gone.starts_with("http-services/mail/upstreams/a [held]"), "{gone}");
}

#[test]
fn a_service_without_any_request_is_named_with_its_cause() {
    let no = |cause: &str| {
        format!(
            r#"{{"applied":9,"upstreams":[{{"service":"http-mail","id":"a","balanced":false,"verdict":
            {{"gets_requests":false,"because":{{"cause":"{cause}","words":"for {cause}"}},"also":[]}}}}]}}"#
        )
    };
    let keys = [("http-services/mail/upstreams/a", r#"{"address":"10.0.0.1:80","permanent":true}"#)];
    let served = r#"{"services":[{"id":"http-mail"}]}"#;
    let (nameless, acme) = (no("no_domain"), no("x").replacen("false", "true", 2));
    let services = [("lb1", Ok(served))];
    expect![[r#"
        http-services/mail/ [no_domain] no domain: no request finds it
        http-services/mail/ [no_requests] no upstream gets requests at lb1: for no_domain
    "#]]
    .assert_eq(&linted(&keys, &[], &services, &[], &[("lb1", Ok(&nameless))]));
    let acme = acme.replace(r#"{"cause":"x","words":"for x"}"#, "null");
    assert_eq!(linted(&keys, &[], &services, &[], &[("lb1", Ok(&acme))]), "", "ACME's challenges reach it");
    // A reset store lacks the domain, and the balancer retains it.
    let named = r#"{"services":[{"id":"http-mail","routes":[{"host":"mail.test","path":"/"}]}]}"#;
    let retained = linted(&keys, &[], &[("lb1", Ok(named))], &[], &[("lb1", Ok(&acme))]);
    assert_eq!(retained, "http-services/mail/ [no_domain] no domain in the store; lb1 retains what it was\n");
}

#[test]
fn a_claim_belongs_to_whom_a_balancer_says() {
    let keys = [("http-services/api/domain", "shop.test"), ("http-services/shop/domain", "shop.test")];
    let services = r#"{"services":[{"id":"http-api"},{"id":"http-shop","routes":[{"host":"shop.test","path":"/"}]}]}"#;
    let said = linted(&keys, &[], &[("lb1", Ok(services))], &[], &[("lb1", Ok("{}"))]);
    assert!(said.contains("[rival_claim] shop.test/ is named by http-shop too; http-shop has it at lb1"), "{said}");
}

#[test]
fn old_haproxys_that_cannot_be_asked_or_were_cut_off_are_found() {
    let status = |old: &str| format!(r#"{{"in_sync":true,"old_haproxys":{old}}}"#);
    let cut = status(r#"{"silent":1,"cut_off":{"processes":2,"connections":40,"last":"1970-01-01T00:00:00.000Z"}}"#);
    let fine = status(r#"{"silent":0,"cut_off":{"processes":0,"connections":0,"last":null}}"#);
    expect![[r#"
        balancers/lb1 [connections_cut] handover has ended 2 old HAProxys with 40 connections, because there were too many or they had too much memory
        balancers/lb1 [haproxy_silent] 1 masters or processes of HAProxy don't answer: drains wait for their age
    "#]]
    .assert_eq(&linted(&[], &[("lb1", Ok(&cut)), ("lb2", Ok(&fine))], &[], &[], &[]));
}
