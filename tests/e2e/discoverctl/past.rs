//! `history`, `diff`, `rollback`, `export`, `import`, `accept-store`.

use lab::{App, Balancer, Etcd, PATIENCE, Scratch, light, until, write};

use super::scene::{ctl, json};

#[test]
fn what_was_is_told_compared_and_brought_back() {
    let _turn = light();
    let etcd = Etcd::start();
    etcd.put("http-services/blog/domain", "blog.test");
    etcd.put("http-services/shop/domain", "shop.test");
    let good = etcd.put("http-services/shop/balance", "leastconn");
    let lease = etcd.grant(60);
    etcd.put_leased("http-services/shop/upstreams/a", "127.0.0.1:80", lease);
    etcd.put("http-services/shop/balance", "random");
    etcd.put("http-services/shop/hsts", "180d");
    etcd.delete("http-services/shop/hsts");
    let bad = etcd.put("http-services/shop/domain", "shop.test www.test");

    let history = json(&etcd, &["history", "shop"]);
    let row = |row: &serde_json::Value| {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let key = text("key").rsplit_once('/').unwrap().1.to_owned();
        format!("{key}: {} → {}", text("before"), text("after"))
    };
    let rows: Vec<String> = history["changes"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(
        rows,
        [
            "domain: - → shop.test",
            "balance: - → leastconn",
            "balance: leastconn → random",
            "hsts: - → 180d",
            "hsts: 180d → -",
            "domain: shop.test → shop.test www.test",
        ]
    );
    assert_eq!(json(&etcd, &["history", "shop", "--all"])["changes"].as_array().unwrap().len(), 7);
    let since = good.to_string();
    assert_eq!(json(&etcd, &["history", "shop", "--since", &since])["changes"].as_array().unwrap().len(), 4);
    ctl(&etcd, &["history", "shpo"]).assert_error(4, "did you mean shop?");
    ctl(&etcd, &["history", "shop", "--since", "9999"]).assert(2);

    let diff = ctl(&etcd, &["diff", &since, "--output", "plain"]);
    diff.assert(1);
    assert_eq!(
        diff.stdout,
        "http-services/shop/balance\tleastconn\trandom\nhttp-services/shop/domain\tshop.test\tshop.test www.test\n"
    );
    ctl(&etcd, &["diff", &since, "--service", "blog"]).assert(0);
    ctl(&etcd, &["diff", &since, &since]).assert(0);
    ctl(&etcd, &["diff", "0"]).assert(2);

    // Another service has what it gave up: rolling back takes it from nobody.
    ctl(&etcd, &["rollback", "blog", "1"]).assert_error(4, "http-blog had no settings at revision 1");
    let planned = ctl(&etcd, &["rollback", "shop", &since, "--dry-run"]);
    assert!(planned.stdout.contains("http-services/shop/balance: random → leastconn"), "{planned:#?}");
    assert_eq!(etcd.get("http-services/shop/balance").as_deref(), Some("random"));
    ctl(&etcd, &["rollback", "shop", &since]).assert(0);
    ctl(&etcd, &["diff", &since]).assert(0);
    assert_eq!(etcd.lease_of("http-services/shop/upstreams/a"), Some(lease), "it was touched");
    etcd.put("http-services/wiki/domain", "www.test");
    ctl(&etcd, &["rollback", "shop", &bad.to_string()]).assert_error(4, "www.test/ is named by http-wiki already");

    etcd.compact();
    let oldest = etcd.revision();
    let compacted = format!("revision {since} is compacted away; the oldest that can be read is {oldest}");
    ctl(&etcd, &["diff", &since]).assert_error(4, &compacted);
    ctl(&etcd, &["rollback", "shop", &since]).assert_error(4, &compacted);
    etcd.put("http-services/shop/balance", "first");
    let history = ctl(&etcd, &["history", "shop", "--since", &since]);
    assert!(
        history.stdout.contains(&format!("since revision {oldest}; what was before is compacted away")),
        "{history:#?}"
    );
    // A service that is gone has a past.
    etcd.delete_all("http-services/blog/");
    assert_eq!(json(&etcd, &["history", "blog"])["changes"].as_array().unwrap().len(), 1);
}

#[test]
fn a_document_is_written_and_read() {
    let _turn = light();
    let (etcd, other, folder) = (Etcd::start(), Etcd::start(), Scratch::new());
    etcd.put("http-services/shop/domain", "shop.test\nwww.test");
    etcd.put("http-services/shop/overrides/a", r#"{"state":"drain"}"#);
    etcd.put("services/shop/color", "blue");
    etcd.put("tcp-services/db/ports", "3306");
    etcd.put("tcp-services/db/upstreams/1", r#"{"address":"10.0.0.1:3306","permanent":true}"#);
    let durable = etcd.entries("");
    let lease = etcd.grant(60);
    etcd.put_leased("http-services/shop/upstreams/a", "127.0.0.1:80", lease);
    etcd.put_leased("balancers/x", "{}", lease);

    let text = ctl(&etcd, &["export"]).stdout;
    assert!(text.starts_with("# Durable keys below /haproxy-discover at revision "), "{text}");
    let file = folder.join("all.yaml");
    write(&file, &text);
    let file = file.display().to_string();
    ctl(&other, &["import", &file, "--dry-run"]).assert(0);
    let durable_of = |etcd: &Etcd| -> std::collections::BTreeMap<String, Vec<u8>> {
        // The change log isn't part of a document.
        etcd.entries("").into_iter().filter(|(key, _)| !key.contains("/log/")).collect()
    };
    assert!(other.entries("").is_empty());
    ctl(&other, &["import", &file]).assert(0);
    assert_eq!(durable_of(&other), durable);
    let again = ctl(&other, &["import", &file]);
    assert!(again.stdout.starts_with("nothing to change"), "{again:#?}");
    assert_eq!(ctl(&etcd, &["export", "db", "--output", "json"]).json()["tcp-services"]["db"]["ports"], "3306");

    // What else its services have stays, unless it is to go.
    other.put("http-services/shop/hsts", "180d");
    other.put("http-services/blog/domain", "blog.test");
    ctl(&other, &["import", &file]).assert(0);
    assert_eq!(durable_of(&other).len(), durable.len() + 2);
    ctl(&other, &["import", &file, "--prune"]).assert(0);
    assert_eq!(durable_of(&other).len(), durable.len() + 1);

    let revision = other.revision();
    write(&file, "http-services:\n  shop:\n    balance: random\n    tls: maybe\n");
    ctl(&other, &["import", &file])
        .assert_error(2, "all.yaml:4: http-services/shop/tls: `maybe`: expected both, terminate");
    write(&file, "http-services: {wiki: {domain: shop.test}}");
    ctl(&other, &["import", &file]).assert_error(4, "shop.test/ is named by http-shop already");
    assert_eq!(other.revision(), revision, "something was written");

    let many: String = (0..150).map(|number| format!("  s{number}: {{domain: s{number}.test}}\n")).collect();
    write(&file, format!("http-services:\n{many}"));
    ctl(&other, &["import", &file]).assert_error(0, "150 keys, in 2 transactions");
    assert_eq!(other.entries("http-services/s").len(), 150 + 2);
}

#[test]
fn a_wiped_store_is_accepted_once_and_nothing_is_left_of_that() {
    let _turn = light();
    let mut etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    for number in 0..50 {
        etcd.put("notes", number.to_string());
    }
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    balancer.wait_settled(PATIENCE);
    // A healthy store has nothing to accept, and no word is left for the next reset.
    until(PATIENCE, "the balancer to say how it stands", || !etcd.keys("balancers/").is_empty());
    ctl(&etcd, &["accept-store"]).assert_error(4, "nothing to accept");
    assert!(etcd.keys("control/").is_empty());
    etcd.wipe();
    until(PATIENCE, "the wipe to be noticed", || balancer.log("confgen").contains("the store was wiped"));
    until(PATIENCE, "what is held to be said", || {
        let said = ctl(&etcd, &["accept-store", "--dry-run"]);
        if said.stdout.contains("keys, 1 upstream:") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    let said = ctl(&etcd, &["accept-store"]);
    said.assert(0);
    assert!(said.stdout.contains("followed by "), "{said:#?}");
    assert!(balancer.servers_up("http-shop").is_empty(), "it was said too early");
    assert!(etcd.keys("control/").is_empty(), "the key has done its work");
    // One that was left by somebody is deleted, and is told.
    etcd.put("control/accept-store", "{}");
    ctl(&etcd, &["lint"]).assert(1);
    ctl(&etcd, &["accept-store"]).assert(0);
    assert!(etcd.keys("control/").is_empty());
}
