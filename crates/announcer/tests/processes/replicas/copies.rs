//! Announcers of one service on hosts that are names, each with a link of its own to etcd.

use std::{
    collections::BTreeMap,
    io,
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lab::{Etcd, Process, Scratch, free_port, until};

use crate::site::SOON;

/// Of every announcer here. Short, so that the tests are.
pub(crate) const TTL: Duration = Duration::from_secs(3);

const APP: &str = include_str!("app.py");

/// A service, its announcers by the name of their hosts, and their etcd.
pub(crate) struct Copies {
    pub(crate) etcd: Etcd,
    pub(crate) folder: Scratch,
    /// Seconds that the app starts for.
    pub(crate) delay: f64,
    flags: Vec<String>,
    hosts: BTreeMap<String, CopyHost>,
}

struct CopyHost {
    port: u16,
    link: Link,
    announcer: Option<Process>,
}

/// A time during which an app ran, in ns, by its own clock.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) host: String,
    pub(crate) pid: i32,
    pub(crate) start: u64,
    /// `None` if it never served.
    pub(crate) up: Option<u64>,
    /// The time of SIGTERM, or else the last sign of life.
    pub(crate) end: u64,
}

impl Copies {
    pub(crate) fn new(flags: &[&str]) -> Self {
        Self::with(Etcd::start(), flags)
    }

    /// The same with another etcd. Of several members, each host knows one.
    pub(crate) fn with(etcd: Etcd, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let copies = Self { etcd, folder: Scratch::new(), delay: 0.0, flags, hosts: BTreeMap::new() };
        lab::write(copies.folder.join("app.py"), APP);
        std::fs::create_dir(copies.folder.join("runs")).unwrap();
        copies
    }

    /// Starts the announcer of a host, with further flags.
    pub(crate) fn start(&mut self, host: &str, flags: &[&str]) {
        let (endpoints, count) = (self.etcd.endpoints(), self.hosts.len());
        let endpoint = endpoints.split(',').cycle().nth(count).unwrap();
        let known = self.hosts.entry(host.to_owned());
        let known = known.or_insert_with(|| CopyHost { port: free_port(), link: Link::to(endpoint), announcer: None });
        let (folder, port) = (&self.folder, known.port);
        let mut command = Command::new(env!("CARGO_BIN_EXE_announcer"));
        command.args(["--service", "shop", "--id", host, "--ttl", "3s", "--drain", "0s", "--endpoints"]);
        command.arg(known.link.endpoint()).args(["--upstream", &format!("127.0.0.1:{port}")]).args(&self.flags);
        if !flags.contains(&"--host-name") {
            command.args(["--host-name", host]);
        }
        command.args(flags).arg("--").arg("python3").arg(folder.join("app.py"));
        command.args([host, &port.to_string()]).arg(folder.join("runs")).arg(self.delay.to_string());
        command.env("NOTIFY_SOCKET", folder.join(format!("notify-{host}")));
        known.announcer = Some(Process::start(folder, host, &mut command));
    }

    pub(crate) fn announcer(&mut self, host: &str) -> &mut Process {
        self.hosts.get_mut(host).and_then(|known| known.announcer.as_mut()).expect(host)
    }

    pub(crate) fn link(&self, host: &str) -> &Link {
        &self.hosts[host].link
    }

    pub(crate) fn port(&self, host: &str) -> u16 {
        self.hosts[host].port
    }

    /// The hosts that hold slots, by the slot's number.
    pub(crate) fn holders(&self) -> Vec<String> {
        let slots = self.etcd.entries("http-services/shop/slots/");
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
        slots.into_values().map(|value| json_text(&text(value), "id").expect("an id")).collect()
    }

    /// The values of the stand-bys, by id.
    pub(crate) fn standbys(&self) -> BTreeMap<String, String> {
        let standbys = self.etcd.entries("http-services/shop/standby/");
        let name = |key: &str| key.rsplit('/').next().unwrap().to_owned();
        standbys.into_iter().map(|(key, value)| (name(&key), String::from_utf8(value).unwrap())).collect()
    }

