//! The cluster in `vagrant/`: brought up by one command, with containers as its machines, and asked over its balancer. Of the
//! other providers the settings are read, and nothing runs.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lab::http::Request;
use lab::{SOURCE, Scratch, bin, heavy, light, until};

const DEADLINE: Duration = Duration::from_secs(60);

/// What Vagrant keeps, apart from anybody's own. Dropping it removes its machines.
struct Vagrant(Scratch);

impl Vagrant {
    fn run(&self, machines: u8, arguments: &[&str]) -> Output {
        let mut vagrant = Command::new("vagrant");
        vagrant.current_dir(Path::new(SOURCE).join("vagrant")).args(arguments);
        vagrant.env("VAGRANT_DOTFILE_PATH", self.0.join("dot")).env("VAGRANT_HOME", self.0.join("home"));
        vagrant.env("MACHINES", machines.to_string()).env("ROOT", self.0.join("root")).output().expect("vagrant")
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
        let root = self.0.join("root");
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, "install", &format!("DESTDIR={}", root.display())]);
        make.arg(format!("BUILT={}", bin("confgen").parent().unwrap().display())).env_remove("MAKEFLAGS");
        assert!(make.status().unwrap().success(), "make install");
        let programs = ["announcer", "confgen", "handover", "discoverctl"];
        let strip = Command::new("strip").args(programs.map(|name| root.join("usr/bin").join(name))).status();
        assert!(strip.unwrap().success(), "strip");
    }
}

impl Drop for Vagrant {
    fn drop(&mut self) {
        let _ = self.run(1, &["destroy", "--force"]);
    }
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn one_command_brings_a_balancer_up_that_answers() {
    let _turn = heavy();
    let vagrant = Vagrant(Scratch::new());
    vagrant.lay_out();
    vagrant.assert_done(1, &["up", "--provider=docker"]);
    for address in ["192.168.56.11:80", "127.0.0.1:8081"] {
        let answer = until(DEADLINE, address, || Request::get("hello.localhost", "/").send(address.parse().unwrap()));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.contains("README.md"), "{answer:?}");
    }
    let state = "systemctl is-active etcd@node1 haproxy-supervisord confgen announced@hello-blue";
    let said = vagrant.assert_done(1, &["ssh", "node1", "--command", state]);
    assert_eq!(said.matches("active").count(), 4, "{said}");
    vagrant.assert_done(1, &["destroy", "--force"]);
}

#[test]
#[ignore = "needs Vagrant: make lab-test"]
fn the_settings_of_one_machine_and_of_three_are_read() {
    let _turn = light();
    let vagrant = Vagrant(Scratch::new());
    for machines in [1, 3] {
        vagrant.assert_done(machines, &["validate", "--ignore-provider"]);
    }
    assert!(!vagrant.run(2, &["validate", "--ignore-provider"]).status.success(), "there is no cluster of two");
}
