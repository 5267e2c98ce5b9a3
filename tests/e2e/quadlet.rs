//! The quadlets: what Podman's own generator and systemd say of them, and a host that Ignition sets up with them.

use std::fs::{copy, read_to_string};
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{Images, Machine, Network, PATIENCE, Page, SOURCE, Scratch, bin, light, medium, until, write};
use serde_json::json;

use crate::units::{Root, run};

/// Where the image's app is served.
const HOST: &str = "shop.example.com";

/// Podman's generator of Debian 13, which runs here as it is. Debian 12's Podman has none.
fn generator() -> PathBuf {
    let folder = bin("confgen").with_file_name("quadlet");
    let mut fetch = Command::new(Path::new(SOURCE).join("tests/fetch-quadlet"));
    let (is_there, said) = run(fetch.arg("trixie").arg(&folder));
    assert!(is_there, "{said}");
    folder.join("quadlet")
}

/// What the generator says of a folder's quadlets beside the units, and whether it succeeds.
fn complaints(generator: &Path, quadlets: &Path, manager: &[&str]) -> (bool, String) {
    let mut dry = Command::new(generator);
    let output = dry.args(manager).arg("--dryrun").env("QUADLET_UNIT_DIRS", quadlets).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let said = said.lines().filter(|line| !line.contains("Loading source unit file")).collect::<Vec<_>>().join("\n");
    (output.status.success(), said)
}

#[test]
#[ignore = "needs a Debian mirror: make test-podman"]
fn podmans_generator_and_systemd_understand_every_line() {
    let _turn = light();
    let (root, generator) = (Root::installed(), generator());
    let quadlets = root.path("usr/share/haproxy-discover/quadlet");
    for manager in [&[][..], &["--user"]] {
        assert_eq!(complaints(&generator, &quadlets, manager), (true, String::new()), "{manager:?}");
    }

    root.furnish();
    let units = root.path("usr/lib/systemd/system");
    let mut generate = Command::new(&generator);
    assert_eq!(run(generate.arg(&units).env("QUADLET_UNIT_DIRS", &quadlets)), (true, String::new()));
    for name in ["etcd-defrag.service", "etcd-defrag.timer"] {
        copy(quadlets.join(name), units.join(name)).unwrap();
    }
    // The host's own.
    write(units.join("podman.socket"), "[Socket]\nListenStream=%t/podman/podman.sock\n");
    write(units.join("podman.service"), "[Service]\nExecStart=/usr/bin/podman system service\n");
    let names = ["announcer-containers", "balancer", "etcd", "etcd-defrag", "etcd-volume", "shop", "shop-network"];
    let names = names.map(|name| format!("{name}.service"));
    let verify = || root.analyze("verify", &["--man=no", "--generators=no"], &names);
    assert_eq!(verify(), (true, String::new()));

    // Both can fail.
    let wrong = Scratch::new();
    let etcd = read_to_string(quadlets.join("etcd.container")).unwrap();
    write(wrong.join("etcd.container"), etcd.replace("Network=host\n", "Network=host\nNetwork2=host\n"));
    copy(quadlets.join("etcd.volume"), wrong.join("etcd.volume")).unwrap();
    let (_, said) = complaints(&generator, &wrong, &[]);
    assert!(said.contains("unsupported key 'Network2' in group 'Container'"), "{said}");
    let service = read_to_string(units.join("etcd.service")).unwrap();
    write(units.join("etcd.service"), service.replace("Restart=always", "Restart=sometimes"));
    let (_, said) = verify();
    assert!(said.contains("sometimes"), "{said}");
}

/// The Ignition file of a host with these roles, each with its file of `make ignition`, as Butane merges them.
fn ignition(folder: &Path, roles: &[&str]) -> PathBuf {
    let built = bin("confgen").parent().unwrap().display().to_string();
    let merged: Vec<_> = roles
        .iter()
        .map(|role| {
            let mut sh = Command::new("sh");
            let make = "make --silent -C \"$1\" ignition BUILT=\"$2\" ROLE=\"$3\" NAME=node1 ETC=\"$4\" | base64 -w 0";
            sh.args(["-ec", make, "make", SOURCE, &built, role]).arg(folder.join("etc")).env_remove("MAKEFLAGS");
            let output = sh.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            json!({ "source": format!("data:;base64,{}", String::from_utf8(output.stdout).unwrap()) })
        })
        .collect();
    let file = folder.join("host.ign");
    write(&file, json!({ "ignition": { "version": "3.0.0", "config": { "merge": merged } } }).to_string());
    file
}

