//! What the operator's own files say, as far as the generated one has to know it. Pure: it reads text, not files.

mod addresses;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use discovery::{Profile, ServiceId};
use haproxy::config::{SECTIONS, Word, words};

use crate::structure::service;
use addresses::{Bound, bound};

/// What stands in the operator's files. What only HAProxy can know (conditionals, the environment) counts as if it held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operator {
    /// First words of their `global` lines.
    pub global: BTreeSet<String>,
    /// The user that HAProxy becomes, as a `bind` line names it: `user haproxy`, or `uid 107`.
    pub user: Option<String>,
    /// The directory that HAProxy locks itself into.
    pub chroot: Option<String>,
    /// Sections that bear a name of confgen's: such files are not taken.
    pub refused: Vec<String>,
    /// Their named `defaults`.
    pub profiles: Vec<Profile>,
    /// Those of them that say something of servers (`default-server`), themselves or by what they are taken `from`.
    pub server_profiles: BTreeSet<Profile>,
    /// Ports they bind, with the section that does.
    pub ports: Vec<(RangeInclusive<u16>, String)>,
    /// Services whose sections they may name: what only looks like one is among them.
    pub mentions: BTreeSet<ServiceId>,
    /// What could not be understood, and what became of it.
    pub remarks: Vec<String>,
}

/// A section and where a line of it stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    line: usize,
    kind: &'a str,
    name: &'a str,
}

impl Place<'_> {
    fn says(&self, words: &str) -> String {
        format!("{}:{}: {words}", self.file, self.line)
    }
}

impl Operator {
    /// Reads the files, each with its name, in the order HAProxy reads them.
    pub fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut operator = Self::default();
        for (file, text) in files {
            operator.read(file, text);
        }
        operator
    }

    fn global(&mut self, place: Place, keyword: &str, values: &[Word]) {
        self.global.insert(keyword.to_owned());
        if !["user", "uid", "chroot"].contains(&keyword) {
            return;
        }
        // It goes into lines of confgen's own.
        let plain = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        match (keyword, values.first().and_then(Word::known).filter(plain)) {
            ("chroot", Some(directory)) => self.chroot = Some(directory.to_owned()),
            (_, Some(who)) => self.user = Some(format!("{keyword} {who}")),
            (_, None) => self.remarks.push(place.says(&format!("which `{keyword}` it is only HAProxy knows"))),
        }
    }

    fn read(&mut self, file: &str, text: &str) {
        // A file begins in no section.
        let (mut kind, mut name) = (String::new(), String::new());
        let mut conditional = None;
        for (line, text) in (1..).zip(text.lines()) {
            let words = words(text);
            let Some(first) = words.first() else { continue };
            self.mentions.extend(words.iter().flat_map(|word| mentioned(&word.text)));
            if SECTIONS.contains(&first.text.as_str()) {
                kind = first.text.clone();
                name = words.get(1).map(|word| word.text.clone()).unwrap_or_default();
                let place = Place { file, line, kind: &kind, name: &name };
                self.open(place, &words);
            } else {
                conditional = conditional.or((first.text == ".if").then_some(line));
                self.line(Place { file, line, kind: &kind, name: &name }, &words);
            }
        }
        if let Some(line) = conditional {
            let words = "whether a conditional holds only HAProxy knows: its lines count as if it did";
            self.remarks.push(format!("{file}:{line}: {words}"));
        }
    }

    fn open(&mut self, place: Place, words: &[Word]) {
        let Place { kind, name, .. } = place;
        let is_proxy = ["frontend", "backend", "listen"].contains(&kind);
        if words.get(1).is_some_and(|word| word.is_open) {
            self.remarks.push(place.says("the section's name comes from the environment: nobody looks whose it is"));
        } else if (is_proxy && service(name).is_some()) || (kind != "defaults" && is_ours(name)) {
            let words = format!("`{kind} {name}`: names that begin with http-, tcp- or discover- are confgen's");
            self.refused.push(place.says(&words));
        } else if kind == "defaults" && name != "from" {
            self.profiles.extend(name.parse::<Profile>().ok());
            if let [_, _, from, base] = words
                && from.text == "from"
                && (base.is_open || base.text.parse().is_ok_and(|base| self.server_profiles.contains(&base)))
            {
                self.tune_servers(name);
            }
        }
    }

    fn line(&mut self, place: Place, words: &[Word]) {
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        match (place.kind, texts.as_slice()) {
            ("global", ["stats", "socket", address, ..]) => self.bind(place, address),
            ("global", [keyword, ..]) => self.global(place, keyword, words.get(1..).unwrap_or_default()),
            // A peer may be HAProxy itself, which then listens there.
            ("peers", ["peer" | "server", _, address, ..]) => self.bind(place, address),
            ("defaults", ["default-server", ..]) => self.tune_servers(place.name),
            (_, ["bind", addresses, ..]) => addresses.split(',').for_each(|address| self.bind(place, address)),
            _ => {}
        }
    }

    fn tune_servers(&mut self, profile: &str) {
        self.server_profiles.extend(profile.parse::<Profile>().ok());
    }

    fn bind(&mut self, place: Place, address: &str) {
        match bound(address) {
            Bound::Ports(ports) => {
                let section = format!("{} {}", place.kind, place.name);
                self.ports.push((ports, format!("{} of the operator's files", section.trim())));
            }
            Bound::None => {}
            Bound::Unknown => {
                let words = format!("which port `{address}` is only HAProxy knows: it is kept from no service");
                self.remarks.push(place.says(&words));
            }
        }
    }
}

