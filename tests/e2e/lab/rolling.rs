//! All three hosts reboot, one after the other, by the loop of docs/discoverctl.md. Each is a member of the store and has apps, and
//! two are balancers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::load::{Kind, Plan, Report, Running};
use lab::{Hosts, Machine, Scratch, heavy, until, write};

use crate::rolling_reboot::RollingReboot;

/// Requests a second at each balancer, a quarter of them for each service and kind of connection.
const RATE: u32 = 500;

/// The service with two copies on three hosts.
const COPIES: &str = "blog.localhost";

/// What its unit runs in the place of the sample.
const APP: &str = "[Service]
ExecStart=
ExecStart=/usr/bin/announcer -- /built/webapp --listen 0.0.0.0:${PORT} --name %H
";

const SETTINGS: &str = "PORT=8001
ANNOUNCER_DOMAIN=blog.localhost
ANNOUNCER_SERVICE=blog
ANNOUNCER_PORT=8001
ANNOUNCER_CHECK=http://127.0.0.1:8001/health
ANNOUNCER_WAIT_BALANCERS=1
ANNOUNCER_REPLICAS=2
";

/// A drain, a shutdown and a boot of everything, on two busy cores.
const TURN: Duration = Duration::from_secs(180);

/// Runs on a host what `ssh` is told to. A reboot is left to the test, which removes the file when the host is back.
const SSH: &str = r#"#!/bin/sh
folder=$(dirname "$0")
host=$1; shift
case "$*" in
    "systemctl reboot")
        touch "$folder/reboot-$host"
        while test -e "$folder/reboot-$host"; do /bin/sleep 0.1; done ;;
    *) exec docker exec "$(cat "$folder/container-$host")" "$@" ;;
esac
"#;

/// The clients of the balancers. They ask only a balancer that is in the list, as clients do that find one by a name or by an
/// address that moves.
struct Clients<'a> {
    hosts: &'a Hosts,
    loads: BTreeMap<String, Vec<Running>>,
    ended: Vec<(String, Report)>,
}

impl<'a> Clients<'a> {
    fn of(hosts: &'a Hosts) -> Self {
        let mut clients = Self { hosts, loads: BTreeMap::new(), ended: Vec::new() };
        hosts.balancers().iter().for_each(|balancer| clients.give(balancer));
        clients
    }

    /// Puts a balancer on the list, and waits until it answers.
    fn give(&mut self, balancer: &Machine) {
        let kinds = [Kind::PerRequest, Kind::KeepAlive];
        let plans = kinds.into_iter().flat_map(|kind| [(kind, Hosts::DOMAIN), (kind, COPIES)]);
        let start = |(kind, domain)| Plan::new(kind, self.hosts.web(balancer), domain).rate(RATE / 4).start();
        let loads: Vec<Running> = plans.map(start).collect();
        until(TURN, "the loads", || loads.iter().all(|it| it.report().good > u64::from(RATE / 4)));
        self.loads.insert(balancer.name().to_owned(), loads);
    }

    /// Takes a balancer off the list, and waits for its last answers. Nothing for a host that is none.
    fn take_away(&mut self, host: &str) -> bool {
        let loads = self.loads.remove(host).unwrap_or_default();
        let is_balancer = !loads.is_empty();
        self.ended.extend(loads.into_iter().map(|load| (host.to_owned(), load.stop())));
        is_balancer
    }
}

/// The hosts whose copies hold a slot.
fn slots(hosts: &Hosts, by: &Machine) -> Vec<String> {
    let get = "get --prefix --print-value-only /haproxy-discover/http-services/blog/slots/";
    let values = until(TURN, "the slots", || hosts.etcdctl(by, get));
    let mut names: Vec<String> = (1..=3).map(|number| format!("host{number}")).collect();
    names.retain(|name| values.contains(&format!(r#""host":"{name}""#)));
    names
}

/// Two copies of another service on three hosts, beside the app of each.
fn start_copies(hosts: &Hosts) {
    for host in hosts.all() {
        host.put("/etc/systemd/system/announced@.service.d/command.conf", APP);
        host.put("/etc/haproxy-discover/app-blog.env", SETTINGS);
        host.sh("systemctl daemon-reload && systemctl enable --now announced@blog");
    }
    for balancer in hosts.balancers() {
        until(TURN, "the copies at both balancers", || {
            Request::get(COPIES, "/").send(hosts.web(balancer)).is_ok_and(|answer| answer.status == 200)
        });
    }
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn three_hosts_reboot_one_by_one_and_no_request_is_lost() {
    let _turn = heavy();
    let hosts = Hosts::up();
    start_copies(&hosts);
    let mut reboots = RollingReboot::new("host", SSH);
    let token = Scratch::new();
    write(token.join("token"), hosts.all()[0].sh("cat /etc/haproxy-discover/admin.token"));
    hosts.all().iter().for_each(|host| write(reboots.file("container", host.name()), host.container().name()));
    let mut clients = Clients::of(&hosts);
    let token = token.join("token").display().to_string();
    let (begun, mut moved) = (Instant::now(), 0);
    reboots.start(&[("ETCDCTL_ENDPOINTS", &hosts.endpoints()), ("DISCOVERCTL_API_TOKEN_FILE", &token)]);
    for host in hosts.all() {
        reboots.wait_asked(TURN, host.name());
        let before = slots(&hosts, host);
        let is_balancer = clients.take_away(host.name());
        let rebooted = Instant::now();
        host.reboot();
        let back = rebooted.elapsed();
        let after = slots(&hosts, host);
        println!("{} is back after {back:.1?}; copies before at {before:?}, after at {after:?}", host.name());
        assert_eq!(after.len(), 2, "two copies run");
        assert!(
            !after.contains(&host.name().to_owned()),
            "another host has its slot, and nothing moves back: {after:?}"
        );
        moved += usize::from(before != after);
        if is_balancer {
            clients.give(host);
        }
        std::fs::remove_file(reboots.file("reboot", host.name())).expect("the loop goes on");
    }
    reboots.wait_end(TURN);
    println!("{}three hosts are back after {:.0?}", reboots.log(), begun.elapsed());
    hosts.balancers().iter().for_each(|it| _ = clients.take_away(it.name()));
    assert!(moved >= 2, "{moved} slots have moved");
    let left =
        hosts.etcdctl(&hosts.all()[0], "get --prefix --keys-only /haproxy-discover/http-services/shop/overrides/");
    assert_eq!(left.as_deref(), Some(""), "`ready` takes all back");
    assert_exact(&clients.ended);
}

/// Each request that was sent has got its own answer.
#[track_caller]
fn assert_exact(reports: &[(String, Report)]) {
    let mut sent = BTreeMap::new();
    for (balancer, report) in reports {
        println!("{balancer}: {report}");
        *sent.entry(balancer).or_insert(0) += report.sent;
    }
    println!("sent at each: {sent:?}");
    for (balancer, report) in reports {
        report.assert_nothing_lost();
        assert_eq!(report.good, report.sent, "{balancer}");
        // On a busy machine half of the requests are sent in time, which shows an outage of some milliseconds all the same.
        report.assert_pace(RATE / 8);
    }
}
