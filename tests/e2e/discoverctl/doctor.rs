//! What helps in the first minutes: `doctor`, completions, similar names, and tables on a narrow terminal.

use std::time::{Duration, Instant};

use lab::{App, Balancer, Etcd, PATIENCE, bin, free_port, light, until};
use serde_json::{Value, json};

use super::scene::{Said, command, ctl, json, said};

/// A balancer that serves one app, which no fault is to be found with.
fn sound(etcd: &Etcd) -> (Balancer, App) {
    let (balancer, app) = (Balancer::start(etcd), App::alone("shop-1"));
    balancer.wait_settled(PATIENCE);
    let address = app.address.to_string();
    json(etcd, &["register", "a-shop-with-a-long-name", "the-first-of-its-nodes", &address, "--color", "blue"]);
    json(etcd, &["set", "a-shop-with-a-long-name", "domain", "shop.test"]);
    json(etcd, &["set", "a-shop-with-a-long-name", "tls", "off"]);
    (balancer, app)
}

fn findings(said: &Said) -> Vec<(String, String)> {
    let findings = said.json()["findings"].as_array().unwrap().clone();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    findings.iter().map(|it| (text(it, "area"), text(it, "subject"))).collect()
}

#[test]
fn the_doctor_finds_nothing_or_says_what_to_do() {
    let _turn = light();
    let etcd = Etcd::start();
    let (_balancer, _app) = sound(&etcd);
    let well = until(PATIENCE, "nothing to be wrong", || {
        let said = ctl(&etcd, &["doctor"]);
        if said.status == 0 { Ok(said) } else { Err(format!("{said:#?}")) }
    });
    assert!(well.stdout.contains("nothing is wrong") && well.stdout.contains("checked: store: 1 of 1"), "{well:?}");

    // A balancer on another host can't be asked, and an app's address on loopback leads it to itself.
    let elsewhere = json!({"cluster": etcd.cluster_id().to_string(), "applied": 1, "pending": [], "held": [], "draining": {},
        "url": format!("http://127.0.0.1:{}", free_port())});
    etcd.put("balancers/elsewhere", elsewhere.to_string());
    let ill = ctl(&etcd, &["doctor", "--output", "json"]);
    ill.assert(1);
    let found = findings(&ill);
    for (area, subject) in [
        ("loopback", "elsewhere"),
        ("loopback", "http-services/a-shop-with-a-long-name/upstreams/the-first-of-its-nodes"),
    ] {
        assert!(found.contains(&(area.to_owned(), subject.to_owned())), "{found:?}");
    }
    assert!(ill.json()["unknown"].to_string().contains("elsewhere can't be asked"), "{ill:?}");
    let empty = ctl(&etcd, &["doctor", "--prefix", "/nothing", "--output", "json"]);
    empty.assert(1);
    assert_eq!(findings(&empty), [("store".to_owned(), "/nothing".to_owned())]);

    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let lost = said(
        &std::process::Command::new(bin("discoverctl")).args(["doctor", "--endpoints", &endpoint]).output().unwrap(),
    );
    lost.assert_error(3, "can't be reached");
    assert!(lost.stdout.contains(&format!("error: {endpoint}: etcd at {endpoint} can't be reached")), "{lost:?}");
}

#[test]
fn completions_know_the_store_and_say_nothing_without_it() {
    let _turn = light();
    let etcd = Etcd::start();
    for (service, color) in [("shop", "blue"), ("blog", "green")] {
        etcd.put(
            &format!("http-services/{service}/upstreams/a"),
            format!(r#"{{"address":"10.0.0.1:80","color":"{color}"}}"#),
        );
    }
    let complete = |endpoints: &str, words: &[&str]| {
        let mut command = std::process::Command::new(bin("discoverctl"));
        command.env("DISCOVERCTL_COMPLETE", "bash").env("_CLAP_IFS", "\n").env("ETCDCTL_ENDPOINTS", endpoints);
        command.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).args(["--", "discoverctl"]).args(words);
        let said = said(&command.output().unwrap());
        said.assert(0);
        assert_eq!(said.stderr, "");
        said.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let here = etcd.endpoints();
    assert_eq!(complete(&here, &["show", "s"]), ["shop"]);
    assert_eq!(complete(&here, &["drain", "blog/"]), ["blog/a"]);
    assert_eq!(complete(&here, &["switch", "blog", "g"]), ["green"]);
    assert_eq!(complete(&here, &["set", "shop", "proto", "h"]), ["h1", "h2"]);
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    assert_eq!(complete(&nowhere, &["--endpoints", &here, "show", "b"]), ["blog"], "an option that is typed counts");
    let began = Instant::now();
    assert_eq!(complete(&nowhere, &["show", "s"]), [""; 0]);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    ctl(&etcd, &["set", "shop", "balanse", "leastconn"]).assert_error(2, "did you mean balance?");
}

#[test]
fn tables_of_80_columns_cut_no_word() {
    let _turn = light();
    let etcd = Etcd::start();
    let (_balancer, app) = sound(&etcd);
    etcd.put("http-services/another-shop-with-a-long-name/upstreams/the-only-node", app.address.to_string());
    for words in
        [&["list"][..], &["show", "a-shop-with-a-long-name"], &["lint"], &["history", "a-shop-with-a-long-name"]]
    {
        let wide = ctl(&etcd, words).stdout;
        let narrow = said(&command(&etcd, words).env("COLUMNS", "80").output().unwrap()).stdout;
        let narrow_words: Vec<&str> = narrow.split_whitespace().collect();
        // Times go on between the two.
        let kept = wide.split_whitespace().filter(|word| word.contains("long-name") || word.contains("nodes"));
        for word in kept {
            assert!(narrow_words.contains(&word), "{word} is cut:\n{narrow}");
        }
        let too_long = |line: &&str| line.chars().count() > 80 && line.trim_start().contains(' ');
        let long: Vec<&str> = narrow.lines().filter(too_long).collect();
        assert!(long.is_empty(), "{words:?}: {long:#?}\n{narrow}");
    }
}
