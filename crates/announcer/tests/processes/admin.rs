//! The admin port.

use std::{net::TcpListener, process::Command};

use lab::{Process, free_port, http::Request, until};

use crate::site::{KEY, SOON, Site};

/// An announcer with an admin port.
pub(crate) struct Shown {
    pub(crate) announcer: Process,
    port: u16,
}

impl Shown {
    /// Of the site's own address.
    pub(crate) fn start(site: &Site, flags: &[&str]) -> Self {
        Self::run(site, site.command(flags))
    }

    pub(crate) fn run(site: &Site, mut command: Command) -> Self {
        let port = free_port();
        command.env("ANNOUNCER_ADMIN", format!("127.0.0.1:{port}"));
        Self { announcer: Process::start(&site.folder, "announcer", &mut command), port }
    }

    /// The status and the body of the first answer.
    #[track_caller]
    pub(crate) fn ask(&self, target: &str) -> (u16, String) {
        let address = ([127, 0, 0, 1], self.port).into();
        let response = until(SOON, target, || Request::get("localhost", target).send(address));
        (response.status, response.body)
    }

    #[track_caller]
    pub(crate) fn until_ready(&self, status: u16, words: &str) {
        until(SOON, &format!("/ready {status}, {words}"), || match self.ask("/ready") {
            (it, body) if it == status && body.contains(words) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The value of a metric, with its labels.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.ask("/metrics");
        assert_eq!(status, 200, "{text}");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect(&text).parse().unwrap()
    }

    #[track_caller]
    pub(crate) fn until_metric(&self, name: &str, value: f64) {
        until(SOON, &format!("{name} {value}"), || match self.metric(name) {
            it if it == value => Ok(()),
            it => Err(it.to_string()),
        });
    }
}

pub(crate) const OF_A: &str = r#"{service="http-shop",upstream="a"}"#;

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn it_says_when_it_started_where_proc_has_processes_alone() {
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let (site, begun) = (Site::new(), now());
    let announcer = site.command(&[]);
    let mut hidden = Command::new("unshare");
    // systemd mounts /proc like this for ProcSubset=pid.
    hidden.args(["--mount", "sh", "-ec", "mount -t proc -o subset=pid proc /proc; exec \"$0\" \"$@\""]);
    hidden.arg(announcer.get_program()).args(announcer.get_args());
    let shown = Shown::run(&site, hidden);
    let started = shown.metric("process_start_time_seconds");
    // The kernel counts in hundredths of a second.
    assert!((begun - 0.1..now() + 0.1).contains(&started), "{started}, begun at {begun}");
    assert_eq!(shown.metric("process_start_time_seconds"), started);
}

#[test]
fn it_says_how_the_announcer_is() {
    let site = Site::new();
    let check =
        ["--check", "exec:test -e works", "--check-interval", "50ms", "--check-timeout", "10s", "--check-fall", "1"];
    let mut shown = Shown::start(&site, &check);
    shown.until_ready(503, "waiting for the app");
    assert_eq!(shown.ask("/live"), (200, "live\n".to_owned()));
    let of = |name: &str| format!("announcer_{name}{OF_A}");
    let says = |state: &str| format!(r#"announcer_upstream_state{{service="http-shop",upstream="a",state="{state}"}}"#);
    assert_eq!([of("upstream_healthy"), of("upstream_registered")].map(|name| shown.metric(&name)), [0.0; 2]);
    let checks =
        |result: &str| format!(r#"announcer_checks_total{{service="http-shop",upstream="a",result="{result}"}}"#);
    until(SOON, "a check that failed", || shown.metric(&checks("failed")) > 0.0);

    lab::write(site.folder.join("works"), "");
    shown.until_ready(200, &format!("announced as {KEY}"));
    let ones = [of("upstream_healthy"), of("upstream_registered"), of("registrations_total"), says("ready")];
    assert_eq!(ones.map(|name| shown.metric(&name)), [1.0; 4]);
    let ones = ["announcer_ready", "announcer_store_connected", r#"announcer_state{state="announced"}"#];
    assert_eq!(ones.map(|name| shown.metric(name)), [1.0; 3]);
    assert_eq!(shown.metric("announcer_lease_ttl_seconds"), 10.0);
    assert!(shown.metric(&checks("ok")) > 0.0 && shown.metric("process_resident_memory_bytes") > 1e6);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let renewed = shown.metric("announcer_lease_last_renewal_timestamp_seconds");
    assert!((now - 30.0..=now + 1.0).contains(&renewed), "{renewed} at {now}");

    std::fs::remove_file(site.folder.join("works")).unwrap();
    shown.until_ready(503, "no longer works");
    shown.until_metric(&says("down"), 1.0);
    assert_eq!((shown.metric(&says("ready")), shown.metric("announcer_ready")), (0.0, 0.0));
    lab::write(site.folder.join("works"), "");
    shown.until_ready(200, "announced");

    site.etcd.revoke(site.etcd.lease_of(KEY).unwrap());
    shown.until_metric(&of("registrations_total"), 2.0);
    shown.until_ready(200, "announced");

    let lease = site.balancer("lb", &site.applied(0, ""));
    shown.announcer.signal(lab::Signal::SIGTERM);
    shown.until_ready(503, "draining");
    shown.until_metric(&says("drain"), 1.0);
    assert_eq!(shown.metric(r#"announcer_state{state="draining"}"#), 1.0);
    assert_eq!(shown.ask("/live").0, 200);
    site.etcd.revoke(lease);
    assert_eq!(shown.announcer.wait(SOON * 2).code(), Some(0));
}

#[test]
fn a_lease_that_may_have_ended_is_not_ready_and_the_loop_still_live() {
    let mut site = Site::new();
    let shown = Shown::start(&site, &["--ttl", "3s"]);
    shown.until_ready(200, "announced");
    site.etcd.kill(0);
    shown.until_metric("announcer_store_connected", 0.0);
    assert!(shown.metric(r#"announcer_lease_renewals_total{result="failed"}"#) > 0.0);
    shown.until_ready(503, "longer than its time");
    assert_eq!(shown.ask("/live").0, 200);
    site.etcd.restart(0);
    shown.until_ready(200, "announced");
    assert_eq!(shown.metric("announcer_store_connected"), 1.0);
}

#[test]
fn balancers_that_are_waited_for_are_part_of_it() {
    let site = Site::new();
    let shown = Shown::start(&site, &["--wait-balancers"]);
    shown.until_ready(503, "waiting for balancers");
    let refuses = format!(r#","quarantined":{{"{KEY}":"not one of ours"}}"#);
    site.balancer("lb", &site.applied(site.written_at(KEY), &refuses));
    shown.until_ready(503, "lb refuses http-services/shop/upstreams/a: not one of ours");
    site.etcd.put("balancers/lb", site.applied(site.written_at(KEY), ""));
    shown.until_ready(200, "announced");
}

#[test]
fn a_balancer_that_refuses_the_record_is_named_though_nobody_waits_for_it() {
    let site = Site::new();
    let shown = Shown::start(&site, &["--drain", "0s"]);
    shown.until_ready(200, "announced");
    let refuses = format!(r#","quarantined":{{"{KEY}":"a loopback address"}}"#);
    site.balancer("fine", &site.applied(site.written_at(KEY), ""));
    site.balancer("lb", &site.applied(site.written_at(KEY), &refuses));
    shown.until_ready(503, "lb refuses http-services/shop/upstreams/a: a loopback address");
    shown.until_metric(&format!("announcer_upstream_refused{OF_A}"), 1.0);
    assert_eq!(shown.metric("announcer_ready"), 0.0);
    let log = shown.announcer.log();
    let said = log.lines().filter(|line| line.contains("refuses the record") && line.contains("a loopback address"));
    assert_eq!(said.count(), 1, "{log}");
    site.etcd.put("balancers/lb", site.applied(site.written_at(KEY), ""));
    shown.until_ready(200, "announced");
    assert_eq!(shown.metric(&format!("announcer_upstream_refused{OF_A}")), 0.0);
}

#[test]
fn an_address_that_is_taken_is_said_before_the_app_is_started() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = site.command(&["--admin", &address]);
    let (code, said) = site.run(command.args(["--", "sh", "-c", "echo > started"]));
    assert!(code == 2 && said.contains(&format!("can't listen on {address}")), "{code}: {said}");
    assert!(!site.folder.join("started").exists());
}

#[test]
fn nobody_listens_unless_asked_to() {
    let site = Site::new();
    let mut announcer = site.beside("announcer", &[]);
    site.until_registered();
    // State 0A of /proc/net/tcp is LISTEN; a socket is named by its inode (proc(5)).
    let tables = ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines()).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let listening = rows.filter(|row| row.get(3) == Some(&"0A")).map(|row| format!("socket:[{}]", row[9]));
    let listening: Vec<String> = listening.collect();
    assert!(!listening.is_empty(), "etcd's and this test's own");
    let files = std::fs::read_dir(format!("/proc/{}/fd", announcer.pid())).unwrap().flatten();
    let files: Vec<_> = files.filter_map(|file| std::fs::read_link(file.path()).ok()).collect();
    let theirs = files.iter().filter(|file| listening.iter().any(|socket| file.as_os_str() == socket.as_str()));
    assert_eq!(theirs.count(), 0, "{files:?}");
    // Nothing has woken a thread up either, but for the one that writes the log.
    assert_eq!(std::fs::read_dir(format!("/proc/{}/task", announcer.pid())).unwrap().count(), 2);
    assert!(announcer.running());
}
