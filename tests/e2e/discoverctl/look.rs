//! What discoverctl shows, explains and complains about, against real stores and balancers.

use std::collections::BTreeMap;

use lab::{App, Balancer, Etcd, PATIENCE, Scratch, Setup, Signal, free_port, light, until, write};
use serde_json::{Value, json};

use super::scene::{Said, ctl, json, launch};
use crate::rejected_config::PROFILE;

fn start(setup: Setup) -> Balancer {
    setup.flags(&["--node", "lb1"]).start()
}

fn record(address: &str, more: &Value) -> String {
    let mut record = json!({"address": address, "color": "blue", "permanent": true});
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record.to_string()
}

/// By upstream and balancer: the verdict's cause first, then what else there is to know; the first is `ok` where requests
/// come.
fn causes(etcd: &Etcd, target: &str) -> BTreeMap<String, String> {
    let answer = json(etcd, &["explain", target]);
    let mut causes = BTreeMap::new();
    for upstream in answer["upstreams"].as_array().unwrap() {
        for at in upstream["balancers"].as_array().unwrap() {
            let because = if at["gets_requests"] == true { "ok" } else { at["because"]["cause"].as_str().unwrap() };
            let also = at["also"].as_array().unwrap().iter().map(|it| it["cause"].as_str().unwrap());
            let name = format!("{}@{}", upstream["id"].as_str().unwrap(), at["balancer"].as_str().unwrap_or("nobody"));
            causes.insert(name, [because].into_iter().chain(also).collect::<Vec<_>>().join(" "));
        }
    }
    causes
}

#[track_caller]
fn wait_causes(etcd: &Etcd, target: &str, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> = wanted.iter().map(|(id, it)| ((*id).into(), (*it).into())).collect();
    until(PATIENCE, &format!("{target} to be explained so"), || {
        let found = causes(etcd, target);
        if found == wanted { Ok(()) } else { Err(format!("{found:#?}")) }
    });
}

