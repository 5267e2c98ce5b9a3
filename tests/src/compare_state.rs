//! What the store asks for, what the file says and what HAProxy runs: each read by itself, in one form to compare.
//!
//! None of it is read by the project's own code. Of what may stand in a store it knows the plain part, and panics at the
//! rest: a comparison must not be fooled by what it doesn't understand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;

use crate::{Balancer, Etcd, PREFIX};

/// What a server is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Takes requests with this weight.
    Serves(u16),
    /// Takes sticky clients only.
    Drained,
    /// Takes no new request.
    Maintenance,
}

/// One side's servers and routes. Services of HTTP only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Backends, whether or not they have servers.
    pub backends: BTreeSet<String>,
    /// By `backend/server`.
    pub servers: BTreeMap<String, (SocketAddr, Duty)>,
    /// The map of hosts, as HAProxy has it.
    pub hosts: BTreeMap<String, String>,
    /// The map of paths.
    pub paths: BTreeMap<String, String>,
    /// The map of hosts whose TLS is passed through.
    pub passthrough: BTreeMap<String, String>,
}

impl Mirror {
    /// What the keys of `http-services/` ask for. `path`, `domain`, `active`, `upstreams/` and `overrides/` are read, and
    /// whether `tls` is `passthrough`; other settings change nothing that is compared. No host may be claimed twice.
    pub fn wanted(etcd: &Etcd) -> Self {
        let mut services: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        for (key, value) in etcd.entries("http-services/") {
            let below = format!("{PREFIX}http-services/");
            let (service, leaf) =
                key.strip_prefix(&below).and_then(|key| key.split_once('/')).expect("a service's key");
            services.entry(service.to_owned()).or_default().insert(leaf.to_owned(), value);
        }
        let mut mirror = Self::default();
        for (service, keys) in &services {
            let backend = format!("http-{service}");
            for (id, server) in servers(keys) {
                mirror.servers.insert(format!("{backend}/{id}"), server);
            }
            let words =
                |leaf: &str| keys.get(leaf).map(|value| text(value).split([' ', ',']).map(str::to_owned).collect());
            let domains: Vec<String> = words("domain").unwrap_or_default();
            let paths: Vec<String> = words("path").unwrap_or_else(|| vec!["/".to_owned()]);
            let passes_through = keys.get("tls").is_some_and(|tls| tls == b"passthrough");
            let requests = if passes_through { "discover-passthrough" } else { &backend };
            for domain in &domains {
                mirror.hosts.insert(domain.clone(), domain.clone());
                if passes_through {
                    mirror.passthrough.insert(domain.clone(), backend.clone());
                }
                for path in &paths {
                    let key = format!("{domain}{}/", path.trim_end_matches('/'));
                    assert!(mirror.paths.insert(key.clone(), requests.to_owned()).is_none(), "{key} is claimed twice");
                }
            }
            mirror.backends.insert(backend);
        }
        mirror
    }

