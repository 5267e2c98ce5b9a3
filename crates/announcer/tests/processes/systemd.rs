//! What systemd hears.

use std::{os::unix::net::UnixDatagram, time::Duration};

use lab::{Process, Signal, until};

use crate::site::{SOON, Site};

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

#[test]
fn systemd_understands_the_units() {
    let site = Site::new();
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../../units");
    let mut verify = std::process::Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no", "--generators=no"])
        .env("SYSTEMD_UNIT_PATH", format!("{}:", site.folder.display()));
    for template in ["app@", "announcer@", "announced@", "registered@", "etcd@"] {
        let text = std::fs::read_to_string(format!("{units}/{template}.service")).unwrap();
        // systemd wants every program to be there.
        let text = text.replace("/usr/bin/announcer", env!("CARGO_BIN_EXE_announcer"));
        lab::write(site.folder.join(format!("{template}.service")), text);
        verify.arg(site.folder.join(format!("{template}1.service")));
    }
    let (code, said) = site.run(&mut verify);
    let about_us: Vec<_> = said.lines().filter(|line| line.contains('@')).collect();
    assert_eq!((code, about_us), (0, Vec::new()), "{said}");
}
