//! One balancer, and a service for each row.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::LazyLock;

use lab::http::{Request, Response};
use lab::{
    App, Authority, Balancer, Certificate, Etcd, PATIENCE, Setup, Speaker, Speakers, free_address, until, write,
};

/// What an operator keeps: upstreams get half a second, in place of a minute.
const PROFILES: &str = "defaults hasty
    timeout client 30s
    timeout connect 2s
    timeout server 500ms
";

type Rows = &'static [(&'static str, &'static [&'static str], &'static [(&'static str, &'static str)])];

/// A service by its name, the upstreams with their weights, and what it is set to. Its host is `<name>.test` unless said.
#[rustfmt::skip]
const HTTP: Rows = &[
    ("turns", &["one", "two"], &[]),
    ("weighted", &["one 60", "two 20"], &[("balance", "roundrobin")]),
    ("fewest", &["one", "two"], &[("balance", "leastconn")]),
    ("chance", &["one", "two"], &[("balance", "random")]),
    ("by-source", &["one", "two"], &[("balance", "source")]),
    ("by-uri", &["one", "two"], &[("balance", "uri")]),
    ("spare", &["one", "two backup"], &[]),
    ("queued", &["one"], &[("maxconn", "1")]),
    ("unqueued", &["one"], &[]),
    ("hasty", &["one"], &[("profile", "hasty")]),
    ("slow-start", &["one"], &[("slowstart", "60s")]),
    ("allowed", &["one"], &[("allow", "127.0.0.9, 127.0.2.0/24")]),
    ("strict", &["one"], &[("hsts", "180d include-subdomains preload")]),
    ("forgetful", &["one"], &[("hsts", "off")]),
    ("alive", &["one"], &[("check", "http HEAD /health?x=1 200-299")]),
    ("sick", &["one"], &[("check", "http /health 204")]),
    ("named", &["named"], &[("check", "http /")]),
    ("dead", &["nobody"], &[]),
    ("unchecked", &["nobody"], &[("check", "off")]),
    ("proxied-1", &["proxied"], &[("proxy-protocol", "v1"), ("check", "http /")]),
    ("proxied-2", &["proxied"], &[("proxy-protocol", "v2"), ("check", "http /")]),
    ("head-1", &["first"], &[("proxy-protocol", "v1"), ("check", "off")]),
    ("head-2", &["second"], &[("proxy-protocol", "v2"), ("check", "off")]),
    ("clear-2", &["h2c"], &[("proto", "h2"), ("check", "http /")]),
    ("clear-1", &["proxied"], &[("proto", "h1"), ("proxy-protocol", "v2")]),
    ("secure", &["secure"], &[("tls", "reencrypt"), ("verify", "internal.pem")]),
    ("fixed", &["secure"], &[("domain", "*.fixed.test"), ("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "up.test")]),
    ("wild", &["secure"], &[("domain", "*.wild.test"), ("tls", "reencrypt"), ("verify", "internal.pem"), ("check", "off")]),
    ("secure-2", &["h2"], &[("tls", "reencrypt"), ("verify", "internal.pem"), ("proto", "h2"), ("check", "http /")]),
    ("sealed", &["sealed"], &[("tls", "reencrypt"), ("verify", "internal.pem"), ("proxy-protocol", "v2"), ("check", "http /")]),
    ("misnamed", &["secure"], &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "other.test"), ("check", "off")]),
    ("misnamed-check", &["secure"], &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "other.test")]),
    ("unbelieved", &["secure"], &[("tls", "reencrypt"), ("sni", "up.test"), ("check", "off")]),
    ("unverified", &["open"], &[("tls", "reencrypt"), ("verify", "off")]),
    ("quiet", &["open"], &[("tls", "reencrypt"), ("verify", "off"), ("sni", "off")]),
    ("nameless", &["nameless"], &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "off")]),
    ("nameless-other", &["nameless"], &[("tls", "reencrypt"), ("verify", "internal.pem"), ("sni", "off"), ("check", "off")]),
    ("unknown", &["open"], &[("tls", "reencrypt"), ("verify", "no-such.pem")]),
];

/// The same for TCP; each gets the ports that it needs.
#[rustfmt::skip]
const TCP: Rows = &[
    ("turns", &["one", "two"], &[]),
    ("fewest", &["one", "two"], &[("balance", "leastconn")]),
    ("chance", &["one", "two"], &[("balance", "random")]),
    ("by-source", &["one", "two"], &[("balance", "source")]),
    ("spare", &["one", "two backup"], &[]),
    ("queued", &["one"], &[("maxconn", "1")]),
    ("hasty", &["one"], &[("profile", "hasty")]),
    ("slow-start", &["one"], &[("slowstart", "60s")]),
    ("allowed", &["one"], &[("allow", "127.0.0.9 127.0.2.0/24")]),
    ("alive", &["one"], &[("check", "http /health")]),
    ("sick", &["one"], &[("check", "http /health 204")]),
    ("dead", &["nobody"], &[("check", "tcp")]),
    ("unchecked", &["nobody"], &[("check", "off")]),
    ("proxied-1", &["proxied"], &[("proxy-protocol", "v1"), ("check", "http /")]),
    ("proxied-2", &["proxied"], &[("proxy-protocol", "v2"), ("check", "http /")]),
    ("encrypted", &["one"], &[("tls", "terminate")]),
];

pub struct Scene {
    pub balancer: Balancer,
    pub etcd: Etcd,
    /// Listeners that nobody serves but the test that looks at what comes.
    pub bare: BTreeMap<&'static str, TcpListener>,
    /// Where each TCP service is, on two ports.
    pub ports: BTreeMap<&'static str, [SocketAddr; 2]>,
    /// What HTTPS and TLS are served with, by name.
    pub certificates: BTreeMap<&'static str, Certificate>,
    _apps: Vec<App>,
    _speakers: Speakers,
}

