//! The cluster in `vagrant/`: brought up by one command, with containers as its machines, and asked over its balancer. Of the
//! other providers the settings are read, and nothing runs.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lab::http::Request;
use lab::{PATIENCE, SOURCE, Scratch, bin, heavy, light, until};

/// For hosts and containers.
const DEADLINE: Duration = PATIENCE.saturating_mul(2);

/// What Vagrant keeps, apart from anybody's own. Dropping it removes its machines.
struct Vagrant {
    folder: Scratch,
    tls: bool,
}

impl Vagrant {
    fn new(tls: bool) -> Self {
        Self { folder: Scratch::new(), tls }
    }

    fn run(&self, machines: u8, arguments: &[&str]) -> Output {
        let mut vagrant = Command::new("vagrant");
        vagrant.current_dir(Path::new(SOURCE).join("vagrant")).args(arguments);
        for (name, folder) in
            [("VAGRANT_DOTFILE_PATH", "dot"), ("VAGRANT_HOME", "home"), ("ROOT", "root"), ("AUTHORITY", "authority")]
        {
            vagrant.env(name, self.folder.join(folder));
        }
        // A machine that isn't there is another provider's.
        vagrant.env("VAGRANT_DEFAULT_PROVIDER", "docker");
        vagrant.env("MACHINES", machines.to_string()).env("TLS", u8::from(self.tls).to_string());
        vagrant.output().expect("vagrant")
    }

    #[track_caller]
    fn assert_done(&self, machines: u8, arguments: &[&str]) -> String {
        let output = self.run(machines, arguments);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "vagrant {arguments:?}\n{said}");
        said
    }

    /// `make install DESTDIR=…`, without what only a debugger reads.
    fn lay_out(&self) {
        let root = self.folder.join("root");
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, "install", &format!("DESTDIR={}", root.display())]);
        make.arg(format!("BUILT={}", bin("confgen").parent().unwrap().display())).env_remove("MAKEFLAGS");
        assert!(make.status().unwrap().success(), "make install");
        let programs = ["announcer", "confgen", "handover", "discoverctl"];
        let strip = Command::new("strip").args(programs.map(|name| root.join("usr/bin").join(name))).status();
        assert!(strip.unwrap().success(), "strip");
    }

    /// Whether etcd answers at this URL, to curl with these options.
    fn lets_in(&self, url: &str, options: &[&str]) -> bool {
        let mut curl = Command::new("curl");
        curl.current_dir(self.folder.join("authority")).args(["-sS", "--http1.1", "--max-time", "20"]);
        let output = curl.args(["--cacert", "ca.pem"]).args(options).arg(format!("{url}/version")).output();
        output.unwrap().status.success()
    }
}

impl Drop for Vagrant {
    fn drop(&mut self) {
        let _ = self.run(3, &["destroy", "--force"]);
    }
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn one_command_brings_a_balancer_up_that_answers() {
    let _turn = heavy();
    let vagrant = Vagrant::new(false);
    vagrant.lay_out();
    vagrant.assert_done(1, &["up", "--provider=docker"]);
    ["192.168.56.11:80", "127.0.0.1:8081"].iter().for_each(|address| assert_serves(address));
    let state = "systemctl is-active etcd@node1 haproxy-supervisord confgen announced@hello-blue";
    let said = vagrant.assert_done(1, &["ssh", "node1", "--command", state]);
    assert_eq!(said.matches("active").count(), 4, "{said}");
    vagrant.assert_done(1, &["destroy", "--force"]);
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn three_machines_have_a_store_that_asks_for_certificates() {
    let _turn = heavy();
    let vagrant = Vagrant::new(true);
    vagrant.lay_out();
    vagrant.assert_done(3, &["up", "--provider=docker"]);
    ["192.168.56.11:80", "192.168.56.12:80"].iter().for_each(|address| assert_serves(address));
    for node in [11, 12, 13] {
        let [secure, plain] = ["https", "http"].map(|scheme| format!("{scheme}://192.168.56.{node}:2379"));
        let certificate = ["--cert", "host.pem", "--key", "host.key"];
        assert!(vagrant.lets_in(&secure, &certificate), "{secure}");
        assert!(!vagrant.lets_in(&secure, &[]), "{secure} without a certificate");
        assert!(!vagrant.lets_in(&plain, &certificate), "{plain}");
    }
    let state = "systemctl is-active etcd@node3 announced@hello-blue";
    let said = vagrant.assert_done(3, &["ssh", "node3", "--command", state]);
    assert_eq!(said.matches("active").count(), 2, "{said}");
    vagrant.assert_done(3, &["destroy", "--force"]);
}

/// A balancer has the app behind it.
#[track_caller]
fn assert_serves(address: &str) {
    let answer = until(DEADLINE, address, || Request::get("hello.localhost", "/").send(address.parse().unwrap()));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("README.md"), "{answer:?}");
}

#[test]
#[ignore = "needs Vagrant: make lab-test"]
fn the_settings_of_one_machine_and_of_three_are_read() {
    let _turn = light();
    let vagrant = Vagrant::new(false);
    for machines in [1, 3] {
        vagrant.assert_done(machines, &["validate", "--ignore-provider"]);
    }
    assert!(!vagrant.run(2, &["validate", "--ignore-provider"]).status.success(), "there is no cluster of two");
}
