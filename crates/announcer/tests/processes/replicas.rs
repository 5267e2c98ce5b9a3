//! At most N copies of a service: `--replicas`.

mod copies;

use std::{
    os::unix::net::UnixDatagram,
    thread::sleep,
    time::{Duration, Instant},
};

use lab::{Etcd, Pid, Signal, free_port, http::Request, until};

use self::copies::{Copies, Life, TTL, fewest_at_once, json_text, most_at_once};
use crate::site::{SOON, Site};

/// A busy machine's share of a promise in seconds.
const SLACK: Duration = Duration::from_secs(2);

/// Longer than a copy stands by before it takes a slot.
const SETTLED: Duration = Duration::from_secs(2);

/// Three hosts, of which two run a copy.
fn two_of_three(flags: &[&str]) -> (Copies, Vec<String>, String) {
    two_of_three_with(Etcd::start(), flags)
}

fn two_of_three_with(etcd: Etcd, flags: &[&str]) -> (Copies, Vec<String>, String) {
    let mut copies = Copies::with(etcd, &[&["--replicas", "2"], flags].concat());
    for host in ["web-1", "web-2", "web-3"] {
        copies.start(host, &[]);
    }
    let running = running(&copies, 2);
    let mut others = ["web-1", "web-2", "web-3"].into_iter().filter(|host| !running.iter().any(|it| it == host));
    let other = others.next().unwrap().to_owned();
    copies.until_stand_by(&[&other]);
    (copies, running, other)
}

/// The hosts of so many copies, once they hold slots and have records.
#[track_caller]
fn running(copies: &Copies, count: usize) -> Vec<String> {
    let hosts = until(SOON, "copies that run", || {
        let mut hosts = copies.holders();
        hosts.sort();
        (hosts.len() == count).then_some(hosts)
    });
    copies.until_run(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
    hosts
}

/// True while the app of this run lives.
fn is_alive(life: &Life) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", life.pid)).is_ok_and(|stat| !stat.contains(") Z "))
}

#[track_caller]
fn last_life(copies: &Copies, host: &str) -> Life {
    copies.lives().into_iter().rev().find(|life| life.host == host).expect(host)
}