pub static SCENE: LazyLock<Scene> = LazyLock::new(Scene::new);

impl Scene {
    fn new() -> Self {
        let etcd = Etcd::start();
        let apps: Vec<App> = ["one", "two"].into_iter().map(App::alone).collect();
        let authority = Authority::new("internal");
        let speakers = speakers(&authority);
        let bare: BTreeMap<&str, TcpListener> =
            ["first", "second"].map(|name| (name, TcpListener::bind("127.0.0.1:0").unwrap())).into();
        let mut upstreams: BTreeMap<String, SocketAddr> =
            speakers.addresses().map(|(name, address)| (name.to_owned(), address)).collect();
        upstreams.extend(apps.iter().map(|app| (app.name.clone(), app.address)));
        upstreams.extend(bare.iter().map(|(name, it)| ((*name).to_owned(), it.local_addr().unwrap())));
        upstreams.insert("nobody".to_owned(), free_address());

        let mut keys: BTreeMap<String, String> = BTreeMap::new();
        let mut put = |kind: &str, rows: Rows| {
            for (service, members, settings) in rows {
                let key = |name: &str| format!("{kind}-services/{service}/{name}");
                if kind == "http" {
                    keys.insert(key("domain"), format!("{service}.test"));
                }
                keys.extend(settings.iter().map(|(name, value)| (key(name), (*value).to_owned())));
                for member in *members {
                    let (id, record) = record(member, &upstreams);
                    keys.insert(key(&format!("upstreams/{id}")), record);
                }
            }
        };
        put("http", HTTP);
        put("tcp", TCP);
        let ports: BTreeMap<&str, [SocketAddr; 2]> =
            TCP.iter().map(|(service, ..)| (*service, [free_address(), free_address()])).collect();
        keys.extend(
            ports.iter().map(|(service, [a, b])| (format!("tcp-services/{service}/ports"), format!("{a}, {b}"))),
        );
        etcd.put_all(keys.into_iter().map(|(key, value)| (key, value.into_bytes())));

        let setup = Setup::new();
        let certificates = ["a.test", "b.test"].map(|name| (name, Certificate::of(&[name])));
        for (name, certificate) in &certificates {
            certificate.write(setup.folder().join(format!("certs/{name}.pem")));
        }
        write(setup.folder().join("ca/internal.pem"), authority.pem());
        write(setup.folder().join("conf.d/profiles.cfg"), PROFILES);
        let balancer = setup.confgen(&etcd).start();
        balancer.wait_status(PATIENCE, "turns.test", "/", 200);
        balancer.wait_settled(PATIENCE);
        let certificates = certificates.into();
        Self { balancer, etcd, bare, ports, certificates, _apps: apps, _speakers: speakers }
    }

    /// `GET /` of an HTTP service.
    pub fn http(&self, service: &str) -> Response {
        self.get(service, "/")
    }

    /// A path of an HTTP service.
    pub fn get(&self, service: &str, target: &str) -> Response {
        Request::get(&format!("{service}.test"), target).send(self.balancer.http()).unwrap()
    }

    /// `GET /` of an HTTP service over HTTPS.
    pub fn https(&self, service: &str) -> Response {
        let host = format!("{service}.test");
        Request::get(&host, "/").tls(&host).send(self.balancer.https()).unwrap()
    }

    /// Where a TCP service is.
    pub fn tcp(&self, service: &str) -> SocketAddr {
        self.ports[service][0]
    }

    /// A server's columns of `show stat` by their names.
    pub fn stat(&self, backend: &str, server: &str) -> BTreeMap<String, String> {
        self.balancer.server_row(backend, server)
    }

    /// Waits until HAProxy says so of a server, and of its last check.
    #[track_caller]
    pub fn wait_check(&self, backend: &str, server: &str, status: &str, check: &str) {
        until(PATIENCE, &format!("{backend}/{server}: {status} {check}"), || {
            let row = self.stat(backend, server);
            let seen = (row["status"].as_str(), row["check_status"].as_str());
            if seen == (status, check) { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }
}

/// An upstream's id and record, of its name and what is said of it.
fn record(member: &str, upstreams: &BTreeMap<String, SocketAddr>) -> (String, String) {
    let (id, said) = member.split_once(' ').unwrap_or((member, ""));
    let address = upstreams[id];
    let record = match said {
        "" => address.to_string(),
        "backup" => format!(r#"{{"address":"{address}","backup":true}}"#),
        weight => format!(r#"{{"address":"{address}","weight":{weight}}}"#),
    };
    (id.to_owned(), record)
}

fn speakers(authority: &Authority) -> Speakers {
    let known = authority.issue(&["secure.test", "secure-2.test", "sealed.test", "up.test", "a.wild.test"]);
    let (nameless, own) = (authority.issue(&["nameless.test"]), Certificate::of(&["open.test"]));
    Speakers::start(&[
        Speaker::new("named", "").only("{ req.hdr(host) named.test }"),
        Speaker::new("proxied", "accept-proxy"),
        Speaker::new("h2c", "proto h2"),
        // Whoever names none of its names is refused in the handshake.
        Speaker::new("secure", "strict-sni").tls(&known),
        Speaker::new("h2", "strict-sni alpn h2").tls(&known).only("{ ssl_fc_alpn h2 }"),
        Speaker::new("sealed", "strict-sni accept-proxy").tls(&known),
        Speaker::new("nameless", "").tls(&nameless),
        Speaker::new("open", "").tls(&own),
    ])
}
