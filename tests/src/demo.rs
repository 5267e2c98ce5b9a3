//! The services, apps and requests of `make demo`, on one balancer.

mod guide;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::load::{Kind, Plan, Running};
use crate::{Announce, App, Balancer, Certificate, Etcd, PATIENCE, Setup, port_or_free, write};

/// The first of the ports that the demo takes. They are below those of tests, and below Linux's ephemeral ones.
const FIRST_PORT: u16 = 8900;

/// The name of the balancer: the machine's own would be different everywhere.
const NODE: &str = "lb-1";

/// Long enough to see a crashed app in the console until its lease ends.
const TTL: &str = "15s";

/// A crashed app starts again after this time. Its lease has ended before.
const AWAY: Duration = Duration::from_secs(20);

/// The apps with their services, colors and hosts. `pay` is a service with TLS only, `db` one without HTTP.
const APPS: [(&str, &str, &str, &str); 7] = [
    ("blue-1", "shop", "blue", "web-1"),
    ("blue-2", "shop", "blue", "web-2"),
    ("green-1", "shop", "green", "web-1"),
    ("green-2", "shop", "green", "web-2"),
    ("blog-1", "blog", "", "web-1"),
    ("pay-1", "pay", "", "web-2"),
    ("db-1", "db", "", "web-1"),
];

/// The services' settings that no announcer writes.
const KEYS: [(&str, &str); 5] = [
    ("http-services/shop/active", "blue"),
    ("http-services/shop/preview", "127.0.0.0/8"),
    ("http-services/shop/check", "http /health"),
    ("http-services/blog/balance", "leastconn"),
    ("http-services/pay/tls", "terminate"),
];

/// The services that get requests all the time, with the number a second.
const TRAFFIC: [(&str, Kind, u32); 4] =
    [("shop", Kind::KeepAlive, 30), ("blog", Kind::KeepAlive, 4), ("pay", Kind::Http2, 4), ("db", Kind::PerRequest, 2)];

/// The running demo. Dropping it ends all of it.
pub struct Demo {
    loads: Vec<(&'static str, Running)>,
    apps: Vec<Supervised>,
    balancer: Balancer,
    /// The address of the TCP service `db`.
    db: SocketAddr,
    /// A free port for the reader's own app.
    own_port: u16,
    /// The ports that another program has, so that the demo uses others.
    taken: Vec<u16>,
    etcd: Etcd,
}

/// An app that is started again some time after it has ended, as a container engine would.
struct Supervised {
    app: App,
    made_from: (&'static str, &'static str, &'static str, &'static str),
    ended: Option<Instant>,
}

/// The demo's ports, one after the other.
struct Ports {
    next: u16,
    taken: Vec<u16>,
}

impl Ports {
    fn take(&mut self) -> u16 {
        let port = port_or_free(self.next);
        if port != self.next {
            self.taken.push(self.next);
        }
        self.next += 1;
        port
    }

    fn take_address(&mut self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.take()))
    }
}

impl Demo {
    /// Starts all of it, and waits until every service is served.
    pub fn start() -> Self {
        let mut ports = Ports { next: FIRST_PORT, taken: Vec::new() };
        let [admin, http, https, stats] = std::array::from_fn(|_| ports.take());
        let (db, etcd) = (ports.take_address(), Etcd::on_ports(ports.take(), ports.take()));
        let setup = Setup::at([http, https, stats, admin]).confgen(&etcd).flags(&["--node", NODE]);
        Certificate::of(&["shop.localhost", "pay.localhost"]).write(setup.folder().join("certs/demo.pem"));
        write(setup.folder().join("discoverctl.toml"), format!("endpoints = [\"{}\"]\n", etcd.endpoints()));
        KEYS.iter().for_each(|(key, value)| _ = etcd.put(key, *value));
        etcd.put("tcp-services/db/ports", db.to_string());
        // No program has this port. The walk-through begins with this upstream.
        etcd.put("http-services/blog/upstreams/blog-2", ports.take_address().to_string());
        let apps = APPS.map(|app| Supervised::start(ports.take_address(), app, &etcd));
        let own_port = ports.take();
        let balancer = setup.start();
        // A color that isn't active is up too, with weight 0. HAProxy finds out that `blog-2` is down.
        for (section, count) in [("http-shop", 4), ("http-blog", 1), ("http-pay", 1), ("tcp-db", 1)] {
            balancer.wait_servers(PATIENCE, section, count);
        }
        balancer.wait_settled(PATIENCE);
        let loads = TRAFFIC.map(|(service, kind, rate)| {
            let target = match (service, kind) {
                ("db", _) => db,
                (_, Kind::Http2) => balancer.https(),
                _ => balancer.http(),
            };
            (service, Plan::new(kind, target, &format!("{service}.localhost")).rate(rate).workers(2).start())
        });
        Self { loads: loads.into(), apps: apps.into(), balancer, db, own_port, taken: ports.taken, etcd }
    }

    /// Starts apps again 20 s after their end. The caller repeats this.
    pub fn tend(&mut self) {
        for it in &mut self.apps {
            if it.app.process().running() {
                continue;
            }
            if it.ended.get_or_insert_with(Instant::now).elapsed() > AWAY {
                *it = Supervised::start(it.app.address, it.made_from, &self.etcd);
            }
        }
    }

    /// The URL of the console.
    pub fn console(&self) -> String {
        format!("http://{}/", self.balancer.admin())
    }

    /// The balancer's folder, with its files and logs.
    pub fn folder(&self) -> &Path {
        self.balancer.folder()
    }

    /// Ends the traffic, and says what came of it.
    pub fn finish(mut self) -> String {
        let mut words = String::new();
        for (service, load) in self.loads.drain(..) {
            let report = load.stop();
            let lost = report.failures.len();
            let _ = writeln!(words, "  {service:<5} {:>7} requests, {lost} failed", report.good + lost as u64);
            if let Some(failure) = report.failures.first() {
                let _ = writeln!(words, "        the first after {:.0?}: {}", failure.at, failure.detail);
            }
        }
        words
    }
}

impl Supervised {
    fn start(
        address: SocketAddr,
        made_from: (&'static str, &'static str, &'static str, &'static str),
        etcd: &Etcd,
    ) -> Self {
        let (name, service, color, host) = made_from;
        let domain = format!("{service}.localhost");
        let mut flags = vec!["--service", service, "--host-name", host, "--ttl", TTL];
        flags.extend(if service == "db" { ["--type", "tcp"] } else { ["--domain", &domain] });
        let mut own = Vec::new();
        if !color.is_empty() {
            flags.extend(["--color", color]);
            own.extend(["--color", color]);
        }
        let app = App::launch_at(address, name, Some(Announce { etcd, flags: &flags }), &own);
        Self { app, made_from, ended: None }
    }
}