    /// Waits until exactly these hosts hold slots and have records, in any order.
    #[track_caller]
    pub(crate) fn until_run(&self, hosts: &[&str]) {
        self.until_run_within(SOON, hosts);
    }

    #[track_caller]
    pub(crate) fn until_run_within(&self, limit: Duration, hosts: &[&str]) {
        until(limit, &format!("copies on {hosts:?}"), || {
            let mut holders = self.holders();
            holders.sort();
            let records = self.etcd.entries("http-services/shop/upstreams/");
            let names: Vec<_> = records.keys().map(|key| key.rsplit('/').next().unwrap()).collect();
            if holders == hosts && names == hosts { Ok(()) } else { Err(format!("{holders:?}, {names:?}")) }
        });
    }

    /// Waits until exactly these hosts stand by.
    #[track_caller]
    pub(crate) fn until_stand_by(&self, hosts: &[&str]) {
        until(SOON, &format!("stand-bys {hosts:?}"), || {
            let standbys: Vec<_> = self.standbys().into_keys().collect();
            if standbys == hosts { Ok(()) } else { Err(format!("{standbys:?}")) }
        });
    }

    /// All runs of apps so far, in the order of their starts.
    pub(crate) fn lives(&self) -> Vec<Life> {
        let runs = std::fs::read_dir(self.folder.join("runs")).unwrap().map(|entry| entry.unwrap().path());
        let mut lives: Vec<_> = runs
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?.to_owned();
                let (host, pid) = name.rsplit_once('.')?;
                let text = std::fs::read_to_string(&path).ok()?;
                let stamps: Vec<(&str, u64)> = text
                    .lines()
                    .filter_map(|line| {
                        line.split_once(' ').and_then(|(letter, time)| Some((letter, time.parse().ok()?)))
                    })
                    .collect();
                let find = |wanted: &str| stamps.iter().find(|(letter, _)| *letter == wanted).map(|(_, time)| *time);
                Some(Life {
                    host: host.to_owned(),
                    pid: pid.parse().ok()?,
                    start: stamps.first()?.1,
                    up: find("u"),
                    end: find("t").unwrap_or(stamps.last()?.1),
                })
            })
            .collect();
        lives.sort_by_key(|life| life.start);
        lives
    }
}

/// The most spans at one time.
pub(crate) fn most_at_once(spans: impl Iterator<Item = (u64, u64)>) -> usize {
    let mut edges: Vec<(u64, i32)> = spans.flat_map(|(start, end)| [(start, 1), (end + 1, -1)]).collect();
    edges.sort();
    let mut now = 0;
    edges
        .into_iter()
        .map(|(_, change)| {
            now += change;
            usize::try_from(now).unwrap()
        })
        .max()
        .unwrap_or_default()
}

/// The fewest spans at one time between two times.
pub(crate) fn fewest_at_once(spans: &[(u64, u64)], from: u64, to: u64) -> usize {
    let mut times: Vec<u64> = spans.iter().flat_map(|(start, end)| [*start, end + 1]).collect();
    times.extend([from, to]);
    let count = |time: u64| spans.iter().filter(|(start, end)| (*start..=*end).contains(&time)).count();
    times.into_iter().filter(|time| (from..=to).contains(time)).map(count).min().unwrap_or_default()
}

/// A text field of a JSON object without escapes.
pub(crate) fn json_text(value: &str, name: &str) -> Option<String> {
    let (_, rest) = value.split_once(&format!("\"{name}\":\""))?;
    Some(rest.split('"').next()?.to_owned())
}

/// A TCP link to a port of this host that can be cut and mended.
pub(crate) struct Link {
    port: u16,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Link {
    fn to(endpoint: &str) -> Self {
        let target: u16 = endpoint.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let link = Self { port, is_cut: Arc::default(), open: Arc::default() };
        let (is_cut, open) = (link.is_cut.clone(), link.open.clone());
        // It ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let mut open = open.lock().unwrap();
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                open.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                forward(near.try_clone().unwrap(), far.try_clone().unwrap());
                forward(far, near);
            }
        });
        link
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends every connection, and each new one at once.
    pub(crate) fn cut(&self) {
        let mut open = self.open.lock().unwrap();
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
