//! What systemd hears.

use std::{os::unix::net::UnixDatagram, time::Duration};

use lab::{Process, Signal, until};

use crate::site::{KEY, SOON, Site};

/// What has been heard so far, in order.
struct Heard {
    socket: UnixDatagram,
    words: Vec<String>,
}

impl Heard {
    fn at(site: &Site) -> Self {
        let socket = UnixDatagram::bind(site.folder.join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, words: Vec::new() }
    }

    fn all(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            self.words.extend(text.lines().map(str::to_owned));
        }
        &self.words
    }

    #[track_caller]
    fn until(&mut self, start: &str) {
        until(SOON, start, || match self.all() {
            words if words.iter().any(|word| word.starts_with(start)) => Ok(()),
            words => Err(format!("{words:?}")),
        });
    }

    fn count(&mut self, start: &str) -> usize {
        self.all().iter().filter(|word| word.starts_with(start)).count()
    }

    fn position(&self, start: &str) -> usize {
        self.words.iter().position(|word| word.starts_with(start)).expect(start)
    }
}

#[test]
fn ready_is_when_the_record_stands() {
    let site = Site::new();
    let mut heard = Heard::at(&site);
    let mut command = site.command(&["--drain", "300ms"]);
    command.env("NOTIFY_SOCKET", site.folder.join("notify")).env("WATCHDOG_USEC", "400000");
    let mut announcer = Process::start(&site.folder, "announcer", &mut command);
    heard.until("READY=1");
    site.until_registered();
    heard.until("WATCHDOG=1");
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(0));
    heard.until("STATUS=withdrawn");
    let order = [
        "STATUS=waiting for the app",
        "READY=1",
        "STATUS=announced as http-services/shop/upstreams/a",
        "STOPPING=1",
        // 5 s to write the drain, its wait, 5 s to withdraw, 1 s for good measure.
        "EXTEND_TIMEOUT_USEC=11300000",
        "STATUS=draining http-services/shop/upstreams/a",
        "STATUS=withdrawn",
    ];
    let positions = order.map(|word| heard.position(word));
    assert!(positions.is_sorted(), "{:?}", heard.words);
}

#[test]
fn ready_can_wait_for_the_balancers() {
    let site = Site::new();
    let mut heard = Heard::at(&site);
    let mut command = site.command(&["--wait-balancers"]);
    command.env("NOTIFY_SOCKET", site.folder.join("notify")).env("WATCHDOG_USEC", "200000");
    let mut announcer = Process::start(&site.folder, "announcer", &mut command);
    site.until_registered();
    heard.until("STATUS=waiting for balancers to follow");
    // Without a balancer no requests come, and the announcer asks systemd for more time.
    heard.until("EXTEND_TIMEOUT_USEC=60000000");
    let slow = site.balancer("slow", &site.applied(site.written_at(KEY), r#","pending":["http-shop"]"#));
    let late = site.applied(site.written_at(KEY) - 1, "");
    site.balancer("late", &late);
    site.balancer("fine", &site.applied(site.written_at(KEY), ""));
    let watchdogs = heard.count("WATCHDOG=1");
    until(SOON, "three beats", || heard.count("WATCHDOG=1") > watchdogs + 3);
    assert_eq!(heard.count("READY=1"), 0);
    site.etcd.revoke(slow);
    site.etcd.put("balancers/late", site.applied(site.written_at(KEY), ""));
    heard.until("READY=1");
    assert!(announcer.running());
}

#[test]
fn a_balancer_that_refuses_the_record_is_waited_for_and_named() {
    let site = Site::new();
    let mut heard = Heard::at(&site);
    let mut command = site.command(&["--wait-balancers", "--domain", "a.com"]);
    command.env("NOTIFY_SOCKET", site.folder.join("notify"));
    let mut announcer = Process::start(&site.folder, "announcer", &mut command);
    site.until_registered();
    let revision = site.written_at(KEY);
    let refuses = |key: &str, at: i64| site.applied(at, &format!(r#","quarantined":{{"{key}":"not one of ours"}}"#));
    // One that runs everything, first, would be every balancer there is.
    let strict = site.balancer("strict", &refuses(KEY, revision));
    site.balancer("fine", &site.applied(revision, ""));
    heard.until(
        "STATUS=waiting for balancers to follow: strict refuses http-services/shop/upstreams/a: not one of ours",
    );
    // What it says besides is no news. A refused setting is, and no obstacle: its last good value may serve.
    for at in 1..=3 {
        site.etcd.put_leased("balancers/strict", refuses(KEY, revision + at), strict);
    }
    site.etcd.put_leased("balancers/strict", refuses("http-services/shop/domain", revision + 3), strict);
    heard.until("READY=1");
    assert_eq!(heard.count("STATUS=waiting for balancers to follow: "), 1);
    let log = announcer.log();
    for (words, key) in [("refuses the record", KEY), ("quarantines this key", "http-services/shop/domain")] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(words)).collect();
        let said = |line: &str| ["strict", key, "not one of ours"].iter().all(|word| line.contains(word));
        assert!(lines.len() == 1 && said(lines[0]), "{words}: {log}");
    }
    assert!(announcer.running());
}

#[test]
fn a_start_that_waits_for_etcd_is_no_failed_start() {
    let mut site = Site::new();
    let mut heard = Heard::at(&site);
    let mut command = site.command(&[]);
    command.env("NOTIFY_SOCKET", site.folder.join("notify")).env("WATCHDOG_USEC", "200000");
    site.etcd.kill(0);
    let mut announcer = Process::start(&site.folder, "announcer", &mut command);
    heard.until("EXTEND_TIMEOUT_USEC=60000000");
    assert!(!heard.all().iter().any(|word| word == "READY=1"));
    site.etcd.restart(0);
    heard.until("READY=1");
    std::thread::sleep(Duration::from_millis(100));
    assert!(announcer.running());
}
