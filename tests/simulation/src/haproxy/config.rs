//! Starts a process from a generated haproxy.cfg and its maps, by their text.

use std::collections::BTreeMap;

use confgen::decisions::Rendered;

use super::{Backend, Frontend, Process, Server};
use crate::clock::Millis;

/// The most connections of a frontend whose section sets no limit.
pub const DEFAULT_LIMIT: u64 = 500;

/// Reads the file. Only the lines that the model knows count.
pub fn start(file: &Rendered, pid: u32, now: Millis) -> Process {
    let mut process = Process {
        pid,
        started: now,
        generation: file.generation_id.clone(),
        frontends: BTreeMap::new(),
        backends: BTreeMap::new(),
        maps: BTreeMap::new(),
        connections: Vec::new(),
        stopped_at: None,
    };
    let text: Vec<u8> = file.cfg.pieces().collect::<Vec<_>>().concat();
    let text = String::from_utf8_lossy(&text);
    let mut named_maps = Vec::new();
    let mut section = None;
    for line in text.lines() {
        if line.contains(".map)") {
            named_maps.push(line);
        }
        let mut words = line.split_whitespace();
        match (line.starts_with(' '), words.next()) {
            (false, Some(kind @ ("backend" | "listen" | "frontend"))) => {
                let name = words.next().unwrap_or_default().to_owned();
                if kind != "backend" {
                    let limit = if name == "discover-stats" { 2_000 } else { DEFAULT_LIMIT };
                    process.frontends.insert(name.clone(), Frontend { is_paused: false, is_shut_down: false, limit });
                }
                if kind != "frontend" {
                    process.backends.insert(name.clone(), Backend::default());
                }
                section = Some(name);
            }
            (false, Some(_)) => section = None,
            (true, Some("cookie")) => {
                let backend = section.as_ref().and_then(|name| process.backends.get_mut(name));
                backend.into_iter().for_each(|backend| backend.has_cookies = true);
            }
            (true, Some("server")) => {
                let backend = section.as_ref().and_then(|name| process.backends.get_mut(name));
                if let Some((backend, (name, server))) = backend.zip(parse_server(words)) {
                    let id = if server.id == 0 { free_id(backend) } else { server.id };
                    let has_cookie = backend.has_cookies;
                    backend.servers.insert(name, Server { id, has_cookie, ..server });
                }
            }
            _ => {}
        }
    }
    let maps = &file.maps;
    let all = [
        ("hosts", &maps.hosts),
        ("paths", &maps.paths),
        ("passthrough", &maps.passthrough),
        ("checks", &maps.checks),
        ("urls", &maps.urls),
    ];
    for (name, content) in all {
        // HAProxy loads a map only if a line of the file names it.
        let named = format!("/{name}.map)");
        if named_maps.iter().any(|line| line.contains(&named)) {
            let entries = content.lines().filter_map(|line| line.split_once(' '));
            process
                .maps
                .insert(name.to_owned(), entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        }
    }
    process
}

/// The lowest id that no server of the backend has.
pub fn free_id(backend: &Backend) -> u32 {
    (1..).find(|id| backend.servers.values().all(|server| server.id != *id)).unwrap_or(1)
}

/// Parses `NAME ADDRESS:PORT [weight N] [id N] [maxconn N] [disabled] …`. `None` for a server that has no IP address.
pub fn parse_server<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<(String, Server)> {
    let (name, address) = (words.next()?, words.next()?);
    let (ip, port) = address.rsplit_once(':')?;
    let mut server = Server {
        id: 0,
        ip: ip.trim_matches(['[', ']']).to_owned(),
        port: port.parse().ok()?,
        weight: 100,
        initial_weight: 100,
        maint: false,
        is_disabled_by_file: false,
        drain: false,
        up: true,
        checks_off: false,
        limit: 0,
        has_cookie: false,
    };
    while let Some(word) = words.next() {
        match word {
            "weight" => server.weight = words.next()?.parse().ok()?,
            "id" => server.id = words.next()?.parse().ok()?,
            "maxconn" => server.limit = words.next()?.parse().ok()?,
            "disabled" => (server.maint, server.is_disabled_by_file) = (true, true),
            _ => {}
        }
    }
    server.initial_weight = server.weight;
    Some((name.to_owned(), server))
}

/// Takes the servers' states of the previous process over, as `load-server-state-from-file` does: the admin state that commands
/// set, and the weight if the file's weight is the same as before.
pub fn take_states(process: &mut Process, old: &Process) {
    for (name, backend) in &mut process.backends {
        let Some(before) = old.backends.get(name) else { continue };
        for (name, server) in &mut backend.servers {
            let Some(before) = before.servers.get(name).filter(|before| before.address() == server.address()) else {
                continue;
            };
            server.up = before.up;
            if before.maint && !before.is_disabled_by_file {
                (server.maint, server.drain) = (true, false);
            } else if before.drain && !server.maint {
                server.drain = true;
            }
            if before.initial_weight == server.initial_weight {
                server.weight = before.weight;
            }
        }
    }
}
