//! `make ignition`: what Ignition's own validator says of the files, and what is in them. No host is booted.

use std::path::Path;
use std::process::{Command, Output};

use lab::{Page, SOURCE, Scratch, bin, light, write};
use serde_json::Value;

/// A shell script in a folder, where `make` is that of this source with the programs that the tests run.
fn sh(folder: &Path, script: &str) -> Output {
    let built = bin("announcer").parent().unwrap().display().to_string();
    let make = format!("make() {{ command make --silent -C {SOURCE} BUILT={built} \"$@\"; }}\n");
    let mut sh = Command::new("sh");
    sh.current_dir(folder).args(["-ec", &(make + script)]).env_remove("MAKEFLAGS").output().expect("sh")
}

#[track_caller]
fn assert_done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn validate(file: &Path) -> Output {
    Command::new("ignition-validate").arg(file).output().expect("ignition-validate")
}

/// A file's content, where it is in the Ignition file itself.
fn embedded(folder: &Path, contents: &Value) -> String {
    let data = contents["source"].as_str().unwrap().strip_prefix("data:;base64,").unwrap();
    write(folder.join("data"), data);
    assert_done(&sh(folder, "base64 -d data | gunzip"))
}

fn entry<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|it| it[key] == value).unwrap_or_else(|| panic!("{value}: {list}"))
}

/// What a block of the page makes, and the validator takes.
fn made(folder: &Path, block: usize, file: &str) -> Value {
    assert_done(&sh(folder, &Page::read("docs/deploy.md").below("CoreOS")[block]));
    let file = folder.join(file);
    assert_done(&validate(&file));
    serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap()
}

#[test]
#[ignore = "needs ignition-validate: make lab-test"]
fn a_balancer_host_has_what_the_page_says() {
    let _turn = light();
    let folder = Scratch::new();
    let config = made(&folder, 0, "balancer.ign");
    let files = &config["storage"]["files"];
    let paths: Vec<&str> = files.as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    let quadlets = "/etc/containers/systemd/balancer";
    let expected = [&*format!("{quadlets}.container"), &format!("{quadlets}.volume"), "/etc/haproxy-discover/etcd.env"];
    assert_eq!(paths, [&expected[..], &["/opt/bin/discoverctl"]].concat(), "and no package of HAProxy's");
    let quadlet = embedded(&folder, &entry(files, "path", paths[0])["contents"]);
    assert!(quadlet.contains("\nImage=registry.example.com/lb/haproxy-discover-balancer:1.4\n"), "{quadlet}");
    assert_eq!(entry(files, "path", "/etc/haproxy-discover/etcd.env")["user"]["id"], 980);
    entry(&config["storage"]["directories"], "path", "/etc/haproxy/certs");

    // Butane only renames keys and puts the file in.
    let butane = Page::read("docs/deploy.md").below("CoreOS")[2].clone();
    write(folder.join("host.bu"), butane.replace("AAAA…", "AAAA"));
    write(folder.join("butane.py"), BUTANE);
    write(folder.join("host.ign"), assert_done(&sh(&folder, "python3 butane.py <host.bu")));
    assert_done(&validate(&folder.join("host.ign")));
}

/// What Butane does with the page's file: camel case, and contents in the file itself.
const BUTANE: &str = r#"
import base64, json, re, sys, yaml
def data(text):
    return "data:;base64," + base64.b64encode(text).decode()