    /// What `haproxy.cfg` and the maps that it names say.
    ///
    /// # Errors
    /// What in it can't be read, or stands there twice.
    pub fn filed(balancer: &Balancer) -> Result<Self, String> {
        let file = balancer.file();
        let mut mirror = Self::default();
        let mut backend = "";
        for line in file.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["backend", name, ..] => {
                    backend = name;
                    // What is no service's.
                    if !backend.starts_with("discover-") {
                        mirror.backends.insert(backend.to_owned());
                    }
                }
                ["server", name, ..] if is_the_inner_hop(backend, name) => {}
                ["server", name, address, options @ ..] => {
                    let server = (address.parse().map_err(|_| line.to_owned())?, duty_in_file(options));
                    if mirror.servers.insert(format!("{backend}/{name}"), server).is_some() {
                        return Err(format!("{backend}/{name} stands twice in the file"));
                    }
                }
                _ => {}
            }
        }
        let mut maps = file.split("map_str(").skip(1).filter_map(|rest| rest.split(')').next());
        let folder = maps.find_map(|path| path.strip_suffix("/hosts.map")).ok_or("no map of hosts in the file")?;
        let folder = PathBuf::from(folder);
        let map = |name: &str| {
            let text = std::fs::read_to_string(folder.join(name)).map_err(|error| error.to_string())?;
            entries(text.lines().filter_map(|line| line.split_once(' ')))
        };
        (mirror.hosts, mirror.paths, mirror.passthrough) =
            (map("hosts.map")?, map("paths.map")?, map("passthrough.map")?);
        Ok(mirror)
    }

    /// What HAProxy says that it runs. Of its backends those with servers.
    ///
    /// # Errors
    /// That it can't be reached, or what it has twice.
    pub fn running(balancer: &Balancer) -> Result<Self, String> {
        let ask = |command: &str| balancer.try_ask(command).map_err(|error| error.to_string());
        let mut mirror = Self::default();
        let state = ask("show servers state")?;
        let header = state.lines().nth(1).ok_or("no state of servers")?.trim_start_matches("# ");
        let column = |name: &str| header.split(' ').position(|word| word == name).ok_or_else(|| state.clone());
        let columns = ["be_name", "srv_name", "srv_addr", "srv_port", "srv_admin_state", "srv_uweight"].map(column);
        let [backend, name, address, port, admin, weight] = columns;
        let (backend, name, address, port, admin, weight) = (backend?, name?, address?, port?, admin?, weight?);
        for line in state.lines().skip(2).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split(' ').collect();
            if is_the_inner_hop(words[backend], words[name]) {
                continue;
            }
            let key = format!("{}/{}", words[backend], words[name]);
            let parse = |word: &str| word.parse::<u16>().map_err(|_| line.to_owned());
            let ip = words[address].parse().map_err(|_| line.to_owned())?;
            let duty = duty_of(parse(words[admin])?, parse(words[weight])?);
            mirror.servers.insert(key, (SocketAddr::new(ip, parse(words[port])?), duty));
            mirror.backends.insert(words[backend].to_owned());
        }
        let list = ask("show map")?;
        let paths = list.lines().filter_map(|line| line.split_once(" (")?.1.split_once(") ")).map(|(path, _)| path);
        for path in paths {
            let map = match path.rsplit('/').next() {
                Some("hosts.map") => &mut mirror.hosts,
                Some("paths.map") => &mut mirror.paths,
                Some("passthrough.map") => &mut mirror.passthrough,
                _ => continue,
            };
            let content = ask(&format!("show map {path}"))?;
            // "0x55ba7cfcdf50 a.com http-shop"
            let pairs = content.lines().filter_map(|line| line.split_once(' ')?.1.split_once(' '));
            *map = entries(pairs)?;
        }
        Ok(mirror)
    }

    /// Whether store, file, maps and HAProxy are one.
    ///
    /// # Errors
    /// Where two of them differ, with the first few differences.
    pub fn agree(balancer: &Balancer, etcd: &Etcd) -> Result<Self, String> {
        Self::agree_with(Self::wanted(etcd), balancer)
    }

    /// The same for a store that was read before.
    ///
    /// # Errors
    /// As [`Mirror::agree`].
    pub fn agree_with(wanted: Self, balancer: &Balancer) -> Result<Self, String> {
        differ("the store", &wanted, "the file", &Self::filed(balancer)?)?;
        wanted.runs_on(balancer)?;
        Ok(wanted)
    }

    /// Whether HAProxy runs this, whatever the file says.
    ///
    /// # Errors
    /// Where it doesn't, with the first few differences.
    pub fn runs_on(&self, balancer: &Balancer) -> Result<(), String> {
        let mut running = Self::running(balancer)?;
        // An empty backend of a service that is gone stays until the next restart, and does no harm.
        running.backends.clone_from(&self.backends);
        differ("the store", self, "HAProxy", &running)
    }
}

/// The one server that is no upstream: from the frontend that reads server names to the one that ends TLS.
fn is_the_inner_hop(backend: &str, name: &str) -> bool {
    (backend, name) == ("discover-terminated", "discover-web")
}

