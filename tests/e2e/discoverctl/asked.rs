//! An answer counts only if the asked balancer gave it, about this store; and what an operator's file says of asking.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread::spawn;

use lab::{App, Balancer, Etcd, PATIENCE, Scratch, Setup, bin, light, until, write};
use serde_json::json;

use super::scene::{Said, ctl, json};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A key that a balancer of this store may have written; its API is elsewhere.
fn key(etcd: &Etcd, url: &str) -> String {
    let cluster = etcd.cluster_id().to_string();
    let follows = i64::MAX;
    json!({"cluster": cluster, "seen": follows, "applied": follows, "pending": [], "held": [], "draining": {}, "url": url}).to_string()
}

/// A balancer whose HAProxy finds the app up.
fn balancer(etcd: &Etcd, node: &str, flags: &[&str]) -> Balancer {
    let balancer = Setup::new().confgen(etcd).flags(&["--node", node]).flags(flags).start();
    balancer.wait_settled(PATIENCE);
    balancer
}

fn url(balancer: &Balancer) -> String {
    format!("http://{}", balancer.admin())
}

/// A web server that gives everybody this answer.
fn stub(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// `check` comes to end so.
#[track_caller]
fn wait_check(etcd: &Etcd, status: i32) -> Said {
    until(PATIENCE, &format!("check to end with {status}"), || {
        let said = ctl(etcd, &["check", "shop"]);
        if said.status == status { Ok(said) } else { Err(format!("{said:#?}")) }
    })
}

#[test]
fn no_answer_of_another_balancer_store_or_prefix_counts() {
    let _turn = light();
    let (etcd, elsewhere) = (Etcd::start(), Etcd::start());
    let app = App::alone("shop-1");
    for store in [&etcd, &elsewhere] {
        store.http_service("shop", "shop.test", &[&app]);
    }
    etcd.put("http-services/shop/active", "blue");
    for color in ["blue", "green"] {
        let record = json!({"address": app.address.to_string(), "color": color, "permanent": true});
        etcd.put(&format!("http-services/shop/upstreams/{color}"), record.to_string());
    }
    etcd.delete("http-services/shop/upstreams/shop-1");
    let first = balancer(&etcd, "lb1", &[]);
    let other_store = balancer(&elsewhere, "lb2", &[]);
    let other_prefix = balancer(&etcd, "lb2", &["--prefix", "/other"]);
    until(PATIENCE, "blue to be balanced", || ctl(&etcd, &["check", "shop/blue"]).status == 0);

    let old = "HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{\"upstreams\":[]}\n";
    let unknown = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let moved = "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (url, why) in [
        (url(&first), "lb1 answers there, not lb2 (a loopback address is every host's own: "),
        (url(&other_store), "a confgen answers there that follows "),
        (url(&other_prefix), "a confgen answers there that follows /other, not /haproxy-discover"),
        (format!("http://{}", stub(old)), "the answer doesn't say which balancer gave it"),
        (format!("http://{}", stub(unknown)), "the answer doesn't say which balancer gave it"),
        (format!("http://{}", stub(moved)), "it answers 302 to "),
    ] {
        etcd.put("balancers/lb2", key(&etcd, &url));
        for command in [
            &["check", "shop/blue"][..],
            &["verify", "shop"],
            &["color", "shop", "green"],
            &["switch", "shop", "green"],
        ] {
            ctl(&etcd, command).assert_error(6, why);
        }
        let judged = ["switch", "shop", "green", "--force", "--max-errors", "1%"];
        ctl(&etcd, &judged).assert_error(6, "can't be judged; nothing was changed");
        assert!(json(&etcd, &["list"])["unreachable"]["lb2"].as_str().unwrap().contains(why));
        assert_eq!(etcd.get("http-services/shop/active").as_deref(), Some("blue"));
    }
    etcd.delete("balancers/lb2");
    ctl(&etcd, &["check", "shop/blue"]).assert(0);
}

