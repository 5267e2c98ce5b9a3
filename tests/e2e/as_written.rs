//! What people write into the store: lists with a word that can't be followed, ids that are no names, and paths that are
//! guarded as they are written.

use std::process::Command;

use lab::http::raw;
use lab::{Balancer, Etcd, Ground, PATIENCE, bin, free_port, light, until};
use serde_json::Value;

/// Waits until the balancer's API, its log and its key name what isn't followed, and why.
#[track_caller]
fn wait_quarantined(etcd: &Etcd, balancer: &Balancer, key: &str, reason: &str) {
    until(PATIENCE, &format!("{key} to be named with {reason}"), || {
        let all = balancer.quarantine();
        let record = etcd.get("balancers/lab").unwrap_or_default();
        let recorded: Value = serde_json::from_str(&record).unwrap_or_default();
        let is_there = |value: &Value| value.as_str().is_some_and(|words| words.contains(reason));
        let is_logged = balancer.log("confgen").lines().any(|line| line.contains(key) && line.contains(reason));
        if is_there(&all[key]) && is_there(&recorded["quarantined"][key]) && is_logged { Ok(()) } else { Err(record) }
    });
}

/// What discoverctl says, with its exit code.
fn discoverctl(etcd: &Etcd, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(bin("discoverctl"));
    let output = command.args(arguments).args(["--endpoints", &etcd.endpoints()]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_bad_word_in_a_list_costs_that_word_and_is_named() {
    let _turn = light();
    let [good, other] = [(); 2].map(|()| free_port());
    let build = Ground::build()
        .http("shop", "a.test A.TEST, a.test.", &["app"])
        .http("news", "news.test,news.test:8080 https://www.news.test/\n", &["app"])
        .set("http-services/news", &[("path", "/ api")])
        .tcp("db", &["app"])
        .set("tcp-services/db", &[("ports", &format!("127.0.0.1:{good} mysql"))]);
    // Its upstream gets nothing, so the builder can't wait for it.
    let upstream = build.app("app").address.to_string();
    let gate = [("domain", "gate.test"), ("allow", "127.0.0.0/8 everybody"), ("upstreams/app", &upstream)];
    let build = build.set("http-services/gate", &gate).flags(&["--node", "lab"]);
    let Ground { etcd, balancer, apps: _apps, .. } = build.start();
    for host in ["a.test", "news.test"] {
        balancer.wait_status(PATIENCE, host, "/", 200);
    }
    until(PATIENCE, "the good port", || raw(([127, 0, 0, 1], good).into(), b"GET / HTTP/1.0\r\n\r\n").is_ok());
    for (key, reason) in [
        ("http-services/news/domain", "`news.test:8080`: leave the port out"),
        ("http-services/news/domain", "`https://www.news.test/`: leave `https://` out"),
        ("http-services/news/domain", "; the other words count"),
        ("http-services/news/path", "`api`: a path begins with `/`"),
        ("http-services/gate/allow", "`everybody`: a network is written as"),
        ("tcp-services/db/ports", "`mysql`: a bind is a port"),
    ] {
        wait_quarantined(&etcd, &balancer, key, reason);
    }
    assert!(balancer.quarantine().get("http-services/shop/domain").is_none(), "a double is nothing to complain of");
    assert_eq!(balancer.get("www.news.test", "/").status, 404);
    assert_eq!(balancer.get("gate.test", "/").status, 503, "who may come in is never half of what was written");

    // The good words of the new value count, not the last good value.
    etcd.put("http-services/news/domain", "paper.test paper.test/today");
    balancer.wait_status(PATIENCE, "paper.test", "/", 200);
    assert_eq!(balancer.get("news.test", "/").status, 404);
    wait_quarantined(&etcd, &balancer, "http-services/news/domain", "paths belong into the key `path`");
    // Without a good word, the last value with one does.
    etcd.put("http-services/news/domain", "https://gone.test/");
    wait_quarantined(&etcd, &balancer, "http-services/news/domain", "the last good value serves");
    assert_eq!(balancer.get("paper.test", "/").status, 200);
    etcd.put("tcp-services/db/ports", format!("127.0.0.1:{other} 127.0.0.1:{other}"));
    until(PATIENCE, "the port that is named twice", || {
        raw(([127, 0, 0, 1], other).into(), b"GET / HTTP/1.0\r\n\r\n").is_ok()
    });

    // Who writes it now is told so.
    let (code, said) = discoverctl(&etcd, &["set", "shop", "domain", "b.test", "b.test:8080"]);
    assert!(code == Some(2) && said.contains("`b.test:8080`: leave the port out"), "{code:?} {said}");
    let (code, said) = discoverctl(&etcd, &["set", "--no-wait", "shop", "domain", "b.test", "B.test"]);
    assert_eq!((code, etcd.get("http-services/shop/domain").as_deref()), (Some(0), Some("b.test")), "{said}");
    let (_, said) = discoverctl(&etcd, &["lint"]);
    assert!(said.contains("`https://gone.test/`: leave `https://` out"), "{said}");
}

#[test]
fn an_upstream_that_no_balancer_follows_is_named() {
    let _turn = light();
    let colon = "http-services/web/upstreams/host:web-1:8000";
    let build = Ground::build().http("web", "web.test", &["app"]).flags(&["--node", "lab"]);
    build.etcd.put(colon, build.app("app").address.to_string());
    let Ground { etcd, balancer, apps, .. } = build.start();
    wait_quarantined(&etcd, &balancer, colon, "a name has no `:`: write `-` instead");
    // Those that come later, too.
    let others = [
        ("http-services/web/upstreams/node-2/address", "nothing stands below an upstream's key"),
        ("http-services/web/upstreams/node-3/", "doesn't end in `/`"),
        ("http-services/web/upstream/node-4", "it reads like an upstream's"),
        ("http-service/web/node-5", "it reads like an upstream's"),
        ("http-services/my shop/upstreams/node-6", "`my shop`: a name is a letter or digit"),
        ("tcp-services/db/upstreams/10.0.0.1:3306", "a name has no `:`"),
    ];
    for (key, reason) in others {
        etcd.put(key, "10.0.0.9:80");
        wait_quarantined(&etcd, &balancer, key, reason);
    }
    etcd.put("http-services/web/colour", "blue");
    etcd.put("http-services/web/balance", "leastconn");
    until(PATIENCE, "the good key to be followed", || balancer.file().contains("balance leastconn"));
    assert!(
        balancer.quarantine().get("http-services/web/colour").is_none(),
        "a setting that nobody knows is linted only"
    );

    let (code, said) = discoverctl(&etcd, &["explain", "web/host:web-1:8000"]);
    assert!(code == Some(0) && said.contains("write `-` instead") && said.contains("lab"), "{code:?} {said}");
    let (code, said) = discoverctl(&etcd, &["explain", "web"]);
    assert!(code == Some(0) && said.contains(colon), "{code:?} {said}");
    let (code, said) = discoverctl(&etcd, &["explain", "web/no:such"]);
    assert!(code == Some(2) && said.contains("a name has no `:`"), "{code:?} {said}");
    let (code, said) = discoverctl(&etcd, &["register", "web", "host:web-1:8000", "10.0.0.1:80"]);
    assert!(code == Some(2) && said.contains("write `-` instead"), "{code:?} {said}");
    let (_, said) = discoverctl(&etcd, &["lint"]);
    assert!(said.contains("unfollowed_key") && said.contains("unknown_key"), "{said}");

    // Moved to a name, it is followed, and nothing is said of it any more.
    etcd.put("http-services/web/upstreams/host-web-1-8000", apps[0].address.to_string());
    etcd.delete(colon);
    balancer.wait_servers(PATIENCE, "http-web", 2);
    until(PATIENCE, "the quarantine to forget it", || balancer.quarantine().get(colon).is_none());
}

/// docs/limits.md tells what `allow` on a path stops and what it doesn't.
#[test]
fn a_guarded_path_is_guarded_as_it_is_written() {
    let _turn = light();
    let build = Ground::build().http("site", "shop.test", &["site"]).http("admin", "shop.test", &["admin"]);
    let site = build.app("site").address.to_string();
    let Ground { balancer, apps: _apps, etcd: _etcd, .. } = build
        .set("http-services/admin", &[("path", "/admin"), ("allow", "192.0.2.0/24")])
        .set("http-services/old", &[("url_reg", "^/Old/"), ("upstreams/1", &site)])
        .set("http-services/any", &[("url_reg", "(?i)^/Any/"), ("upstreams/1", &site)])
        .start();
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    balancer.wait_status(PATIENCE, "shop.test", "/admin", 403);
    balancer.wait_status(PATIENCE, "elsewhere.test", "/Old/x", 200);
    balancer.wait_status(PATIENCE, "elsewhere.test", "/aNY/x", 200);
    assert_eq!(balancer.get("elsewhere.test", "/old/x").status, 404);
    for stopped in ["/admin", "/admin/", "/admin/x", "/admin?x", "http://shop.test/admin/x"] {
        assert_eq!(balancer.get("shop.test", stopped).status, 403, "{stopped}");
    }
    for passed in
        ["//admin", "/./admin", "/x/../admin", "/%61dmin", "/admin%2Fx", "/ADMIN", "/admin;x", "/adminx", "/%2e/admin"]
    {
        let answer = balancer.get("shop.test", passed);
        assert_eq!((answer.status, answer.app()), (200, "site"), "{passed}");
    }
    assert_eq!(balancer.get("SHOP.test", "/admin").status, 403, "a host has no case");
}
