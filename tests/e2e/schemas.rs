//! The values that the programs write into the store, and the files that they read, against `docs/schemas/`.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

use lab::{Announce, App, Balancer, Etcd, PATIENCE, PREFIX, SOURCE, bin, check_value, light, until};
use serde_json::Value;

/// The schema of a key's value. Settings and `control/…` have none.
fn schema_of(key: &str) -> Option<&'static str> {
    let words: Vec<&str> = key.strip_prefix(PREFIX)?.split('/').filter(|word| !word.is_empty()).collect();
    match words[..] {
        [_, _, "upstreams", _] => Some("upstream"),
        [_, _, "overrides", _] => Some("override"),
        [_, _, "slots", _] => Some("slot"),
        [_, _, "standby", _] => Some("standby"),
        ["balancers", _] => Some("balancer"),
        ["log", _] => Some("log-entry"),
        _ => None,
    }
}

#[test]
fn what_the_programs_write_fits_its_schema() {
    let _turn = light();
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    let service = ["--service", "shop", "--domain", "shop.test", "--color", "blue", "--weight", "7", "--replicas", "1"];
    let announce = Announce { etcd: &etcd, flags: &service };
    let copies = ["shop-1", "shop-2"].map(|name| App::launch(name, Some(announce), &[]));
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    until(PATIENCE, "one that stands by", || etcd.keys("http-services/shop/standby/").len() == 1);
    let upstream = etcd.keys("http-services/shop/upstreams/").remove(0);
    let id = upstream.rsplit('/').next().unwrap();
    let mut discoverctl = Command::new(bin("discoverctl"));
    discoverctl.args(["maint", &format!("shop/{id}"), "--reason", "a test", "--endpoints", &etcd.endpoints()]);
    let output = discoverctl.output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let mut checked = BTreeSet::new();
    for (key, value) in etcd.entries("") {
        let Some(schema) = schema_of(&key) else { continue };
        let value: Value = serde_json::from_slice(&value).unwrap_or_else(|error| panic!("{key}: {error}"));
        check_value(schema, &value);
        checked.insert(schema);
    }
    let all = ["balancer", "log-entry", "override", "slot", "standby", "upstream"];
    assert_eq!(checked, BTreeSet::from(all));
    drop(copies);
}

#[test]
fn the_example_of_a_config_file_fits_its_schema() {
    let text = read_to_string(Path::new(SOURCE).join("units/announcer.toml")).unwrap();
    let mut file: Value = toml::from_str(&text).unwrap();
    check_value("announcer", &file);
    file["announce"][0]["domian"] = "shop.test".into();
    assert!(std::panic::catch_unwind(|| check_value("announcer", &file)).is_err(), "a misspelt key");
}
