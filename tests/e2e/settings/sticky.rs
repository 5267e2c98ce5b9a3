//! `sticky`: a client stays with its upstream, by a cookie or by its address, whatever happens to the others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

use lab::http::Request;
use lab::{App, Balancer, Etcd, Ground, PATIENCE, free_address, light, until};

/// So long a process of HAProxy 2.6 has to live before it tells its successor what it remembers.
const REMEMBERS_AFTER: u64 = 6;

/// How a client is known.
enum Known {
    /// By what it was given; a browser has one such jar for a host.
    Cookies(Rc<RefCell<BTreeMap<String, String>>>),
    /// By its address.
    Address(String),
}

struct Client {
    known: Known,
    host: &'static str,
    path: &'static str,
    to: SocketAddr,
}

impl Client {
    /// Who answers it.
    fn ask(&self) -> String {
        let request = Request::get(self.host, self.path);
        match &self.known {
            Known::Address(address) => request.from(address).send(self.to).unwrap().app().to_owned(),
            Known::Cookies(cookies) => {
                let sent: Vec<_> = cookies.borrow().iter().map(|(name, value)| format!("{name}={value}")).collect();
                let request = if sent.is_empty() { request } else { request.header("Cookie", &sent.join("; ")) };
                let response = request.send(self.to).unwrap();
                for (name, value) in response.headers.iter().filter(|(name, _)| name == "set-cookie") {
                    let (key, value) =
                        value.split(';').next().unwrap().split_once('=').unwrap_or_else(|| panic!("{name}: {value}"));
                    assert!(!value.is_empty(), "its cookie is taken away: {response:?}");
                    cookies.borrow_mut().insert(key.to_owned(), value.to_owned());
                }
                response.app().to_owned()
            }
        }
    }

    fn label(&self) -> String {
        match &self.known {
            Known::Cookies(_) => format!("a cookie of {}{}", self.host, self.path),
            Known::Address(address) => format!("{address} at {} of {}", self.to.port(), self.host),
        }
    }
}

/// Clients, each with the upstream that it is to stay with.
struct Crowd(Vec<(Client, String)>);

impl Crowd {
    /// Each asks once, and stays from then on.
    fn of(clients: impl Iterator<Item = Client>) -> Self {
        Self(clients.map(|client| (client.ask(), client)).map(|(app, client)| (client, app)).collect())
    }

    #[track_caller]
    fn assert_stay(&self, place: &Place, when: &str) {
        for (client, app) in &self.0 {
            let tables =
                || ["http-source", "tcp-source"].map(|table| place.balancer.ask(&format!("show table {table}")));
            assert_eq!(&client.ask(), app, "{}: {when}\n{}", client.label(), tables().join("\n"));
        }
    }

    fn apps(&self) -> BTreeSet<&str> {
        self.0.iter().map(|(_, app)| app.as_str()).collect()
    }
}

struct Place {
    balancer: Balancer,
    etcd: Etcd,
    apps: [App; 3],
    tcp: SocketAddr,
}

/// Each has the three apps, as far as they are announced.
const SERVICES: [&str; 4] =
    ["http-services/cookie", "http-services/below", "http-services/source", "tcp-services/source"];

const BACKENDS: [&str; 4] = ["http-cookie", "http-below", "http-source", "tcp-source"];

impl Place {
    fn new() -> Self {
        let (build, tcp) = (Ground::build(), free_address());
        for (key, value) in [
            ("http-services/cookie/domain", "cookie.test"),
            ("http-services/cookie/sticky", "cookie"),
            // Another service of the same host: neither may take the other's cookie for its own.
            ("http-services/below/domain", "cookie.test"),
            ("http-services/below/path", "/below"),
            ("http-services/below/sticky", "cookie"),
            ("http-services/source/domain", "source.test"),
            ("http-services/source/sticky", "source"),
            ("tcp-services/source/sticky", "source"),
            ("tcp-services/source/ports", &tcp.to_string()),
        ] {
            build.etcd.put(key, value);
        }
        let Ground { etcd, balancer, .. } = build.start();
        let place = Self { balancer, apps: ["one", "two", "three"].map(App::alone), tcp, etcd };
        place.announce(0, "blue");
        place.announce(1, "blue");
        place.wait_servers(2);
        place
    }