/// The names of other sections that are the generated file's, now or in a later release.
fn is_ours(name: &str) -> bool {
    name.starts_with("discover-")
}

/// What in a word may be the section of a service: `http-shop`, also in `nbsrv(http-shop)`.
fn mentioned(word: &str) -> impl Iterator<Item = ServiceId> + '_ {
    let parts = word.split(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)));
    parts.filter_map(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Operator {
        Operator::of([("mine.cfg", text)])
    }

    fn ports(operator: &Operator) -> Vec<String> {
        operator.ports.iter().map(|(ports, by)| format!("{}-{} {by}", ports.start(), ports.end())).collect()
    }

    #[test]
    fn reads_what_matters() {
        let operator = of("
global
    log 127.0.0.1 local0   # mine
    user haproxy
    chroot /var/lib/haproxy
    stats socket ipv4@127.0.0.1:9999 level user
    stats socket /run/mine.sock
    'maxconn' 10000
defaults
defaults from slow
defaults slow from other
    timeout server 10m
defaults plain
    default-server ssl verify none
defaults patient from plain
    timeout server 1h
defaults quick from slow
frontend \"intern\"
    bind :8088,10.0.0.1:8089 ssl
    bind-process 1
    bind unix@/run/x
    use_backend http-shop if { nbsrv(tcp-db) gt 0 }
peers us
    peer a 10.0.0.1:1024
fcgi-app php
    log-stderr global
backend mine # not discovered
");
        assert_eq!(operator.global.iter().collect::<Vec<_>>(), ["chroot", "log", "maxconn", "user"]);
        assert_eq!(operator.user.as_deref(), Some("user haproxy"));
        assert_eq!(operator.chroot.as_deref(), Some("/var/lib/haproxy"));
        let names = |profiles: &mut dyn Iterator<Item = &Profile>| profiles.map(Profile::to_string).collect::<Vec<_>>();
        assert_eq!(names(&mut operator.profiles.iter()), ["slow", "plain", "patient", "quick"]);
        assert_eq!(names(&mut operator.server_profiles.iter()), ["patient", "plain"]);
        let bound = [
            "9999-9999 global of the operator's files",
            "8088-8088 frontend intern of the operator's files",
            "8089-8089 frontend intern of the operator's files",
            "1024-1024 peers us of the operator's files",
        ];
        assert_eq!(ports(&operator), bound);
        let mentions: Vec<_> = operator.mentions.iter().map(ToString::to_string).collect();
        assert_eq!(mentions, ["http-shop", "tcp-db"]);
        assert_eq!((operator.refused.len(), operator.remarks.len()), (0, 0), "{operator:?}");
    }

    #[test]
    fn names_of_ours_are_refused() {
        let refused =
            of("backend http-shop\nlisten tcp-db\n\nfrontend discover-web\nuserlist discover-stats\n").refused;
        assert_eq!(refused.len(), 4, "{refused:?}");
        assert_eq!(
            refused[1],
            "mine.cfg:2: `listen tcp-db`: names that begin with http-, tcp- or discover- are confgen's"
        );
        let fine = "defaults http-fast\nbackend https-x\nbackend http-\nuserlist http-users\nfrontend discovery\n";
        assert_eq!(of(fine).refused, Vec::<String>::new());
    }

    #[test]
    fn what_only_haproxy_knows_is_said() {
        let operator = of("frontend \"$NAME\"
    bind \"${IP}:8001\"
    bind \"127.0.0.1:${PORT}\"
    bind fd@7
.if defined(X)
global
    log /dev/log local0
frontend b
    bind :8002
.endif
");
        assert_eq!(operator.remarks.len(), 4, "{:?}", operator.remarks);
        assert!(operator.remarks[0].starts_with("mine.cfg:1: the section's name comes from the environment"));
        assert!(operator.remarks[1].starts_with("mine.cfg:3: which port `127.0.0.1:${PORT}` is"));
        assert!(operator.remarks[3].starts_with("mine.cfg:5: whether a conditional holds"));
        let known: Vec<_> = operator.ports.iter().map(|(ports, _)| *ports.start()).collect();
        assert_eq!(known, [8001, 8002]);
        assert!(operator.global.contains("log"), "the operator's line may stand: ours would log twice");
    }
}