def change(value):
    if isinstance(value, list):
        return [change(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "local" in value:
        return {"source": data(open(value["local"], "rb").read())}
    if "inline" in value:
        return {"source": data(value["inline"].encode())}
    return {re.sub("_(.)", lambda found: found[1].upper(), key): change(each) for key, each in value.items()}
config = yaml.safe_load(sys.stdin)
assert (config.pop("variant"), config.pop("version")) == ("fcos", "1.0.0")
config = change(config)
config["ignition"]["version"] = "3.0.0"
json.dump(config, sys.stdout)
"#;

#[test]
#[ignore = "needs ignition-validate: make lab-test"]
fn an_app_host_has_what_the_page_says() {
    let _turn = light();
    let folder = Scratch::new();
    let config = made(&folder, 1, "shop.ign");

    let files = &config["storage"]["files"];
    let announcer = &entry(files, "path", "/opt/bin/announcer")["contents"];
    assert_eq!(announcer["source"], "https://files.example.com/1/announcer");
    let sum = assert_done(&Command::new("sha512sum").arg(bin("announcer")).output().unwrap());
    assert_eq!(announcer["verification"]["hash"], format!("sha512-{}", sum.split(' ').next().unwrap()));
    let settings = &entry(files, "path", "/etc/haproxy-discover/app-shop.env")["contents"];
    assert!(embedded(&folder, settings).contains("ANNOUNCER_DOMAIN=shop.example.com\n"));
    let command = entry(files, "path", "/etc/systemd/system/app@shop.service.d/command.conf");
    assert!(embedded(&folder, &command["contents"]).contains("--port ${PORT}\n"));

    let units = &config["systemd"]["units"];
    for name in ["app@shop.service", "announcer@shop.service"] {
        assert_eq!(entry(units, "name", name)["enabled"], true, "{name}");
    }
    let text = entry(units, "name", "announcer@.service")["contents"].as_str().unwrap();
    assert!(text.contains("\nExecStart=/opt/bin/announcer\n"), "{text}");
}

#[test]
#[ignore = "needs ignition-validate: make lab-test"]
fn every_role_is_valid_and_the_same_each_time() {
    let _turn = light();
    let folder = Scratch::new();
    for (role, unit, quadlet) in [
        ("store", Some("etcd-defrag.timer"), Some("etcd")),
        ("balancer", None, Some("balancer")),
        ("containers", Some("podman.socket"), Some("announcer-containers")),
        ("app", Some("announcer@node1.service"), None),
    ] {
        let make = format!("make ignition ROLE={role} NAME=node1");
        let linked = assert_done(&sh(&folder, &format!("{make} URL=https://files.example.com/1/")));
        assert_eq!(linked, assert_done(&sh(&folder, &format!("{make} URL=https://files.example.com/1/"))), "{role}");
        let config: Value = serde_json::from_str(&linked).unwrap();
        if let Some(unit) = unit {
            assert_eq!(entry(&config["systemd"]["units"], "name", unit)["enabled"], true);
        }
        for kind in ["container", "volume"].into_iter().filter(|_| quadlet.is_some()) {
            let path = format!("/etc/containers/systemd/{}.{kind}", quadlet.unwrap());
            entry(&config["storage"]["files"], "path", &path);
        }
        for file in config["storage"]["files"].as_array().unwrap() {
            let path = file["path"].as_str().unwrap();
            assert!(path.starts_with("/etc/") || path.starts_with("/opt/"), "{path}");
        }
        let file = folder.join("host.ign");
        write(&file, &linked);
        assert_done(&validate(&file));
        write(&file, linked.replace("\"version\": \"3.0.0\"", "\"version\": \"9.0.0\""));
        assert!(!validate(&file).status.success(), "the validator reads it");
    }
    // The programs in it, too.
    assert_done(&sh(&folder, "make ignition ROLE=store NAME=node1 >host.ign"));
    assert_done(&validate(&folder.join("host.ign")));
    for (wrong, why) in [
        ("ROLE=router", "ROLE is one of store, balancer, containers, app"),
        ("ROLE=app", "NAME is"),
        ("ROLE=app NAME=a/../b", "NAME is"),
        ("ROLE=balancer ETC=/nowhere", "ETC=/nowhere is no folder"),
        ("ROLE=balancer 'IMAGES=a b'", "IMAGES names the images in a registry"),
    ] {
        let output = sh(&folder, &format!("make ignition {wrong}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why) && output.stdout.is_empty(), "{wrong}: {said}");
    }
}
