//! Each upstream that is up gets its share, after other upstreams have gone, come back and changed weight; and a hash leads a
//! client to one upstream on every balancer.
//!
//! `FAIR_SHARE_ROUNDS` makes the rounds more than `make test` has time for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::load::{Kind, Plan};
use lab::{App, Balancer, Etcd, PATIENCE, Setup, light, medium, until, write};

const UPSTREAMS: usize = 10;

/// After a change, each upstream has half of its share of so many requests for each upstream.
const REQUESTS_EACH: u64 = 20;

/// The same where chance decides: of 600 requests, one of ten has fewer than 30 once in 100,000 times.
const REQUESTS_EACH_BY_CHANCE: u64 = 60;

/// HAProxy hands out turns in windows of 16 requests for each unit of weight. With these weights a window is over within
/// seconds under load, so that the rounds meet its beginning, middle and end.
const WEIGHT: u16 = 10;

/// Some requests fall into every part of a window with this weight, and a server that is set aside misses more turns than it takes
/// confgen to notice.
const LONG_WINDOW: u16 = 40;

/// confgen counts once a second.
const COUNTED: Duration = Duration::from_millis(1_500);

/// The servers that come and go at once when checks are played. If more go, the others are set aside sooner.
const FLAPPING: Range<usize> = 4..UPSTREAMS;

/// A service whose upstreams share one weight.
pub(crate) struct Shop {
    pub(crate) balancer: Balancer,
    pub(crate) apps: Vec<App>,
    pub(crate) etcd: Etcd,
}

impl Shop {
    fn start(balance: &str) -> Self {
        let etcd = Etcd::start();
        let balancer = Balancer::start(&etcd);
        Self::of(etcd, balancer, balance, WEIGHT)
    }

    /// A service in turns, in which a server that is set aside waits for long.
    pub(crate) fn in_long_windows(etcd: Etcd, balancer: Balancer) -> Self {
        Self::of(etcd, balancer, "roundrobin", LONG_WINDOW)
    }

    fn of(etcd: Etcd, balancer: Balancer, balance: &str, weight: u16) -> Self {
        etcd.put("http-services/shop/domain", "shop.test");
        etcd.put("http-services/shop/balance", balance);
        if etcd.get("http-services/shop/profile").is_none() {
            // A check that fails on a busy machine changes the shares too.
            etcd.put("http-services/shop/check", "off");
        }
        let apps = (0..UPSTREAMS).map(|number| App::alone(&format!("shop-{number}"))).collect();
        let shop = Self { balancer, apps, etcd };
        (0..UPSTREAMS).for_each(|number| _ = shop.put(number, weight));
        shop.wait_served(&shop.balancer, UPSTREAMS);
        shop
    }

    fn key(&self, number: usize) -> String {
        format!("http-services/shop/upstreams/{}", self.apps[number].name)
    }

