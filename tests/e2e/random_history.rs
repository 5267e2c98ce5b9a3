//! Many changes over many services, as fast as the store takes them, twice: at the end everything agrees, and nothing has
//! leaked.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd_client::{DeleteOptions, Txn, TxnOp};
use lab::{Balancer, Etcd, Mirror, PATIENCE, PREFIX, Pid, children, heavy_on, open_files, resident, until};

const SERVICES: usize = 2_000;
const CHANGES: usize = 20_000;
/// So that a failure can be had again.
const SEED: u64 = 20_261_121;

/// What has been written last is in the file and in HAProxy by then: some restarts of thousands of servers, in a debug
/// build on a busy machine.
const AGREES: Duration = Duration::from_secs(90);

/// Old HAProxys have neither clients nor anything else to wait for.
const ENDS: Duration = PATIENCE;

/// One change: a key put or deleted, or all keys of a service deleted.
#[derive(Clone)]
enum Op {
    Put(String, String),
    Delete(String),
    DeleteService(String),
}

/// The changes in transactions of one to 32, since 128 is etcd's limit and one is what announcers write; no key twice in
/// one, which etcd refuses.
fn changes() -> Vec<Vec<Op>> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut transactions = Vec::new();
    let mut left = CHANGES;
    while left > 0 {
        let mut ops: BTreeMap<String, Op> = BTreeMap::new();
        for _ in 0..random.usize(1..=32).min(left) {
            let op = change(&mut random);
            let (Op::Put(key, _) | Op::Delete(key) | Op::DeleteService(key)) = &op;
            if matches!(op, Op::DeleteService(_)) {
                // Its range overlaps with the keys of others.
                transactions.push(vec![op]);
            } else {
                ops.insert(key.clone(), op);
                continue;
            }
            left -= 1;
        }
        left -= ops.len();
        transactions.push(ops.into_values().collect());
    }
    transactions.retain(|ops| !ops.is_empty());
    transactions
}

