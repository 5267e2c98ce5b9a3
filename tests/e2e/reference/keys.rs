//! `docs/keys.md`: what it types is followed by a balancer, which says of itself what is shown, and `lint` finds nothing.

use std::process::{Command, Output};

use lab::{Certificate, Etcd, PATIENCE, Page, Setup, bin, free_port, is_shown, light, until, write};

/// What `profile` names.
const SLOW: &str =
    "defaults slow\n    mode http\n    timeout client 1m\n    timeout connect 2s\n    timeout server 5m\n";

fn typed(etcd: &Etcd, script: &str) -> Output {
    let mut shell = Command::new("bash");
    shell.args(["-ec", script]).envs([("ETCDCTL_API", "3"), ("ETCDCTL_ENDPOINTS", &etcd.endpoints())]);
    shell.output().unwrap()
}

#[test]
fn what_the_page_writes_is_followed_and_not_linted() {
    let _turn = light();
    let etcd = Etcd::start();
    let setup = Setup::new().confgen(&etcd).flags(&["--node", "lb-1"]);
    write(setup.folder().join("conf.d/slow.cfg"), SLOW);
    let names = ["*.example.com", "*.shop.example.com", "*.www.example.com"];
    Certificate::of(&names).write(setup.folder().join("certs/example.pem"));
    let _balancer = setup.start();

    let page = Page::read("docs/keys.md");
    let (shows, writes): (Vec<_>, Vec<_>) =
        page.steps(&page.headings()).into_iter().partition(|step| step.shown.is_some());
    let script: String = writes.into_iter().map(|step| step.command).collect();
    let written = typed(&etcd, &script.replace("ports 3306", &format!("ports {}", free_port())));
    assert!(written.status.success(), "{written:?}");

    for step in shows {
        until(PATIENCE, &format!("{}to show what the page has", step.command), || {
            let said = String::from_utf8(typed(&etcd, &step.command).stdout).unwrap();
            if is_shown(step.shown.as_deref().unwrap(), &said) { Ok(()) } else { Err(said) }
        });
    }
    until(PATIENCE, "lint to find nothing", || {
        let lint = Command::new(bin("discoverctl")).args(["lint", "--endpoints", &etcd.endpoints()]).output().unwrap();
        if lint.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&lint.stdout).into_owned()) }
    });
}