#[test]
fn every_answer_names_its_balancer() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    let balancer = balancer(&etcd, "lb1", &[]);
    let written = || serde_json::from_str::<serde_json::Value>(&etcd.get("balancers/lb1").unwrap()).unwrap();
    let paths =
        ["status", "services", "services/http-shop", "services/http-none", "upstreams", "quarantine", "balancer"];
    for path in paths.iter().chain(&["certificates", "history", "nonsense"]) {
        let answer = balancer.asked(&format!("/api/v1/{path}")).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let (cluster, instance) = (etcd.cluster_id().to_string(), &written()["instance"]);
        assert!(instance.as_str().is_some_and(|it| it.len() == 16), "{instance}");
        let identity = json!({"node": "lb1", "cluster": cluster, "prefix": "/haproxy-discover", "instance": instance});
        assert_eq!(answer["identity"], identity, "{path}");
    }

    // Two hosts of one name: the first one's key leads to the second one.
    let other = json!({"instance": "0123456789abcdef"});
    let mut value: serde_json::Value = serde_json::from_str(&key(&etcd, &url(&balancer))).unwrap();
    value.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
    until(PATIENCE, "the other's key to be seen", || {
        // confgen takes its key back.
        etcd.put("balancers/lb1", value.to_string());
        let said = ctl(&etcd, &["check", "shop"]);
        if said.stderr.contains("another confgen called lb1 answers there") {
            Ok(())
        } else {
            Err(format!("{said:#?}"))
        }
    });
}

#[test]
fn an_operators_file_has_the_endpoints_and_the_token() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    let setup = Setup::new().confgen(&etcd);
    let token = setup.folder().join("token");
    write(&token, format!("{TOKEN}\n"));
    let _balancer = setup.flags(&["--node", "lb1", "--admin-token-file", token.to_str().unwrap()]).start();
    let home = Scratch::new();
    std::fs::create_dir_all(home.join("haproxy-discover")).unwrap();
    let file = home.join("haproxy-discover/discoverctl.toml");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(bin("discoverctl"));
        super::scene::said(&command.args(arguments).env("XDG_CONFIG_HOME", &*home).output().unwrap())
    };

    // Without a token, and with another one.
    wait_check(&etcd, 6);
    ctl(&etcd, &["check"]).assert_error(6, "it asks for a token: --api-token-file");
    let wrong = home.join("wrong");
    write(&wrong, "fedcba9876543210");
    let with_wrong = ["check", "--api-token-file", wrong.to_str().unwrap()];
    ctl(&etcd, &with_wrong).assert_error(6, "it has another token than --api-token-file");

    write(home.join("haproxy-discover/token"), TOKEN);
    write(&file, format!("endpoints = ['{}']\napi-token-file = 'token'\n", etcd.endpoints()));
    until(PATIENCE, "the app to be balanced", || {
        let said = run(&["check", "shop"]);
        if said.status == 0 { Ok(()) } else { Err(format!("{said:#?}")) }
    });
    let shown = run(&["config", "--output", "json"]).json();
    assert_eq!(shown["options"]["endpoints"]["value"], etcd.endpoints());
    assert_eq!(shown["options"]["endpoints"]["source"], file.display().to_string());
    assert_eq!(shown["options"]["output"], json!({"value": "json", "source": "--output"}));
    run(&[&with_wrong[..], &["--output", "plain"]].concat())
        .assert_error(6, "it has another token than --api-token-file");

    // What is wrong with a file is said, and nothing is waited for.
    write(&file, "endpoint = 'x'\n");
    run(&["list"]).assert_error(2, "line 1: there is no key endpoint; did you mean endpoints?");
    run(&["--help"]).assert(0);
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    run(&["list"]).assert_error(2, "discoverctl.toml can't be read: it is a FIFO");
    let pipe = ["list", "--api-token-file", file.to_str().unwrap()];
    ctl(&etcd, &pipe).assert_error(2, "can't be read: it is a FIFO");
}