/// The servers of one service: the strictest of what its record, the operator and the active colors say.
fn servers(keys: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, (SocketAddr, Duty)> {
    let shares: Option<BTreeMap<&str, Option<f64>>> = keys.get("active").map(|value| {
        let share = |word| match str::split_once(word, '=') {
            Some((color, share)) => (color, Some(share.parse().expect("a share"))),
            None => (word, None),
        };
        text(value).split(' ').map(share).collect()
    });
    let mut servers = BTreeMap::new();
    let mut colors: BTreeMap<String, String> = BTreeMap::new();
    for (leaf, value) in keys {
        let Some(id) = leaf.strip_prefix("upstreams/") else { continue };
        let record = record(value);
        let imposed = keys.get(&format!("overrides/{id}")).map(|value| record_of(value)).unwrap_or_default();
        let own = |field: &str| record[field].as_str().unwrap_or_default();
        let weight = imposed["weight"].as_u64().or(record["weight"].as_u64()).unwrap_or(100);
        let inactive = shares.as_ref().is_some_and(|shares| !shares.contains_key(own("color")));
        let duty = if own("state") == "drain" || imposed["state"] == "maint" {
            Duty::Maintenance
        } else if inactive || imposed["state"] == "drain" || weight == 0 {
            Duty::Drained
        } else {
            Duty::Serves(u16::try_from(weight).expect("a weight"))
        };
        colors.insert(id.to_owned(), own("color").to_owned());
        servers.insert(id.to_owned(), (own("address").parse().expect("an address"), duty));
    }
    spread(&mut servers, &colors, &shares.unwrap_or_default());
    servers
}

/// Gives each color its share, however many servers it has: the heaviest server gets 256.
fn spread(
    servers: &mut BTreeMap<String, (SocketAddr, Duty)>,
    colors: &BTreeMap<String, String>,
    shares: &BTreeMap<&str, Option<f64>>,
) {
    let share = |id: &str| shares.get(colors[id].as_str()).copied().flatten();
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (id, (_, duty)) in servers.iter() {
        if let (Duty::Serves(weight), true) = (duty, share(id).is_some()) {
            *sums.entry(&colors[id]).or_default() += f64::from(*weight);
        }
    }
    let part = |id: &str, weight: u16| share(id).map(|share| share * f64::from(weight) / sums[colors[id].as_str()]);
    let parts: BTreeMap<String, f64> = servers
        .iter()
        .filter_map(|(id, (_, duty))| match duty {
            Duty::Serves(weight) => Some((id.clone(), part(id, *weight)?)),
            Duty::Drained | Duty::Maintenance => None,
        })
        .collect();
    let most = parts.values().copied().fold(0.0, f64::max);
    for (id, part) in parts {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 256")]
        let weight = (part / most * 256.0).round().max(1.0) as u16;
        servers.get_mut(&id).expect("the same ids").1 = Duty::Serves(weight);
    }
}

fn record(value: &[u8]) -> Value {
    if value.starts_with(b"{") { record_of(value) } else { serde_json::json!({ "address": text(value) }) }
}

fn record_of(value: &[u8]) -> Value {
    serde_json::from_slice(value).expect("JSON")
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).expect("text")
}

fn duty_in_file(options: &[&str]) -> Duty {
    let weight = options.iter().position(|word| *word == "weight").map_or("100", |at| options[at + 1]);
    match weight.parse().expect("a weight") {
        _ if options.contains(&"disabled") => Duty::Maintenance,
        0 => Duty::Drained,
        weight => Duty::Serves(weight),
    }
}

/// By HAProxy's bits (management guide, 9.3, `show servers state`): 0x01, 0x02 and 0x20 are maintenance, 0x08 and
/// 0x10 a drain; 0x04 and 0x40 tell where one of them came from.
fn duty_of(admin: u16, weight: u16) -> Duty {
    match (admin & 0x23 > 0, admin & 0x18 > 0 || weight == 0) {
        (true, _) => Duty::Maintenance,
        (false, true) => Duty::Drained,
        (false, false) => Duty::Serves(weight),
    }
}

fn entries<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<BTreeMap<String, String>, String> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("{key} stands twice in a map"));
        }
    }
    Ok(map)
}

fn differ(one: &str, left: &Mirror, other: &str, right: &Mirror) -> Result<(), String> {
    let lines = |mirror: &Mirror| -> BTreeSet<String> {
        let backends = mirror.backends.iter().map(|name| format!("backend {name}"));
        let servers = mirror.servers.iter().map(|(name, server)| format!("server {name} {server:?}"));
        let hosts = mirror.hosts.iter().map(|(key, value)| format!("host {key} {value}"));
        let paths = mirror.paths.iter().map(|(key, value)| format!("path {key} {value}"));
        let passthrough = mirror.passthrough.iter().map(|(key, value)| format!("passthrough {key} {value}"));
        backends.chain(servers).chain(hosts).chain(paths).chain(passthrough).collect()
    };
    if left == right {
        return Ok(());
    }
    let (left, right) = (lines(left), lines(right));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| {
        let missing: Vec<String> = a.difference(b).cloned().collect();
        // A dozen show what it is.
        format!("{}: {}", missing.len(), missing.iter().take(12).cloned().collect::<Vec<_>>().join(", "))
    };
    Err(format!("only in {one}: {}\nonly in {other}: {}", only(&left, &right), only(&right, &left)))
}
