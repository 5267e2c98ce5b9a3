//! A state directory serves one confgen at a time, and a dead one leaves it free.

use std::fs::{self, read};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{App, Balancer, Etcd, PATIENCE, Pid, Process, Scratch, light, until};

/// How a process was started, word by word.
pub(crate) fn command_line(pid: Pid) -> Vec<String> {
    let words = read(format!("/proc/{pid}/cmdline")).unwrap();
    words
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

#[test]
fn a_second_confgen_is_refused_and_told_the_owner() {
    let _turn = light();
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    balancer.wait_settled(PATIENCE);
    let first = balancer.pid("confgen").unwrap();
    let folder = Scratch::new();
    // With all of its options, but for the port, which can be had once too.
    let mut options = command_line(first);
    let program = options.remove(0);
    let admin = options.iter().position(|word| word == "--admin").unwrap();
    options.drain(admin..admin + 2);
    let confgen = |form: &[&str]| {
        let mut command = Command::new(&program);
        let mut process = Process::start(&folder, &form.concat(), command.args(form).args(&options));
        (process.wait(PATIENCE).code(), process.log())
    };
    let state = balancer.folder().join("state");
    let words = |pid: Pid| format!("can't lock {}: in use by confgen (pid {pid}); stop it", state.display());
    for form in [&["--admin", "off"][..], &["once"]] {
        let (code, log) = confgen(form);
        assert!(code == Some(1) && log.contains(&words(first)), "{form:?}: {code:?} {log}");
    }
    // Who only looks disturbs nobody.
    let (code, log) = confgen(&["render"]);
    assert!(code == Some(0) && log.contains("setenv CONFGEN_GEN"), "{code:?} {log}");
    let (code, log) = confgen(&["diff"]);
    assert_eq!(code, Some(0), "{log}");

    // One that is killed has it no longer; one that stops neither.
    balancer.kill("confgen");
    balancer.wait_settled(PATIENCE);
    let second = balancer.pid("confgen").unwrap();
    assert_ne!(second, first);
    let (code, log) = confgen(&["once"]);
    assert!(code == Some(1) && log.contains(&words(second)), "{code:?} {log}");
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
    let (code, log) = confgen(&["once"]);
    assert!(code == Some(0) && log.contains("HAProxy runs what the store asks for"), "{code:?} {log}");
}

/// A directory on a small file system of its own, until this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(directory: &Path) -> Self {
        let kept = directory.with_extension("kept");
        assert!(run("cp", &["-a".as_ref(), directory, &kept]));
        assert!(run(
            "mount",
            &["-t", "tmpfs", "-o", "size=2m", "none"].map(Path::new).into_iter().chain([directory]).collect::<Vec<_>>()
        ));
        let disk = Self(directory.to_owned());
        assert!(run("cp", &["-a".as_ref(), &kept.join("."), directory]));
        disk
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("full")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("full")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l".as_ref(), &self.0]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> bool {
    Command::new(program).args(arguments).status().unwrap().success()
}

/// confgen starts on a full disk although it has to write: HAProxy follows over the Runtime API, and everything says why the
/// file doesn't.
#[test]
fn confgen_starts_on_a_full_disk_and_publishes_once_there_is_room() {
    let _turn = light();
    let (etcd, apps) = (Etcd::start(), ["shop-1", "shop-2"].map(App::alone));
    etcd.http_service("shop", "shop.test", &[&apps[0]]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_settled(PATIENCE);
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
    let state = balancer.folder().join("state");
    let disk = SmallDisk::under(&state);
    for lost in ["stats-password", "stats-password.hash", "certs/self-signed.pem"] {
        fs::remove_file(state.join(lost)).unwrap();
    }
    disk.fill();
    let before = balancer.pid("haproxy");
    etcd.put("http-services/shop/upstreams/shop-2", apps[1].address.to_string());
    assert!(balancer.ctl(&["start", "confgen"]).status.success());
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    until(PATIENCE, "confgen to say why it isn't in sync", || {
        let ready = balancer.asked("/ready").map_err(|error| error.to_string())?;
        if ready.status == 503 && ready.body.contains("No space left") { Ok(()) } else { Err(ready.body) }
    });
    assert!(balancer.asked("/metrics").unwrap().body.contains("\nconfgen_in_sync 0\n"));
    assert!(balancer.log("confgen").contains("can't write the state directory, using only the Runtime API"));
    assert!(!balancer.file().contains("server shop-2 "));
    assert_eq!(balancer.pid("haproxy"), before, "no restart without a file");
    assert_eq!(balancer.wait_status(PATIENCE, "shop.test", "/", 200).status, 200);

    disk.make_room();
    until(PATIENCE, "the file to follow", || balancer.file().contains("server shop-2 "));
    balancer.wait_settled(PATIENCE);
    assert!(state.join("stats-password").exists() && state.join("certs/self-signed.pem").exists());
    assert!(balancer.log("confgen").contains("has room again"));
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
}

/// A disk that fills up while confgen runs, and a kill in that state, lose nothing: the next confgen finds what was saved last.
#[test]
fn a_disk_that_fills_up_costs_no_saved_state() {
    let _turn = light();
    let (etcd, apps) = (Etcd::start(), ["shop-1", "shop-2"].map(App::alone));
    etcd.http_service("shop", "shop.test", &[&apps[0]]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_settled(PATIENCE);
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
    let state = balancer.folder().join("state");
    let disk = SmallDisk::under(&state);
    assert!(balancer.ctl(&["start", "confgen"]).status.success());
    balancer.wait_settled(PATIENCE);
    let file = |name: &str| fs::read_to_string(state.join(name)).unwrap_or_default();
    // The first save after a start makes a snapshot, and the next ones are lines of the journal.
    etcd.put("http-services/shop/check", "tcp");
    let saved = || file("state.json") + &file("journal");
    until(PATIENCE, "the change to be saved", || saved().contains("shop/check"));
    etcd.put("http-services/shop/upstreams/shop-1", format!("{{\"address\":\"{}\",\"weight\":50}}", apps[0].address));
    until(PATIENCE, "the change to be a line of the journal", || file("journal").contains("upstreams/shop-1"));
    disk.fill();
    // Longer than what the last block of the journal has room for.
    let note = "x".repeat(3_900);
    let record = format!("{{\"address\":\"{}\",\"note\":\"{note}\"}}", apps[1].address);
    etcd.put("http-services/shop/upstreams/shop-2", record);
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    let wait_out_of_sync = || {
        until(PATIENCE, "confgen to say why it isn't in sync", || {
            balancer.asked("/ready").is_ok_and(|ready| ready.status == 503 && ready.body.contains("No space left"))
        });
    };
    wait_out_of_sync();
    balancer.kill("confgen");
    until(PATIENCE, "the next confgen", || balancer.log("confgen").matches("store listed").count() == 3);
    wait_out_of_sync();
    disk.make_room();
    until(PATIENCE, "the file to follow", || balancer.file().contains("server shop-2 "));
    balancer.wait_settled(PATIENCE);
    assert!(!balancer.log("confgen").contains("can't parse"), "{}", balancer.log("confgen"));
    assert!(file("state.json").contains("upstreams/shop-2"));
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
}
