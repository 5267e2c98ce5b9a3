use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::{Etcd, Process, Scratch, Signal, bin, free_address, until};

const KEY: &str = "http-services/shop/upstreams/a";

/// The text in which the end of a store fails the test.
fn failure(etcd: Etcd) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(etcd))).unwrap_err();
    panic.downcast_ref::<String>().unwrap().clone()
}

/// An announcer that calls a drain acknowledged, and stops its app.
fn lie(etcd: &Etcd, folder: &Scratch, address: &str) {
    let script = "echo draining; echo every balancer has acknowledged the drain; exec \"$0\" --listen \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(bin("webapp")).arg(address);
    etcd.follow_stops(&mut command, &folder.join("liar.log"));
    let mut app = Process::start(folder, "liar", &mut command);
    until(crate::PATIENCE, "the app", || std::net::TcpStream::connect(address));
    app.signal(Signal::SIGTERM);
    assert!(app.wait(crate::PATIENCE).success());
}

#[test]
fn a_stop_that_no_balancer_has_acknowledged_fails_the_test() {
    let (etcd, folder, address) = (Etcd::start(), Scratch::new(), free_address().to_string());
    let lease = etcd.grant(60);
    etcd.put_leased(KEY, address.clone(), lease);
    let record = r#"{"cluster":"7","applied":9,"pending":[],"held":[],"draining":{}}"#;
    etcd.put("balancers/elsewhere", record);
    let drain = format!(r#"{{"address":"{address}","state":"drain"}}"#);
    etcd.put_leased(KEY, drain, lease);
    let revision = etcd.revision();
    lie(&etcd, &folder, &address);
    // The recorder has its place already.
    etcd.put("balancers/elsewhere", record.replace(r#""7""#, &format!(r#""{}""#, etcd.cluster_id())));
    let text = failure(etcd);
    let reason = format!("line 5: the app of http-shop/a is stopped, and elsewhere has not acknowledged {revision}");
    assert!(text.contains(&reason) && text.contains(r#"{"kind":"stop","address":"#), "{text}");
    let file = Path::new(text.rsplit("the whole trace: ").next().unwrap());
    let trace = trace::parse_trace(&std::fs::read_to_string(file).unwrap()).unwrap();
    let counts = Counts { listings: 1, puts: 4, stops: 1, ..Counts::default() };
    assert_eq!(Counts::of_trace(&trace), counts);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_test_may_leave_its_trace_unchecked() {
    let (etcd, folder, address) = (Etcd::start(), Scratch::new(), free_address().to_string());
    let lease = etcd.grant(60);
    etcd.put_leased(KEY, address.clone(), lease);
    lie(&etcd, &folder, &address);
    etcd.leave_unchecked("the announcer lies");
}

#[test]
fn the_record_goes_on_over_a_kill_a_compaction_and_a_wipe() {
    let mut etcd = Etcd::start();
    etcd.put("a", "1");
    etcd.restart(0);
    etcd.put("a", "2");
    assert_eq!(counts(&etcd), Counts { listings: 1, puts: 2, ..Counts::default() });
    etcd.wipe();
    etcd.put("b", "1");
    etcd.delete("b");
    let expected = Counts { listings: 2, puts: 3, deletions: 1, ..Counts::default() };
    assert_eq!(counts(&etcd), expected);
    etcd.put("b", "2");
    etcd.compact();
    etcd.restart(0);
    etcd.put("b", "3");
    assert_eq!(counts(&etcd), Counts { puts: 5, ..expected });
}

fn counts(etcd: &Etcd) -> Counts {
    let (trace, left_out) = etcd.recorder().expect("an etcd without TLS").take_trace();
    assert_eq!((explain(&trace), left_out), (Ok(()), 0));
    Counts::of_trace(&trace)
}
