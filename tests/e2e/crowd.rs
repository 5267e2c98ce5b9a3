//! Many announcers, and the failure of what they hang on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use lab::{Etcd, Process, Scratch, heavy, resident, until};

const COUNT: usize = 200;

/// announcer's default.
const TTL: Duration = Duration::from_secs(10);

/// How often each lease has to be seen renewed under the new leader: 3 times take about a TTL.
const RENEWALS: usize = 3;

const BELOW: &str = "http-services/crowd/upstreams/";

/// Long enough for two hundred processes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Two hundred announcers beside apps that something else runs. At first a third of them is on each member. They end
/// with the returned process.
fn crowd(etcd: &Etcd, folder: &Scratch) -> Process {
    let script = r#"for n in $(seq "$COUNT"); do
            "$ANNOUNCER" --endpoints "$1,$2,$3" --upstream "10.77.0.$n:8000" --id "n$n" \
                --service crowd --domain crowd.test &
            set -- "$2" "$3" "$1"
        done; wait"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "crowd"]).args(etcd.endpoints().split(','));
    command.env("COUNT", COUNT.to_string()).env("ANNOUNCER", lab::bin("announcer"));
    Process::start(folder, "crowd", &mut command)
}

/// Waits until each lease was renewed a few times, and a lease that isn't would be long over.
fn until_renewed(etcd: &Etcd, leases: &[i64]) {
    let start = Instant::now();
    let mut before = vec![i64::MAX; leases.len()];
    let mut renewals = vec![0; leases.len()];
    until(DEADLINE, "each lease to be renewed", || {
        // etcd counts in seconds.
        sleep(Duration::from_secs(1));
        let now = etcd.remaining(leases).map_err(|error| error.to_string())?;
        assert!(now.iter().all(|seconds| *seconds >= 0), "a lease has ended: {now:?}");
        for (count, (now, before)) in renewals.iter_mut().zip(now.iter().zip(&before)) {
            *count += usize::from(now > before);
        }
        before = now;
        let least = renewals.iter().min().copied().unwrap_or_default();
        if least >= RENEWALS && start.elapsed() >= TTL * 2 { Ok(()) } else { Err(format!("{least} times")) }
    });
}

#[test]
fn the_leader_is_killed_under_two_hundred_announcers_and_no_record_goes() {
    let _turn = heavy();
    let mut etcd = Etcd::cluster();
    let folder = Scratch::new();
    let control = etcd.grant(600);
    let first = etcd.revision() + 1;
    etcd.put_leased(&format!("{BELOW}control"), "10.77.1.1:8000", control);
    let start = Instant::now();
    let crowd = crowd(&etcd, &folder);
    let below = format!("{BELOW}n");
    let records = until(DEADLINE, "all records", || {
        let records = etcd.records(&below);
        if records.len() == COUNT { Ok(records) } else { Err(records.len().to_string()) }
    });
    println!("{COUNT} announcers registered after {:.1} s", start.elapsed().as_secs_f64());
    let leases: Vec<i64> = records.values().map(|record| record.lease).collect();

    let leader = etcd.leader();
    etcd.kill(leader);
    let killed = Instant::now();
    etcd.wait_ready();
    println!("a new leader serves after {:.1} s", killed.elapsed().as_secs_f64());
    until_renewed(&etcd, &leases);

    assert_eq!(etcd.records(&below), records, "no record was written again, or hangs on another lease");
    // The control: the deletion of this lease's key must show, and is the only one.
    etcd.revoke(control);
    let deletions = etcd.deletions(BELOW, first, etcd.revision());
    assert_eq!(deletions, [format!("{}{BELOW}control", lab::PREFIX)]);
    let family = crowd.family();
    let memory: u64 = family.iter().map(|pid| resident(*pid)).sum();
    assert_eq!(family.len(), COUNT + 1, "and the shell");
    println!("{:.1} MB resident each, most of it the binary that they share", memory as f64 / 1e6 / COUNT as f64);
    println!("the whole took {:.0} s", start.elapsed().as_secs_f64());
}