    /// Returns the store's revision.
    fn put(&self, number: usize, weight: u16) -> i64 {
        let address = self.apps[number].address;
        self.etcd.put(&self.key(number), format!(r#"{{"address":"{address}","weight":{weight}}}"#))
    }

    fn delete(&self, number: usize) {
        self.etcd.delete(&self.key(number));
    }

    #[track_caller]
    fn wait_served(&self, balancer: &Balancer, upstreams: usize) {
        balancer.wait_settled(PATIENCE);
        balancer.wait_servers(PATIENCE, "http-shop", upstreams);
        // On 3.4 the service is served with its former `balance` until a restart, and the counters begin anew with it.
        until(PATIENCE, "no service to wait for a restart", || {
            let pending = balancer.api("status")["pending"].take();
            if pending.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(pending.to_string()) }
        });
        // confgen may have been in sync with what the store held before. The process of then answers 404.
        balancer.wait_one_haproxy(PATIENCE);
    }

    /// How often HAProxy has chosen each server, since it was added.
    fn chosen(&self) -> BTreeMap<String, u64> {
        let rows = self.balancer.server_rows("http-shop").into_iter();
        rows.map(|row| (row["svname"].clone(), row["lbtot"].parse().unwrap())).collect()
    }

    /// Asks so many times, each time over a new connection.
    pub(crate) fn ask(&self, requests: u64) {
        (0..requests).for_each(|_| _ = Request::get("shop.test", "/").send(self.balancer.http()).unwrap());
    }

    /// HAProxy finds these servers up or down, as it does if their checks pass or fail at once.
    fn set_health(&self, servers: Range<usize>, health: &str) {
        let line = |number: usize| format!("set server http-shop/{} health {health}", self.apps[number].name);
        let said = self.balancer.ask(&servers.map(line).collect::<Vec<_>>().join(";"));
        assert_eq!(said.trim(), "");
    }

    /// Each server gets at least half of its share of the requests that this sends.
    #[track_caller]
    fn assert_even_now(&self, round: &str) {
        let before = self.chosen();
        self.ask(REQUESTS_EACH * UPSTREAMS as u64);
        let counts: BTreeMap<_, _> =
            self.chosen().into_iter().map(|(name, now)| (name.clone(), now - before[&name])).collect();
        let starved: Vec<_> = counts.iter().filter(|(_, count)| **count * 2 < REQUESTS_EACH).collect();
        assert!(starved.is_empty(), "{round}: {starved:?}: {counts:?}");
    }

    /// The upstreams of which the API says that they starve.
    fn said_to_starve(&self) -> BTreeSet<String> {
        let answer = self.balancer.api("upstreams");
        let upstreams = answer["upstreams"].as_array().unwrap().iter();
        let starved = upstreams.filter(|it| it["verdict"]["because"]["cause"] == "starved");
        starved.map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Has HAProxy set servers aside, until confgen says of some that they starve, and asks no more from then on. Returns them.
    ///
    /// HAProxy does that in the later part of a window only, and only if the servers that come back do so between two of
    /// confgen's counts, or confgen gives all servers their turns.
    pub(crate) fn starve(&self) -> BTreeSet<String> {
        for _ in 0..40 {
            self.ask(150);
            self.set_health(FLAPPING, "down");
            self.ask(3);
            self.set_health(FLAPPING, "up");
            // One count sees what each server has had so far, the next one that some had nothing more.
            self.ask(110);
            sleep(COUNTED);
            self.ask(230);
            let asked = Instant::now();
            while asked.elapsed() < 2 * COUNTED {
                let starved = self.said_to_starve();
                if !starved.is_empty() {
                    return starved;
                }
                sleep(Duration::from_millis(50));
            }
        }
        panic!("HAProxy sets no server aside");
    }

    /// Each server gets at least half of its share of the next requests.
    #[track_caller]
    fn assert_even(&self, requests_each: u64, round: &str) {
        let before = self.chosen();
        let more = |now: &BTreeMap<String, u64>| -> BTreeMap<String, u64> {
            now.iter().map(|(name, count)| (name.clone(), count.saturating_sub(before[name]))).collect()
        };
        let counts = until(PATIENCE, "enough requests", || {
            let counts = more(&self.chosen());
            let total: u64 = counts.values().sum();
            if total >= requests_each * UPSTREAMS as u64 { Ok(counts) } else { Err(total.to_string()) }
        });
        let total: u64 = counts.values().sum();
        let starved: Vec<_> = counts.iter().filter(|(_, count)| **count * 2 * (UPSTREAMS as u64) < total).collect();
        assert!(starved.is_empty(), "{round}: {starved:?} of {total}: {counts:?}");
    }
}

fn rounds() -> usize {
    std::env::var("FAIR_SHARE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12)
}

/// Upstreams that go and come back, by ones and by halves; the others stay as they are.
fn assert_each_gets_its_share(balance: &str, requests_each: u64) {
    let _turn = medium();
    let shop = Shop::start(balance);
    let load = Plan::new(Kind::KeepAlive, shop.balancer.http(), "shop.test").rate(500).from("shop-").start();
    for round in 0..rounds() {
        if round % 8 == 7 {
            shop.balancer.restart();
            shop.wait_served(&shop.balancer, UPSTREAMS);
        }
        let some: Vec<usize> = match round % 4 {
            0 => (0..UPSTREAMS).filter(|number| (number + round / 4) % 2 == 0).collect(),
            1 => vec![round % UPSTREAMS],
            _ => (round..round + 4).map(|number| number % UPSTREAMS).collect(),
        };
        if round % 4 == 3 {
            some.iter().for_each(|number| _ = shop.put(*number, 1));
        } else {
            some.iter().for_each(|number| shop.delete(*number));
        }
        // The store's own revision may be that of confgen's key, which confgen does not follow.
        let revision = some.iter().map(|number| shop.put(*number, WEIGHT)).max();
        until(PATIENCE, "confgen to follow", || {
            let status = shop.balancer.api("status");
            if status["applied"].as_i64() >= revision { Ok(()) } else { Err(status.to_string()) }
        });
        shop.balancer.wait_servers(PATIENCE, "http-shop", UPSTREAMS);
        shop.assert_even(requests_each, &format!("round {round}, {some:?} of balance {balance}"));
    }
    load.stop().assert_nothing_lost();
}

#[test]
fn in_turns_after_others_have_come_and_gone() {
    assert_each_gets_its_share("roundrobin", REQUESTS_EACH);
}

#[test]
fn by_chance_after_others_have_come_and_gone() {
    assert_each_gets_its_share("random", REQUESTS_EACH_BY_CHANCE);
}

#[test]
fn by_connections_after_others_have_come_and_gone() {
    assert_each_gets_its_share("leastconn", REQUESTS_EACH);
}

/// A service with less than two requests a second, of whose servers more than half are down for some seconds: HAProxy alone
/// changes the weights.
#[test]
fn in_turns_after_checks_have_passed_again() {
    let _turn = light();
    // confgen brings a server back that isn't checked. These checks come once an hour.
    let profile = "defaults patient\n    mode http\n    balance roundrobin\n    default-server inter 1h\n    \
                   timeout client 1m\n    timeout connect 2s\n    timeout server 1m\n";
    let etcd = Etcd::start();
    etcd.put("http-services/shop/profile", "patient");
    let setup = Setup::new().confgen(&etcd);
    write(setup.folder().join("conf.d/patient.cfg"), profile);
    let shop = Shop::of(etcd, setup.start(), "roundrobin", WEIGHT);
    for round in 0..rounds().div_ceil(2) {
        // The part of the window differs from round to round.
        shop.ask(170);
        let before = shop.balancer.metric(GROWN).unwrap();
        shop.set_health(FLAPPING, "down");
        for _ in 0..3 {
            sleep(COUNTED / 2);
            shop.ask(1);
        }
        shop.set_health(FLAPPING, "up");
        until(PATIENCE, "confgen to see that servers are back", || shop.balancer.metric(GROWN) > Some(before));
        shop.assert_even_now(&format!("round {round}"));
    }
}

const GROWN: &str = "confgen_requeued_sections_total{reason=\"grown\"}";
const STARVED: &str = "confgen_requeued_sections_total{reason=\"starved\"}";

#[test]
fn a_starved_upstream_gets_its_turns_again_once_it_is_found() {
    let _turn = light();
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    let shop = Shop::in_long_windows(etcd, balancer);
    assert_eq!(shop.balancer.metric(STARVED), Some(0.0));
    let starved = shop.starve();
    // It may have been found before, in the middle of requests.
    let found = shop.balancer.metric(STARVED);
    assert!(found > Some(0.0));
    let log = shop.balancer.log("confgen");
    for server in &starved {
        let is_told = |line: &&str| line.contains("upstream starves") && line.contains(server.as_str());
        assert!(log.lines().any(|line| is_told(&line)), "{server}: {log}");
    }
    shop.assert_even_now(&format!("{starved:?} starved"));
    until(PATIENCE, "nobody to starve", || shop.said_to_starve().is_empty());
    assert_eq!(shop.balancer.metric(STARVED), found, "the section is queued again once");
}

/// The upstream that answers for each of many paths.
fn by_path(balancer: &Balancer) -> Vec<String> {
    let ask = |n: usize| Request::get("shop.test", &format!("/{n}")).send(balancer.http()).unwrap().app().to_owned();
    (0..400).map(ask).collect()
}

/// The upstream that answers each of many clients.
fn by_client(balancer: &Balancer) -> Vec<String> {
    let ask = |n: u8| {
        let request = Request::get("shop.test", "/").from(&format!("127.0.{}.{}", n / 20 + 1, n % 20 + 1));
        request.send(balancer.http()).unwrap().app().to_owned()
    };
    (0..200).map(ask).collect()
}

fn assert_hash_keeps_clients(balance: &str, answers: fn(&Balancer) -> Vec<String>) {
    let _turn = light();
    let shop = Shop::start(balance);
    let first = answers(&shop.balancer);
    let names: BTreeSet<_> = first.iter().collect();
    assert_eq!(names.len(), UPSTREAMS, "each upstream has clients: {names:?}");
    // Another balancer has seen nothing of that, and its HAProxy reads the file anew from time to time.
    let other = Balancer::start(&shop.etcd);
    shop.wait_served(&other, UPSTREAMS);
    assert_eq!(answers(&other), first, "two balancers agree");
    // The one that is away loses its clients to the others, and has them again when it is back.
    for round in 0..rounds().div_ceil(3) {
        let away = round * 3 % UPSTREAMS;
        shop.delete(away);
        let balancers = [&shop.balancer, &other];
        for balancer in balancers {
            balancer.wait_servers(PATIENCE, "http-shop", UPSTREAMS - 1);
        }
        if round % 4 == 2 {
            other.restart();
            shop.wait_served(&other, UPSTREAMS - 1);
        }
        let name = &shop.apps[away].name;
        let own = first.iter().filter(|before| *before == name).count() * UPSTREAMS;
        assert!((first.len() / 4..first.len() * 2).contains(&own), "{name} has about a tenth: {own} tenths");
        let meanwhile = answers(&shop.balancer);
        let moved = first.iter().zip(&meanwhile).filter(|(before, now)| before != now && *before != name).count();
        assert_eq!(moved, 0, "clients of other upstreams than {name} stay");
        assert!(!meanwhile.contains(name), "{name} is away");
        assert_eq!(answers(&other), meanwhile, "two balancers agree where the clients of {name} go");
        shop.put(away, WEIGHT);
        for balancer in balancers {
            balancer.wait_servers(PATIENCE, "http-shop", UPSTREAMS);
            assert_eq!(answers(balancer), first, "the clients of {name} are back");
        }
    }
    shop.balancer.restart();
    shop.wait_served(&shop.balancer, UPSTREAMS);
    assert_eq!(answers(&shop.balancer), first, "a restart moves nobody");
}

#[test]
fn a_path_stays_with_its_upstream_on_every_balancer() {
    assert_hash_keeps_clients("uri", by_path);
}

#[test]
fn a_client_stays_with_its_upstream_on_every_balancer() {
    assert_hash_keeps_clients("source", by_client);
}