/// The words of the verdict on an upstream at the first balancer.
fn words(etcd: &Etcd, target: &str) -> String {
    let answer = json(etcd, &["explain", target]);
    answer["upstreams"][0]["balancers"][0]["because"]["words"].as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_status(etcd: &Etcd, arguments: &[&str], status: i32) -> Said {
    until(PATIENCE, &format!("{arguments:?} to end with {status}"), || {
        let said = ctl(etcd, arguments);
        if said.status == status { Ok(said) } else { Err(format!("{said:#?}")) }
    })
}

/// A service in which each upstream gets no requests for a reason of its own, and services that have one in common.
fn many_causes(etcd: &Etcd, app: &App) {
    let address = app.address.to_string();
    let nobody = format!("127.0.0.1:{}", free_port());
    let shop = "http-services/shop";
    let put = |key: &str, value: &str| etcd.put(key, value);
    let lease = etcd.grant(60);
    etcd.put_leased("http-services/shop/upstreams/gone", "127.0.0.1:9", lease);
    put(&format!("{shop}/domain"), "shop.test");
    put(&format!("{shop}/active"), "blue");
    for (id, address, more) in [
        ("ready", &address, json!({})),
        ("dead", &nobody, json!({})),
        ("spare", &address, json!({"backup": true})),
        ("drained", &address, json!({})),
        ("leaving", &address, json!({"state": "drain"})),
        ("green", &address, json!({"color": "green"})),
        ("light", &address, json!({"weight": 0})),
    ] {
        put(&format!("{shop}/upstreams/{id}"), &record(address, &more));
    }
    put(&format!("{shop}/upstreams/bad"), "not an address");
    put(&format!("{shop}/overrides/drained"), r#"{"state":"drain"}"#);
    for (service, setting, value) in [
        ("nameless", "balance", "leastconn"),
        ("rival", "domain", "shop.test"),
        ("gated", "domain", "gated.test"),
        ("gated", "tls", "maybe"),
        ("refused", "domain", "refused.test"),
        ("refused", "profile", "mine"),
    ] {
        put(&format!("http-services/{service}/{setting}"), value);
        put(&format!("http-services/{service}/upstreams/a"), &record(&address, &json!({})));
    }
    etcd.revoke(lease);
}

#[test]
fn every_cause_is_explained() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    let crowd = ["c1", "c2"].map(App::alone);
    many_causes(&etcd, &app);
    let lease = etcd.grant(600);
    etcd.put("http-services/crowd/domain", "crowd.test");
    for app in &crowd {
        etcd.put_leased(&format!("http-services/crowd/upstreams/{}", app.name), app.address.to_string(), lease);
    }

    // Nobody is there to ask.
    wait_causes(&etcd, "shop/drained", &[("drained@nobody", "no_balancer override")]);
    let gone = json(&etcd, &["explain", "shop/gone"])["upstreams"][0].clone();
    assert_eq!((&gone["last"]["value"], &gone["last"]["lease_lives"]), (&json!("127.0.0.1:9"), &json!(false)));
    assert_eq!(gone["balancers"][0]["also"][0]["cause"], "no_record");
    ctl(&etcd, &["check", "shop"]).assert_error(6, "no balancer lives");
    ctl(&etcd, &["explain", "shop/nobody"]).assert_error(4, "no upstream nobody in http-shop");
    ctl(&etcd, &["show", "shpo"]).assert_error(4, "did you mean shop?");

    let setup = Setup::new().confgen(&etcd);
    write(setup.folder().join("conf.d/mine.cfg"), PROFILE);
    let balancer = start(setup);
    balancer.wait_settled(PATIENCE);
    let shop = [
        ("bad@lb1", "record_quarantined"),
        ("dead@lb1", "check"),
        ("drained@lb1", "override"),
        ("green@lb1", "inactive_color"),
        ("leaving@lb1", "announcer"),
        ("light@lb1", "weight"),
        ("ready@lb1", "ok"),
        ("spare@lb1", "backup"),
    ];
    wait_causes(&etcd, "shop", &shop);
    for (service, cause) in [
        ("nameless", "no_domain"),
        ("rival", "claim_held"),
        ("gated", "service_quarantined"),
        ("refused", "service_refused"),
    ] {
        wait_causes(&etcd, service, &[("a@lb1", cause)]);
    }
    assert!(words(&etcd, "shop/dead").starts_with("HAProxy's check fails: L4CON"), "{}", words(&etcd, "shop/dead"));
    assert!(words(&etcd, "rival/a").starts_with("http-shop has the claim: "), "{}", words(&etcd, "rival/a"));
    looked_at(&etcd, &app);

    // The guard: nobody said goodbye, and HAProxy finds them up.
    wait_status(&etcd, &["check", "crowd"], 0);
    etcd.revoke(lease);
    wait_causes(&etcd, "crowd", &[("c1@lb1", "ok held"), ("c2@lb1", "ok held")]);

    // Who can't be asked, and who isn't of this store.
    let key = |cluster: u64, url: &str| json!({"cluster": cluster.to_string(), "applied": 1, "pending": [], "held": [], "draining": {}, "url": url});
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    etcd.put("balancers/away", key(etcd.cluster_id(), &nowhere).to_string());
    etcd.put("balancers/garbled", "?");
    etcd.put("balancers/strange", key(1, &format!("http://{}", balancer.admin())).to_string());
    let all = [
        ("ready@away", "unasked"),
        ("ready@garbled", "balancer_garbled unasked"),
        ("ready@lb1", "ok"),
        // lb1 answers at its URL, which is no answer of its own.
        ("ready@strange", "other_store unasked"),
    ];
    wait_causes(&etcd, "shop/ready", &all);
    let said = ctl(&etcd, &["check", "shop/ready"]);
    said.assert_error(6, "strange can't be asked: ");
    assert!(said.stdout.lines().any(|line| line.contains("away") && line.contains('–')), "{said:#?}");
    let lint = json_of(&ctl(&etcd, &["lint", "--output", "json"]));
    for (key, kind) in [("balancers/garbled", "balancer_garbled"), ("balancers/strange", "other_store")] {
        assert!(found(&lint, key, kind), "{key} {kind}: {lint:#}");
    }
    etcd.delete_all("balancers/away");
    etcd.delete_all("balancers/garbled");
    etcd.delete_all("balancers/strange");

    // No restart is tried while HAProxy would refuse the operator's own files.
    write(balancer.folder().join("conf.d/mine.cfg"), "frontend mine\n    bind *:not-a-port\n");
    etcd.http_service("new", "new.test", &[&app]);
    wait_causes(&etcd, "new", &[("shop-1@lb1", "out_of_sync pending absent")]);
    write(balancer.folder().join("conf.d/mine.cfg"), PROFILE);
    wait_causes(&etcd, "new", &[("shop-1@lb1", "ok")]);

    assert!(balancer.ctl(&["stop", "haproxy"]).status.success());
    wait_causes(&etcd, "shop/ready", &[("ready@lb1", "haproxy_silent out_of_sync")]);
    ctl(&etcd, &["check", "shop/ready"]).assert_error(6, "lb1 can't ask its HAProxy: ");
    ctl(&etcd, &["verify", "shop"]).assert_error(6, "lb1 can't ask its HAProxy: ");
}

/// The same scene, as the other commands show it.
fn looked_at(etcd: &Etcd, app: &App) {
    let show = json(etcd, &["show", "shop"]);
    assert_eq!(show["claims"]["lb1"], json!(["shop.test/"]), "{show:#}");
    assert_eq!(show["settings"]["balance"], json!({"written": null, "counts": {"lb1": "roundrobin"}}));
    let upstreams = show["upstreams"].as_array().unwrap();
    let ready = upstreams.iter().find(|it| it["id"] == "ready").unwrap();
    assert_eq!((&ready["address"], &ready["state"]), (&json!(app.address.to_string()), &json!("ready")));
    assert_eq!((&ready["lease"], &ready["balancers"]["lb1"]["state"]), (&json!("none"), &json!("up")));
    let drained = upstreams.iter().find(|it| it["id"] == "drained").unwrap();
    assert_eq!((&drained["imposed"], &drained["balancers"]["lb1"]["balanced"]), (&json!("drain"), &json!(false)));
    let crowd = json(etcd, &["show", "crowd"]);
    let left = crowd["upstreams"][0]["lease_seconds"].as_u64().unwrap();
    assert!((1..=600).contains(&left), "{crowd:#}");
    let people = ctl(etcd, &["show", "shop"]);
    people.assert(0);
    assert!(people.stdout.contains("http-services/shop/upstreams/bad is not followed: "), "{people:#?}");

    wait_status(etcd, &["check", "shop/ready"], 0);
    let said = ctl(etcd, &["check", "shop", "--output", "plain"]);
    said.assert(1);
    assert!(
        said.stdout.contains("http-shop/dead\tnot_balanced\tlb1\tnot_balanced\tHAProxy's check fails: L4CON"),
        "{said:#?}"
    );
    ctl(etcd, &["verify", "crowd"]).assert(0);
    // A drained one is checked all the same; one that is in maintenance isn't.
    let verified = ["dead\tnot_found\tlb1\tnot_found\tL4CON", "drained\tfound\t", "leaving\t–\t", "ready\tfound\t"];
    until(PATIENCE, "HAProxy's checks", || {
        let said = ctl(etcd, &["verify", "shop", "--output", "plain"]);
        let is_said = |words: &&str| said.stdout.contains(&format!("http-shop/{words}"));
        if said.status == 1 && verified.iter().all(is_said) { Ok(()) } else { Err(format!("{said:#?}")) }
    });

    let lint = json_of(&ctl(etcd, &["lint", "--output", "json"]));
    for (key, kind) in [
        ("http-services/crowd/upstreams/c1", ""),
        ("http-services/gated/tls", "unreadable"),
        ("http-services/nameless/", "no_domain"),
        ("http-services/refused/", "quarantined"),
        ("http-services/rival/domain", "rival_claim"),
        ("http-services/rival/domain", "quarantined"),
        ("http-services/shop/upstreams/bad", "unreadable"),
        ("http-services/shop/upstreams/light", "double_address"),
    ] {
        assert_eq!(found(&lint, key, kind), !kind.is_empty(), "{key} {kind}: {lint:#}");
    }
}

fn json_of(said: &Said) -> Value {
    said.assert(1);
    said.json()
}

/// Whether lint has such a finding; any kind where none is named.
fn found(lint: &Value, key: &str, kind: &str) -> bool {
    let mut findings = lint["findings"].as_array().unwrap().iter();
    findings.any(|it| it["key"] == key && (kind.is_empty() || it["kind"] == kind))
}

#[test]
fn a_store_without_a_fault_is_not_linted_and_a_watch_survives_etcd() {
    let _turn = light();
    let mut etcd = Etcd::start();
    let mut app = App::alone("shop-1");
    etcd.put("http-services/shop/domain", "shop.test");
    etcd.put("http-services/shop/upstreams/a", record(&app.address.to_string(), &json!({})));
    let balancer = start(Setup::new().confgen(&etcd));
    balancer.wait_settled(PATIENCE);
    wait_status(&etcd, &["check"], 0);
    ctl(&etcd, &["lint"]).assert(0);
    let said = ctl(&etcd, &["watch", "shop", "--for", "100ms"]);
    said.assert(0);
    let rows: Vec<Vec<&str>> = said.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["TIME", "CHANGE", "UPSTREAM", "ADDRESS", "COLOR", "WEIGHT", "STATE", "BALANCERS"]);
    assert_eq!(rows[1][1..3], ["present", "http-shop/a"], "{said:#?}");
    assert_eq!(rows[1][4..], ["blue", "100", "ready", "lb1", "up"], "{said:#?}");

    let folder = Scratch::new();
    let mut watch = launch(&folder, &etcd, &["watch", "--output", "json"]);
    // The changes that it has told, oldest first: `changed a drain draining`.
    let told = |log: &str| -> Vec<String> {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let words = |it: &Value, name: &str| it[name].as_str().unwrap_or("–").to_owned();
        let line = |it: Value| {
            let there = it["balancers"]["lb1"]["state"].as_str().unwrap_or("–");
            format!("{} {} {} {there}", words(&it, "change"), words(&it, "id"), words(&it, "state"))
        };
        lines.map(line).collect()
    };
    let wait = |watch: &lab::Process, wanted: &str| {
        until(PATIENCE, wanted, || {
            let told = told(&watch.log());
            if told.iter().any(|line| line == wanted) { Ok(()) } else { Err(watch.log()) }
        });
    };
    wait(&watch, "present a ready up");
    etcd.put("http-services/shop/overrides/a", r#"{"state":"drain"}"#);
    wait(&watch, "changed a drain draining");
    etcd.kill(0);
    until(PATIENCE, "the loss of etcd to be said", || watch.log().contains("; trying on"));
    etcd.restart(0);
    until(PATIENCE, "etcd to be back", || watch.log().contains("discoverctl: etcd is back"));
    etcd.put("http-services/shop/upstreams/b", record(&app.address.to_string(), &json!({})));
    wait(&watch, "changed b ready up");
    app.kill();
    wait(&watch, "changed b ready down");
    etcd.delete("http-services/shop/upstreams/b");
    wait(&watch, "gone b ready down");
    watch.signal(Signal::SIGINT);
    assert!(watch.wait(PATIENCE).success(), "{}", watch.log());
}