fn change(random: &mut fastrand::Rng) -> Op {
    let service = random.usize(..SERVICES);
    let key = |leaf: &str| format!("{PREFIX}http-services/s{service}/{leaf}");
    let id = format!("u{}", random.u8(..5));
    let pick = |random: &mut fastrand::Rng, of: &[&str]| of[random.usize(..of.len())].to_owned();
    match random.u8(..100) {
        0..35 => Op::Put(key(&format!("upstreams/{id}")), upstream(random)),
        35..55 => Op::Delete(key(&format!("upstreams/{id}"))),
        55..70 => {
            let imposed = [r#"{"state":"drain"}"#, r#"{"state":"maint"}"#, r#"{"weight":7}"#, r#"{"weight":0}"#];
            Op::Put(key(&format!("overrides/{id}")), pick(random, &imposed))
        }
        70..78 => Op::Delete(key(&format!("overrides/{id}"))),
        78..83 => Op::Put(key("active"), pick(random, &["blue", "green", "blue=90 green=10", "blue=1 green=1"])),
        83..86 => Op::Delete(key("active")),
        86..94 => {
            let more = pick(random, &["", " www.sN.test", " *.sN.test", " www.sN.test a.b.sN.test"]);
            Op::Put(key("domain"), format!("s{service}.test{}", more.replace('N', &service.to_string())))
        }
        94..96 => Op::Put(key("path"), pick(random, &["/api", "/api /static", "/a/b/c"])),
        96..98 => Op::Delete(key("path")),
        // What HAProxy has to be restarted for: as seldom as in life.
        98 if random.u8(..2) == 0 => Op::Put(key("balance"), pick(random, &["leastconn", "random"])),
        98 => Op::Delete(key("balance")),
        _ => Op::DeleteService(key("")),
    }
}

fn upstream(random: &mut fastrand::Rng) -> String {
    let address = format!("127.{}.{}.{}:{}", random.u8(1..), random.u8(..), random.u8(1..255), random.u16(1..));
    let color = ["", r#","color":"blue""#, r#","color":"green""#][random.usize(..3)];
    match random.u8(..10) {
        0..4 => address,
        4..6 => format!(r#"{{"address":"{address}","weight":{}{color}}}"#, random.u8(1..)),
        6 => format!(r#"{{"address":"{address}","state":"drain"{color}}}"#),
        _ => format!(r#"{{"address":"{address}"{color}}}"#),
    }
}

/// Nobody listens at the addresses, and nobody checks most of them: 3,000 checks a second are no part of this.
fn fill(etcd: &Etcd) {
    etcd.put_all((0..SERVICES).flat_map(|service| {
        let below = format!("http-services/s{service}");
        let upstream = |number: usize| {
            let address = format!("127.{}.{}.{}:9", number + 1, service / 250, service % 250 + 1);
            (format!("{below}/upstreams/u{number}"), address.into_bytes())
        };
        let (domain, check) = (format!("s{service}.test").into_bytes(), b"off".to_vec());
        let settings = [(format!("{below}/domain"), domain), (format!("{below}/check"), check)];
        settings.into_iter().chain((0..2).map(upstream)).collect::<Vec<_>>()
    }));
}

fn replay(etcd: &Etcd, transactions: Vec<Vec<Op>>) {
    etcd.ask(async move |mut client| {
        for ops in transactions {
            let op = |op: Op| match op {
                Op::Put(key, value) => TxnOp::put(key, value, None),
                Op::Delete(key) => TxnOp::delete(key, None),
                Op::DeleteService(below) => TxnOp::delete(below, Some(DeleteOptions::new().with_prefix())),
            };
            client.txn(Txn::new().and_then(ops.into_iter().map(op).collect::<Vec<_>>())).await?;
        }
        Ok(())
    });
}

/// What must be the same after the second time.
#[derive(Debug)]
struct Held {
    confgen: Pid,
    resident: u64,
    confgen_files: usize,
    haproxy_files: usize,
}

impl Held {
    /// Once all is at rest.
    fn by(balancer: &Balancer) -> Self {
        until(ENDS, "one HAProxy to be left", || {
            let names: Vec<String> = balancer.family().iter().map(name_of).filter(|name| name == "haproxy").collect();
            if names.len() == 2 { Ok(()) } else { Err(names.join(" ")) }
        });
        let confgen = balancer.pid("confgen").unwrap();
        until(ENDS, "confgen to have nothing to do", || {
            let before = cpu(confgen);
            // The file follows HAProxy after 200 ms, and is looked at once more after a restart.
            sleep(Duration::from_secs(1));
            let used = cpu(confgen) - before;
            // Four looks a second are all that is left: at files, HAProxy, its old processes and supervisord. A tick is 10 ms.
            if used <= 12 && children(confgen).is_empty() { Ok(()) } else { Err(format!("{used} ticks in a second")) }
        });
        Self {
            confgen,
            resident: resident(confgen),
            confgen_files: open_files(confgen),
            haproxy_files: open_files(balancer.worker()),
        }
    }
}

/// The ticks that a process has worked.
fn cpu(pid: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc(5): utime and stime are fields 14 and 15; what follows the name begins with the third.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn name_of(pid: &Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The generations that the state directory has maps of.
fn generations(state: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(state).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).collect()
}

/// What is kept: the generation that HAProxy runs, that of the file, and the one that was published before it, whose file a HAProxy
/// that is just starting may have read. A deleted service needs no restart, so all three may differ also when nothing is left to do:
/// two publishes follow the last restart. A restart removes all but its own.
#[track_caller]
fn assert_generations(balancer: &Balancer) {
    let kept = generations(&balancer.folder().join("state"));
    let of = |text: &str, before: &str| {
        let id = text.lines().find_map(|line| line.trim().strip_prefix(before).map(str::to_owned));
        id.unwrap_or_else(|| panic!("no {before} in {text}"))
    };
    let running = of(&balancer.ask("show env CONFGEN_GEN"), "CONFGEN_GEN=");
    let needed = BTreeSet::from([running, of(&balancer.file(), "setenv CONFGEN_GEN ")]);
    assert!(needed.is_subset(&kept), "of {needed:?} there are {kept:?}");
    assert!(kept.len() <= needed.len() + 1, "of {needed:?} and one more there are {kept:?}");
}

#[test]
fn twenty_thousand_changes_three_times() {
    // HAProxy has more files open on a busy machine, where its checks take longer.
    let (_turn, (etcd, balancer)) = heavy_on(|| {
        let etcd = Etcd::start();
        fill(&etcd);
        let balancer = Balancer::start(&etcd);
        until(AGREES, "the first state", || Mirror::agree(&balancer, &etcd));
        (etcd, balancer)
    });
    let transactions = changes();
    let count: usize = transactions.iter().map(Vec::len).sum();
    assert_eq!(count, CHANGES);
    let mut held = Vec::new();
    for time in ["first", "second", "third"] {
        let (start, restarts) = (Instant::now(), balancer.restarts());
        replay(&etcd, transactions.clone());
        let written = start.elapsed();
        let wanted = Mirror::wanted(&etcd);
        let agreed =
            until(AGREES, "store, file, maps and servers to agree", || Mirror::agree_with(wanted.clone(), &balancer));
        let agree = start.elapsed();
        held.push(Held::by(&balancer));
        println!(
            "{time}: {count} changes in {} transactions written in {written:.1?}, all agree after {agree:.1?} \
             ({} servers, {} routes), {} restarts; {:?}",
            transactions.len(),
            agreed.servers.len(),
            agreed.paths.len(),
            balancer.restarts() - restarts,
            held.last(),
        );
        assert_generations(&balancer);
    }
    let [first, second, third] = held.try_into().unwrap();
    assert_eq!((second.confgen, third.confgen), (first.confgen, first.confgen), "it is the same confgen");
    // A connection may be about to be closed, or a look under way; a leak would be of hundreds.
    assert!(third.confgen_files < first.confgen_files + 4, "{first:?} {third:?}");
    assert!(third.haproxy_files < first.haproxy_files + 4, "{first:?} {third:?}");
    // What the allocator keeps differs from one time to the next; what leaks grows with each.
    let grew = |before: &Held, after: &Held| after.resident * 10 > before.resident * 11;
    let grows = grew(&first, &second) && grew(&second, &third);
    assert!(!grows, "memory grew by more than a tenth twice: {first:?} {second:?} {third:?}");
}
