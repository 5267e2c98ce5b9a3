//! Servers that are added while HAProxy runs are spoken to, and checked, as those of the file.

use lab::http::{Request, Response};
use lab::{App, Authority, Balancer, Etcd, PATIENCE, Setup, Speaker, Speakers, light, until, write};

/// A service without an upstream: its name, which one it is to get, how it is set, and what its check comes to.
type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("plain", "one", &[], "L4OK"),
    ("health", "one", &[("check", "http /health"), ("maxconn", "5"), ("slowstart", "10s")], "L7OK"),
    ("proxied-1", "proxied", &[("proxy-protocol", "v1"), ("check", "http /")], "L7OK"),
    ("proxied-2", "proxied", &[("proxy-protocol", "v2"), ("check", "http /")], "L7OK"),
    ("clear-2", "h2c", &[("proto", "h2"), ("check", "http /")], "L7OK"),
    ("secure", "secure", &[("tls", "reencrypt"), ("verify", "internal.pem")], "L6OK"),
    ("fixed", "secure", &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "up.test"), ("check", "http /")], "L7OK"),
    ("secure-2", "h2", &[("tls", "reencrypt"), ("verify", "internal.pem"), ("proto", "h2"), ("check", "http /")], "L7OK"),
    ("sealed", "sealed", &[("tls", "reencrypt"), ("verify", "internal.pem"), ("proxy-protocol", "v2"), ("check", "http /")], "L7OK"),
    ("unverified", "secure", &[("tls", "reencrypt"), ("verify", "off"), ("sni", "up.test")], "L6OK"),
    ("nameless", "open", &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "off")], "L6OK"),
    ("unbelieved", "secure", &[("tls", "reencrypt"), ("sni", "up.test")], "L6RSP"),
    ("misnamed", "secure", &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "other.test")], "L6RSP"),
];

struct Place {
    balancer: Balancer,
    etcd: Etcd,
    app: App,
    speakers: Speakers,
}

impl Place {
    fn new(rows: &[Row], profiles: &str) -> Self {
        let etcd = Etcd::start();
        let authority = Authority::new("internal");
        let known = authority.issue(&["secure.test", "secure-2.test", "sealed.test", "up.test"]);
        let nameless = authority.issue(&["nameless.test"]);
        let speakers = Speakers::start(&[
            Speaker::new("proxied", "accept-proxy"),
            Speaker::new("h2c", "proto h2"),
            Speaker::new("secure", "strict-sni").tls(&known),
            Speaker::new("h2", "strict-sni alpn h2").tls(&known).only("{ ssl_fc_alpn h2 }"),
            Speaker::new("sealed", "strict-sni accept-proxy").tls(&known),
            Speaker::new("open", "").tls(&nameless),
        ]);
        let mut keys = Vec::new();
        for (service, _, settings, _) in rows {
            let key = |name: &str| format!("http-services/{service}/{name}");
            keys.push((key("domain"), format!("{service}.test")));
            keys.extend(settings.iter().map(|(name, value)| (key(name), (*value).to_owned())));
        }
        etcd.put_all(keys.into_iter().map(|(key, value)| (key, value.into_bytes())));
        let setup = Setup::new();
        write(setup.folder().join("ca/internal.pem"), authority.pem());
        write(setup.folder().join("conf.d/profiles.cfg"), profiles);
        let balancer = setup.confgen(&etcd).start();
        let (first, ..) = rows[0];
        balancer.wait_status(PATIENCE, &format!("{first}.test"), "/", 503);
        balancer.wait_settled(PATIENCE);
        Self { balancer, etcd, app: App::alone("one"), speakers }
    }

    fn add(&self, service: &str, upstream: &str) {
        let address = if upstream == "one" { self.app.address } else { self.speakers.at(upstream) };
        self.etcd.put(&format!("http-services/{service}/upstreams/{upstream}"), address.to_string());
    }

    fn https(&self, service: &str) -> Response {
        let host = format!("{service}.test");
        Request::get(&host, "/").tls(&host).send(self.balancer.https()).unwrap()
    }
}

#[test]
fn an_added_server_is_spoken_to_as_those_of_the_file() {
    let _turn = light();
    let place = Place::new(ROWS, "");
    let worker = place.balancer.worker();
    for (service, upstream, ..) in ROWS {
        place.add(service, upstream);
    }
    for restarted in [false, true] {
        for (service, upstream, _, check) in ROWS {
            let good = check.ends_with("OK");
            let status = if good { "UP" } else { "DOWN" };
            until(PATIENCE, &format!("{service}: {status} {check}, restarted: {restarted}"), || {
                let backend = format!("http-{service}");
                // It comes within milliseconds.
                let table = place.balancer.ask(&format!("show servers state {backend}"));
                if !table.contains(&format!(" {upstream} ")) {
                    return Err(table);
                }
                let row = place.balancer.server_row(&backend, upstream);
                // One that has not been checked for long says `UP 1/3`.
                let seen = (row["status"].clone(), row["check_status"].clone());
                if seen.0 == status && seen.1 == *check { Ok(()) } else { Err(format!("{seen:?}")) }
            });
            let response = place.https(service);
            assert_eq!(
                response.status,
                if good { 200 } else { 503 },
                "{service}, restarted: {restarted}: {response:?}"
            );
        }
        if !restarted {
            assert_eq!(place.balancer.worker(), worker, "without a restart");
            place.balancer.wait_in_sync(PATIENCE);
            place.balancer.restart();
            place.balancer.wait_one_haproxy(PATIENCE);
        }
    }
}

/// A profile that says something of servers: `add server` takes nothing over from it, so they come by restart.
#[test]
fn a_server_that_a_profile_tunes_comes_by_restart() {
    let _turn = light();
    let profile = "defaults tuned\n    timeout client 30s\n    timeout connect 2s\n    timeout server 30s\n    \
                   default-server ssl verify none sni str(up.test) check-sni up.test\n";
    let place = Place::new(&[("tuned", "secure", &[("profile", "tuned")], "")], profile);
    let worker = place.balancer.worker();
    place.add("tuned", "secure");
    let response = place.balancer.wait_status(PATIENCE, "tuned.test", "/", 200);
    assert_eq!(response.line("sni"), Some("up.test"), "{response:?}");
    // For a moment the old one answers too.
    until(PATIENCE, "another process", || place.balancer.worker() != worker);
    // It goes without a restart, and comes back.
    place.balancer.wait_one_haproxy(PATIENCE);
    let worker = place.balancer.worker();
    place.etcd.delete("http-services/tuned/upstreams/secure");
    place.balancer.wait_status(PATIENCE, "tuned.test", "/", 503);
    assert_eq!(place.balancer.worker(), worker);
    place.add("tuned", "secure");
    let response = place.balancer.wait_status(PATIENCE, "tuned.test", "/", 200);
    assert_eq!(response.line("sni"), Some("up.test"), "{response:?}");
}