#[test]
fn two_of_three_run_and_a_killed_one_comes_back_elsewhere() {
    let (mut copies, running, other) = two_of_three(&[]);
    let slot = copies.etcd.get("http-services/shop/slots/1").unwrap();
    assert!(slot.contains(r#""replicas":2,"since":""#) && json_text(&slot, "host").is_some(), "{slot}");
    assert_eq!(copies.lives().len(), 2, "the third app never started");
    let killed = last_life(&copies, &running[0]);
    let start = Instant::now();
    // The announcer alone: its app must not outlive it.
    copies.announcer(&running[0]).signal(Signal::SIGKILL);
    until(Duration::from_secs(2), "the end of its app", || !is_alive(&killed));
    let mut expected = [running[1].as_str(), other.as_str()];
    expected.sort_unstable();
    copies.until_run_within(TTL + Duration::from_secs(2) + SLACK, &expected);
    let took = start.elapsed();
    assert!(took < TTL + Duration::from_secs(2), "TTL + 2 s: {took:?}");
    copies.start(&running[0], &[]);
    copies.until_stand_by(&[&running[0]]);
    assert_eq!(most_at_once(copies.lives().iter().map(|life| (life.start, life.end))), 2);
}

#[test]
fn a_polite_stop_never_lowers_the_capacity() {
    let mut copies = Copies::new(&["--replicas", "2"]);
    copies.delay = 0.7;
    for host in ["web-1", "web-2", "web-3"] {
        copies.start(host, &[]);
    }
    let first = running(&copies, 2);
    until(SOON, "a third that stands by", || copies.standbys().len() == 1);
    let from = copies.lives().iter().filter_map(|life| life.up).max().unwrap();
    let start = Instant::now();
    copies.announcer(&first[0]).signal(Signal::SIGTERM);
    assert_eq!(copies.announcer(&first[0]).wait(SOON).code(), Some(0), "the app's own status");
    assert!(start.elapsed() < Duration::from_secs(10), "the wait for a successor is over early: {:?}", start.elapsed());
    let second = running(&copies, 2);
    assert!(!second.contains(&first[0]), "{second:?}");
    sleep(Duration::from_millis(100));
    let lives = copies.lives();
    let serving: Vec<_> = lives.iter().filter_map(|life| Some((life.up?, life.end))).collect();
    let to = lives.iter().filter(|life| is_alive(life)).map(|life| life.end).min().unwrap();
    assert_eq!(fewest_at_once(&serving, from, to), 2, "{lives:?}");
    assert_eq!(lives.len(), 3);
    // Without a stand-by no copy is waited for.
    let start = Instant::now();
    copies.announcer(&second[0]).signal(Signal::SIGTERM);
    copies.announcer(&second[0]).wait(SOON);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_successor_that_never_works_holds_up_no_stop() {
    let mut copies = Copies::new(&["--replicas", "1", "--handover", "3s"]);
    copies.start("web-1", &[]);
    running(&copies, 1);
    copies.delay = 600.0;
    copies.start("web-2", &[]);
    copies.until_stand_by(&["web-2"]);
    sleep(SETTLED);
    let start = Instant::now();
    copies.announcer("web-1").signal(Signal::SIGTERM);
    until(SOON, "its successor's app", || copies.lives().len() == 2);
    copies.announcer("web-1").wait(SOON);
    assert!((Duration::from_secs(3)..Duration::from_secs(10)).contains(&start.elapsed()), "{:?}", start.elapsed());
    until(SOON, "the slot", || copies.holders() == ["web-2"]);
    let lives = copies.lives();
    assert!(lives.len() == 2 && is_alive(&lives[1]), "the app that has started goes on: {lives:?}");
}

#[test]
fn a_crash_loop_moves_to_another_host() {
    let mut copies = Copies::new(&["--replicas", "1", "--max-restarts", "1"]);
    copies.start("web-1", &[]);
    copies.until_run(&["web-1"]);
    copies.start("web-2", &[]);
    copies.until_stand_by(&["web-2"]);
    lab::write(copies.folder.join("runs/crash-web-1"), "");
    copies.until_run(&["web-2"]);
    let starts = copies.lives().iter().filter(|life| life.host == "web-1").count();
    assert_eq!(starts, 2, "one restart");
    let standby = until(SOON, "the stand-by", || copies.standbys().remove("web-1"));
    assert!(standby.contains(r#""reason":"crash-loop","until":""#), "{standby}");
    assert_eq!(most_at_once(copies.lives().iter().map(|life| (life.start, life.end))), 1);
    // No other host is left for it, so it tries again after its pause.
    std::fs::remove_file(copies.folder.join("runs/crash-web-1")).unwrap();
    copies.announcer("web-2").signal(Signal::SIGKILL);
    copies.until_run(&["web-1"]);
}

#[test]
fn an_app_that_crashes_once_starts_again_on_its_host() {
    let mut copies = Copies::new(&["--replicas", "1"]);
    copies.start("web-1", &[]);
    copies.start("web-2", &[]);
    let host = running(&copies, 1).remove(0);
    lab::write(copies.folder.join("runs").join(format!("crash-{host}")), "");
    until(SOON, "its end", || copies.announcer(&host).log().contains("starting it again"));
    std::fs::remove_file(copies.folder.join("runs").join(format!("crash-{host}"))).unwrap();
    until(SOON, "another run", || copies.lives().len() >= 2);
    copies.until_run(&[&host]);
    assert!(copies.lives().iter().all(|life| life.host == host));
}

#[test]
fn etcd_away_stops_nothing_and_starts_nothing() {
    let (mut copies, running, other) = two_of_three(&[]);
    let names: Vec<&str> = running.iter().map(String::as_str).collect();
    copies.etcd.freeze(0);
    sleep(TTL + Duration::from_secs(1));
    copies.etcd.thaw(0);
    copies.until_run(&names);
    copies.until_stand_by(&[&other]);
    copies.etcd.kill(0);
    sleep(TTL + Duration::from_secs(1));
    copies.etcd.restart(0);
    sleep(TTL);
    copies.until_run(&names);
    copies.until_stand_by(&[&other]);
    let lives = copies.lives();
    assert!(lives.len() == 2 && lives.iter().all(is_alive), "{lives:?}");
}

#[test]
fn of_too_many_copies_the_youngest_stops() {
    let (copies, running, other) = two_of_three(&[]);
    copies.link(&running[0]).cut();
    let mut expected = [running[1].as_str(), other.as_str()];
    expected.sort_unstable();
    until(SOON, "a third app", || copies.lives().len() == 3);
    until(SOON, "its slot", || copies.holders().contains(&other));
    assert!(copies.lives().iter().all(is_alive), "without a fence, the app that is cut off goes on");
    copies.link(&running[0]).mend();
    copies.until_run(&running.iter().map(String::as_str).collect::<Vec<_>>());
    copies.until_stand_by(&[&other]);
    let stopped = last_life(&copies, &other);
    until(SOON, "the end of the youngest", || !is_alive(&stopped));
    let old: Vec<_> = copies.lives().into_iter().filter(|life| life.host != other).collect();
    assert!(old.len() == 2 && old.iter().all(is_alive), "{old:?}");
}

#[test]
fn a_slot_that_is_deleted_by_hand_goes_back_to_its_copy() {
    let (copies, running, _) = two_of_three(&[]);
    copies.etcd.delete("http-services/shop/slots/1");
    until(SOON, "the slot", || copies.etcd.get("http-services/shop/slots/1").is_some());
    copies.until_run(&running.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(copies.lives().iter().filter(|life| running.contains(&life.host)).all(is_alive));
}

#[test]
fn hosts_without_a_copy_come_first_and_then_the_preferred_one() {
    let mut copies = Copies::new(&["--replicas", "2"]);
    // Until all stand by, others hold both slots.
    let lease = copies.etcd.grant(600);
    for number in [1, 2] {
        copies.etcd.put_leased(&format!("http-services/shop/slots/{number}"), r#"{"id":"x"}"#, lease);
    }
    copies.start("a-1", &["--host-name", "web-1"]);
    copies.start("a-2", &["--host-name", "web-1", "--prefer", "9"]);
    copies.start("b-1", &["--host-name", "web-2"]);
    copies.until_stand_by(&["a-1", "a-2", "b-1"]);
    sleep(SETTLED);
    copies.etcd.revoke(lease);
    copies.until_run(&["a-2", "b-1"]);
    copies.start("c-1", &["--host-name", "web-3"]);
    copies.start("d-1", &["--host-name", "web-4", "--prefer", "1"]);
    copies.until_stand_by(&["a-1", "c-1", "d-1"]);
    sleep(SETTLED);
    // The best candidate is dead, and its stand-by isn't gone yet.
    copies.announcer("d-1").signal(Signal::SIGSTOP);
    let start = Instant::now();
    copies.announcer("b-1").signal(Signal::SIGTERM);
    until(SOON, "the next candidate", || copies.holders().contains(&"c-1".to_owned()));
    assert!(start.elapsed() < TTL, "its stand-by was not waited for: {:?}", start.elapsed());
    copies.until_run(&["a-2", "c-1"]);
}

#[test]
fn a_copy_that_stands_by_is_ready_and_says_who_runs() {
    let mut copies = Copies::new(&["--replicas", "1"]);
    copies.start("web-1", &[]);
    copies.until_run(&["web-1"]);
    let heard = UnixDatagram::bind(copies.folder.join("notify-web-2")).unwrap();
    heard.set_read_timeout(Some(SOON)).unwrap();
    let admin = format!("127.0.0.1:{}", free_port());
    copies.start("web-2", &["--admin", &admin]);
    let (mut words, mut buffer) = (String::new(), [0; 4096]);
    while !(words.contains("READY=1") && words.contains("STATUS=standing by (1 of 1 run: web-1)")) {
        let length = heard.recv(&mut buffer).unwrap_or_else(|error| panic!("{error} after {words}"));
        words.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let ask = |target: &str| Request::get("localhost", target).send(admin.parse().unwrap()).unwrap();
    let ready = ask("/ready");
    assert_eq!((ready.status, ready.body.trim()), (200, "standing by (1 of 1 run: web-1)"));
    let metrics = ask("/metrics").body;
    for line in ["announcer_state{state=\"standby\"} 1", "announcer_slot 0", "announcer_copies{state=\"running\"} 1"] {
        assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
    }
    copies.announcer("web-1").signal(Signal::SIGTERM);
    copies.until_run(&["web-2"]);
    until(SOON, "its slot", || ask("/metrics").body.lines().any(|line| line == "announcer_slot 1"));
    // A signal for the app ends no copy that stands by.
    copies.start("web-1", &[]);
    copies.until_stand_by(&["web-1"]);
    copies.announcer("web-1").signal(Signal::SIGHUP);
    copies.announcer("web-1").signal(Signal::SIGTERM);
    assert_eq!(copies.announcer("web-1").wait(SOON).code(), Some(0));
}

#[test]
fn a_frozen_announcer_with_a_fence_has_no_app() {
    let (mut copies, running, other) = two_of_three(&["--fence"]);
    let fenced = last_life(&copies, &running[0]);
    let start = Instant::now();
    copies.announcer(&running[0]).signal(Signal::SIGSTOP);
    until(TTL, "the end of its app", || !is_alive(&fenced));
    let took = start.elapsed();
    assert!(took < TTL, "before its lease can end: {took:?}");
    let mut expected = [running[1].as_str(), other.as_str()];
    expected.sort_unstable();
    copies.until_run(&expected);
    copies.announcer(&running[0]).signal(Signal::SIGCONT);
    copies.until_stand_by(&[&running[0]]);
    assert_eq!(most_at_once(copies.lives().iter().map(|life| (life.start, life.end))), 2);
}

/// Number of cuts: `FENCE_CUTS`, 6 unless said.
fn cuts() -> usize {
    std::env::var("FENCE_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(6)
}

#[test]
fn with_a_fence_there_are_never_too_many() {
    cut_at_random(two_of_three(&["--fence"]).0, 1);
}

#[test]
fn with_a_fence_there_are_never_too_many_while_leaders_of_etcd_change() {
    cut_at_random(two_of_three_with(Etcd::cluster(), &["--fence"]).0, 3);
}

/// Cuts, freezes and kills announcers and members of etcd, and counts the apps at one time by their own time stamps.
#[track_caller]
fn cut_at_random(mut copies: Copies, members: usize) {
    let hosts = ["web-1", "web-2", "web-3"];
    for cut in 0..cuts() {
        let host = hosts[fastrand::usize(..hosts.len())];
        let time = Duration::from_millis(fastrand::u64(0..5000));
        let member = fastrand::usize(..members);
        let kind = fastrand::usize(..5);
        match kind {
            0 => {
                copies.link(host).cut();
                sleep(time);
                copies.link(host).mend();
            }
            1 => {
                copies.announcer(host).signal(Signal::SIGSTOP);
                sleep(time);
                copies.announcer(host).signal(Signal::SIGCONT);
            }
            2 => {
                copies.announcer(host).signal(Signal::SIGKILL);
                sleep(time);
                copies.start(host, &[]);
            }
            3 => {
                copies.etcd.freeze(member);
                sleep(time);
                copies.etcd.thaw(member);
            }
            _ => {
                copies.etcd.kill(member);
                sleep(time);
                copies.etcd.restart(member);
            }
        }
        // The next cut often comes before all is well again.
        if fastrand::bool() {
            sleep(Duration::from_millis(fastrand::u64(0..3000)));
        }
        let lives = copies.lives();
        let most = most_at_once(lives.iter().map(|life| (life.start, life.end)));
        assert!(most <= 2, "cut {cut} of kind {kind}, {host} and {member} for {time:?}: {most} at once\n{lives:#?}");
    }
    running(&copies, 2);
}

#[test]
fn what_an_app_has_started_ends_with_its_announcer_too() {
    let site = Site::new();
    let script = "sleep 300 & echo $! > child; wait";
    let mut announcer = site.wrap(&["--replicas", "1"], script);
    let child = site.until_file("child");
    let lives = || std::path::Path::new(&format!("/proc/{child}")).exists();
    assert!(lives());
    announcer.signal(Signal::SIGKILL);
    until(Duration::from_secs(2), "the end of its child", || !lives());
}

#[test]
fn the_guard_dies_with_nothing_else() {
    let mut copies = Copies::new(&["--replicas", "1"]);
    copies.start("web-1", &[]);
    copies.until_run(&["web-1"]);
    let guard = until(SOON, "the guard", || find_guard(&mut copies));
    lab_kill(guard);
    until(SOON, "another guard", || find_guard(&mut copies).filter(|it| *it != guard));
    assert!(is_alive(&last_life(&copies, "web-1")), "{}", copies.port("web-1"));
    copies.announcer("web-1").signal(Signal::SIGTERM);
    copies.announcer("web-1").wait(SOON);
    until(SOON, "the end of all", || copies.announcer("web-1").family().is_empty());
}

fn find_guard(copies: &mut Copies) -> Option<Pid> {
    let family = copies.announcer("web-1").family();
    family.into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"announcer-guard\0")
    })
}

fn lab_kill(pid: Pid) {
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
}