    fn announce(&self, app: usize, color: &str) {
        let App { name, address, .. } = &self.apps[app];
        let record = format!(r#"{{"address":"{address}","color":"{color}"}}"#);
        for service in SERVICES {
            self.etcd.put(&format!("{service}/upstreams/{name}"), record.clone());
        }
    }

    fn activate(&self, color: &str) {
        for service in SERVICES {
            self.etcd.put(&format!("{service}/active"), color);
        }
    }

    /// A new client of each service, known by its cookie or by this address.
    fn clients(&self, address: &str) -> Vec<Client> {
        let http = self.balancer.http();
        let jar = Rc::default();
        let cookies = || Known::Cookies(Rc::clone(&jar));
        let at = || Known::Address(address.to_owned());
        vec![
            Client { known: cookies(), host: "cookie.test", path: "/", to: http },
            Client { known: cookies(), host: "cookie.test", path: "/below", to: http },
            Client { known: at(), host: "source.test", path: "/", to: http },
            Client { known: at(), host: "tcp", path: "/", to: self.tcp },
        ]
    }

    fn crowd(&self, addresses: std::ops::Range<u8>) -> Crowd {
        Crowd::of(addresses.flat_map(|n| self.clients(&format!("127.0.4.{n}"))))
    }

    fn wait_servers(&self, count: usize) {
        for backend in BACKENDS {
            self.balancer.wait_servers(PATIENCE, backend, count);
        }
    }

    /// Until the file has so many lines that say so: a restart brings what stands in it.
    fn wait_filed(&self, words: &str, count: usize) {
        until(PATIENCE, &format!("{count} times `{words}` in the file"), || {
            self.balancer.file().matches(words).count() == count
        });
    }

    fn wait_state(&self, backend: &str, holds: impl Fn(&str) -> bool) {
        until(PATIENCE, backend, || {
            let state = self.balancer.ask(&format!("show stat {backend} 4 -1"));
            if holds(&state) { Ok(()) } else { Err(state) }
        });
    }

    /// Restarts HAProxy once it is old enough to pass on what it remembers.
    fn restart(&self) {
        until(PATIENCE, "HAProxy to be old enough", || {
            let info = self.balancer.ask("show info");
            let uptime = info.lines().find_map(|line| line.strip_prefix("Uptime_sec: ")?.parse::<u64>().ok());
            uptime.is_some_and(|uptime| uptime >= REMEMBERS_AFTER)
        });
        self.balancer.restart();
        self.balancer.wait_one_haproxy(PATIENCE);
    }
}

#[test]
fn a_client_stays_with_its_upstream() {
    let _turn = light();
    let place = Place::new();
    let crowd = place.crowd(1..5);
    assert_eq!(crowd.apps(), ["one", "two"].into(), "clients are spread");
    crowd.assert_stay(&place, "nothing has happened");

    // Another server, while HAProxy runs: nobody moves there, and who comes new may get it, and stays.
    let worker = place.balancer.worker();
    place.announce(2, "green");
    place.wait_servers(3);
    crowd.assert_stay(&place, "another server has come");
    let later = place.crowd(5..11);
    assert!(later.apps().contains("three"), "the new server is used");
    later.assert_stay(&place, "some have a server that was added");
    assert_eq!(place.balancer.worker(), worker, "without a restart");

    // A restart: the new process knows them all, whoever served them.
    place.wait_filed("server three ", BACKENDS.len());
    place.restart();
    crowd.assert_stay(&place, "HAProxy has restarted");
    later.assert_stay(&place, "HAProxy has restarted");

    // Colors: the inactive one takes no new client, and keeps its own; over a restart too.
    place.activate("green");
    for backend in BACKENDS {
        place.wait_state(backend, |state| state.lines().filter(|line| line.contains(",DRAIN,")).count() == 2);
    }
    for when in ["the color is inactive", "the color is inactive, and HAProxy has restarted"] {
        crowd.assert_stay(&place, when);
        later.assert_stay(&place, when);
        let new = place.crowd(if when.contains("restarted") { 14..17 } else { 11..14 });
        assert_eq!(new.apps(), ["three"].into(), "{when}");
        if !when.contains("restarted") {
            place.wait_filed(" weight 0", 2 * BACKENDS.len());
            place.restart();
        }
    }
    place.activate("blue green");

    // One server goes: its clients find another and stay there, the others don't notice.
    for service in SERVICES {
        place.etcd.delete(&format!("{service}/upstreams/one"));
    }
    place.wait_servers(2);
    let (moved, others): (Vec<_>, Vec<_>) = crowd.0.into_iter().partition(|(_, app)| app == "one");
    assert!(!moved.is_empty() && !others.is_empty());
    Crowd(others).assert_stay(&place, "another server has gone");
    let moved = Crowd::of(moved.into_iter().map(|(client, _)| client));
    assert!(!moved.apps().contains("one"));
    moved.assert_stay(&place, "they have found another server");
}