/// The status of the app's page, asked on the host.
fn status(host: &Machine) -> String {
    host.sh(&format!(
        "curl -s --max-time 5 -o /dev/null -w '%{{http_code}}' -H 'Host: {HOST}' http://127.0.0.1/ || true"
    ))
}

#[track_caller]
fn is_served(host: &Machine, when: &str) {
    until(PATIENCE, &format!("the app to be served {when}"), || match status(host).as_str() {
        "200" => Ok(()),
        other => Err(format!("{other}\n{}", host.sh("podman ps --all; systemctl list-jobs"))),
    });
}

/// The units that have to be active, and nothing that failed.
#[track_caller]
fn is_up(host: &Machine) {
    until(PATIENCE, "every unit to be up", || {
        let up = host.run("systemctl is-system-running && systemctl is-active etcd balancer etcd-defrag.timer");
        if up.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&up.stdout).into_owned()) }
    });
}

#[test]
#[ignore = "needs Docker: make test-podman"]
fn a_host_that_ignition_set_up_serves_from_containers() {
    let _turn = medium();
    let (images, network, folder) = (Images::build(), Network::new(), Scratch::new());
    std::fs::create_dir_all(folder.join("etc/haproxy-discover")).unwrap();
    write(folder.join("etc/haproxy-discover/etcd.env"), "ETCDCTL_ENDPOINTS=http://127.0.0.1:2379\n");
    let host = Machine::first_boot(&network, "node1", &ignition(&folder, &["store", "balancer"]));
    for image in ["etcd", "balancer", "announcer", "app"] {
        host.load_image(&images, image);
    }
    is_up(&host);
    assert_eq!(host.sh("podman exec etcd etcdctl member list | cut -d , -f 3").trim(), "node1");
    host.sh("systemctl start etcd-defrag");

    // As the announcers of a host do without a way to another one.
    host.put("/etc/environment", &format!("COREOS_PRIVATE_IPV4={}\n", host.address()));
    host.make_install();
    host.sh(&Page::read("docs/deploy.md").below("A container as the app")[0]);
    is_served(&host, "at first");

    // No process but podman's own is root's, and the ports below 1024 are bound.
    let users = "podman top balancer user | sort --unique | grep -v USER";
    assert_eq!(host.sh(users), "haproxy");
    // The volume remembers.
    host.sh("systemctl stop etcd && systemctl restart --no-block balancer");
    is_served(&host, "while etcd is away");
    host.sh("systemctl start etcd");
    is_up(&host);

    host.power_off();
    host.power_on();
    is_up(&host);
    is_served(&host, "after a power cut");
    runs_rootless(&host);
}

/// The sample app and its agent as a user's, in place of root's.
fn runs_rootless(host: &Machine) {
    host.sh("systemctl stop shop announcer-containers");
    let log = host.journal("shop");
    assert!(log.contains("every balancer has acknowledged the drain"), "{log}");
    assert_eq!(status(host), "503");
    host.sh(r"cd /etc/containers/systemd && rm shop.* announcer-containers.* && systemctl daemon-reload
        useradd --create-home app && loginctl enable-linger app
        until systemctl is-active --quiet user@$(id -u app); do sleep 0.2; done
        cd /home/app && install -d -o app .config .config/containers .config/containers/systemd .config/haproxy-discover
        install -m 644 /src/units/quadlet/shop.* /src/units/quadlet/announcer-containers.* .config/containers/systemd
        install -m 644 /etc/haproxy-discover/etcd.env .config/haproxy-discover
        echo ANNOUNCER_HOST_NAME=node1-app >.config/haproxy-discover/containers.env");
    let user = |command: &str| {
        let bus = "XDG_RUNTIME_DIR=/run/user/$(id -u app)";
        host.sh(&format!("cd /home/app && runuser -u app -- env HOME=/home/app {bus} {command}"))
    };
    for image in ["app", "announcer"] {
        let file = format!("/tmp/{image}.tar");
        host.sh(&format!(
            "podman save --quiet --output {file} localhost/haproxy-discover-{image}:latest && chmod 644 {file}"
        ));
        user(&format!("podman load --quiet --input {file}"));
    }
    user("systemctl --user enable --now podman.socket");
    user("systemctl --user daemon-reload");
    user("systemctl --user start announcer-containers shop");
    is_served(host, "from a user's container");
    assert_eq!(user("podman ps --format '{{.Names}}' | sort"), "announcer-containers\nshop");
    let records = "podman exec etcd etcdctl get --prefix --keys-only /haproxy-discover/http-services/";
    assert!(host.sh(records).contains(&format!("{HOST}/upstreams/node1-app-shop")));
}
