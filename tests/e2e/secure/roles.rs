//! Who may do what.

use std::fs::copy;
use std::process::Command;

use lab::{PATIENCE, Process, light, until};

use super::site::{BEFORE_ETCD, Site, WITH_ETCD, said};
use super::{FIRST, page};

/// Where each line has to be denied.
const REFUSED: &str = "What is refused";

const LEAKED: &str = "A key that got out";

#[test]
fn every_block_of_the_page_is_run() {
    let run = [&BEFORE_ETCD[..], &WITH_ETCD, &super::renew::HEADINGS, &[FIRST, "People", REFUSED, LEAKED]];
    let mut run = run.concat();
    run.sort_unstable();
    let page = page();
    let mut headings = page.headings();
    headings.sort_unstable();
    assert_eq!(headings, run);
    assert_eq!(page.below(REFUSED).len(), 2, "what is refused, and what needs no role");
}

#[test]
fn each_user_writes_its_own_keys_only() {
    let _turn = light();
    let mut site = Site::serving();
    operate(&site);
    let services = || site.assert_done("login root get --prefix /haproxy-discover/http-services/");
    let before = services();
    let blocks = page().below(REFUSED);
    for line in blocks[0].lines().filter(|line| !line.is_empty()) {
        assert_denied(&site, line);
    }
    assert_eq!(services(), before);
    site.assert_done(&blocks[1]);
    strangers_are_kept_out(&site);

    // Nobody has met a refusal in the course of its own work.
    let balancer = site.balancer.as_ref().unwrap();
    let logs = site.announcers.iter().map(Process::log).chain([balancer.log("confgen")]);
    logs.for_each(|log| assert!(!log.contains("forbid") && !log.contains("denied"), "{log}"));

    // As etcd-defrag@node1 does.
    let mut defrag = Command::new("etcdctl");
    let done = defrag.arg("defrag").env("ETCDCTL_API", "3").envs(site.variables(&["etcd-node1.env"])).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));

    site.withdraw();
    a_key_gets_out(&mut site);
}

/// The announcer gets another user, and the old one's certificate is worth nothing.
fn a_key_gets_out(site: &mut Site) {
    for end in ["pem", "key"] {
        let file = |name: &str| site.authority().join(name).with_extension(end);
        copy(file("announcer-shop"), file("leaked")).unwrap();
    }
    let blocks = page().below(LEAKED);
    site.assert_done(&blocks[0]);
    let shop = site.apps.remove(0);
    site.announce(&shop, &["--domain", "shop.test"]);
    site.balancer.as_ref().unwrap().wait_status(PATIENCE, "shop.test", "/", 200);
    site.assert_done("as leaked get --prefix /haproxy-discover/http-services/");
    site.assert_done(&blocks[1]);
    assert_denied(site, "as leaked get --prefix /haproxy-discover/http-services/");
    assert_denied(site, "as leaked put /haproxy-discover/http-services/shop/upstreams/node-1 10.0.0.9:80");
    site.withdraw();
}

/// What people do with discoverctl: the operator changes things, the viewer looks.
fn operate(site: &Site) {
    let balancer = site.balancer.as_ref().unwrap();
    site.follow("People");
    let ctl = |user: &str, command: &str| {
        let password = site.authority().join(format!("{user}.password"));
        site.run(&format!("ETCDCTL_USER={user} ETCDCTL_PASSWORD_FILE={} discoverctl {command}", password.display()))
    };
    let done = |user: &str, command: &str| {
        let output = ctl(user, command);
        assert!(output.status.success(), "{user}: {command}: {}", said(&output));
    };
    done("operator", "maint shop/node-1");
    balancer.wait_status(PATIENCE, "shop.test", "/", 503);
    done("operator", "ready shop/node-1");
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    done("viewer", "explain shop/node-1");
    done("viewer", "show blog");
    let refused = ctl("viewer", "drain shop/node-1");
    assert!(refused.status.code() == Some(4) && said(&refused).contains("forbid user viewer"), "{}", said(&refused));
}

#[track_caller]
fn assert_denied(site: &Site, line: &str) {
    let output = site.run(line);
    let said = said(&output);
    assert!(!output.status.success() && said.contains("etcdserver: permission denied"), "{line}: {said}");
}

/// At the clients' port one needs a certificate of the authority, at the members' port that of a member.
fn strangers_are_kept_out(site: &Site) {
    let [clients, members] = site.urls();
    let certificate = |file: &str| format!(r#"--cert "$CA/{file}.pem" --key "$CA/{file}.key""#);
    site.assert_done(
        r#"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=root \
            -keyout "$CA/stranger.key" -out "$CA/stranger.pem""#,
    );
    for (url, who, let_in) in [
        (&clients, certificate("host"), true),
        (&clients, certificate("stranger"), false),
        (&clients, String::new(), false),
        (&members, certificate("node1"), true),
        (&members, certificate("announcer-shop"), false),
        (&members, certificate("host"), false),
    ] {
        let before = site.rejected();
        let asked = site.run(&format!(r#"curl -sS --http1.1 --max-time 20 --cacert "$CA/ca.pem" {who} {url}/version"#));
        assert_eq!(asked.status.success(), let_in, "{url} {who}: {}", said(&asked));
        if !let_in {
            until(PATIENCE, "etcd to say so", || site.rejected() > before);
        }
    }
}
