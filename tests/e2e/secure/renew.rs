//! Certificates, the authority and a password are replaced under programs that run.

use std::fs;

use lab::load::{Kind, Plan, Running};
use lab::medium;
use serde_json::Value;

use super::page;
use super::site::Site;

/// What is run here, in this order, the certificates' once more within the authority's.
pub(super) const HEADINGS: [&str; 5] =
    ["Renew", "A program's certificate", "etcd's certificate", "A password", "The authority"];

/// Requests a second to each of the two services.
const RATE: u32 = 100;

#[test]
fn nothing_goes_while_all_is_renewed() {
    let _turn = medium();
    let mut site = Site::serving();
    let balancer = site.balancer.as_ref().unwrap();
    let hosts = ["shop.test", "blog.test"];
    let loads = hosts.map(|host| Plan::new(Kind::KeepAlive, balancer.http(), host).rate(RATE).workers(4).start());
    let before = created(&site);
    let [due, program, server, password, authority] = HEADINGS;

    assert_eq!(site.assert_done(&page().below(due).concat()).matches("renew it").count(), 0);
    site.follow(program);
    come_back(&mut site, "leastconn");

    let old = shown(&site);
    site.follow(server);
    let new = shown(&site);
    assert!(old != new && new == site.assert_done(r#"openssl x509 -in "$CA/node1.pem" -noout -serial"#), "{old} {new}");
    come_back(&mut site, "source");

    site.follow(password);
    come_back(&mut site, "roundrobin");

    let kept = site.authority().join("before");
    for end in ["pem", "key"] {
        fs::copy(site.authority().join(format!("host.{end}")), kept.with_extension(end)).unwrap();
    }
    let steps = page().below(authority);
    site.assert_done(&steps[0]);
    come_back(&mut site, "leastconn");
    site.follow(program);
    site.follow(server);
    site.assert_done("as before member list");
    site.assert_done(&steps[1]);
    come_back(&mut site, "source");
    assert!(!site.run("as before member list").status.success(), "the old authority's certificates are nothing now");
    assert_eq!(steps.len(), 2);

    assert_eq!(created(&site), before, "the upstreams were never gone");
    for report in loads.map(Running::stop) {
        println!("{report}");
        report.assert_nothing_lost();
        report.assert_pace(RATE);
    }
    site.withdraw();
}

/// Restarts etcd, so that all connect anew, and has the balancer follow a change.
fn come_back(site: &mut Site, balance: &str) {
    site.restart_etcd();
    site.assert_done(&format!(
        r#"export ETCDCTL_USER=operator ETCDCTL_PASSWORD_FILE="$CA/operator.password"
        discoverctl set shop balance {balance} | grep "followed by""#
    ));
}

/// The revisions at which the upstreams' keys came: another one where it was gone meanwhile.
fn created(site: &Site) -> [i64; 2] {
    ["shop", "blog"].map(|service| {
        let key = format!("/haproxy-discover/http-services/{service}/upstreams/node-1");
        let said: Value = serde_json::from_str(&site.assert_done(&format!("login viewer get {key} -w json"))).unwrap();
        said["kvs"][0]["create_revision"].as_i64().expect("the upstream's key")
    })
}

/// The serial number of the certificate that etcd shows.
fn shown(site: &Site) -> String {
    let check = page().below("etcd's certificate").pop().unwrap();
    let said = site.assert_done(&check);
    said.lines().next().map(|line| format!("{line}\n")).unwrap()
}
