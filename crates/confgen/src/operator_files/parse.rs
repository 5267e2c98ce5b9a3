//! Reads the operator's own files as far as the generated file depends on them. Pure: it reads text, not files. It doesn't judge
//! syntax, HAProxy does.

mod addresses;
mod conflicts;
mod directives;
mod environment;
mod limits;
mod profiles;
mod references;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use discovery::{Profile, ServiceId};
use haproxy::config::{ConfigWord, SECTIONS, tokenize_with};

use crate::desired::names::PREVIEW;
use addresses::{Bound, fill_defaults, parse_bound};
use environment::set_variables;
use references::{Part, find_references, services_in_word};

pub use conflicts::OwnEndpoints;
pub use environment::Environment;
pub use profiles::ClosingLines;

use crate::desired::HeldNames;

/// The meaning of the operator's files. A line between `.if` and `.endif` counts, since only HAProxy knows the condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorConfig {
    /// The first words of `global` lines.
    pub global_keywords: BTreeSet<String>,
    /// The user that HAProxy becomes, as a `bind` line names it: `user haproxy`, or `uid 107`.
    pub user: Option<String>,
    /// The directory that HAProxy locks itself into.
    pub chroot: Option<String>,
    /// The limit of connections at a time. `None` if no `global` line sets it.
    pub maxconn: Option<u64>,
    /// The reasons why confgen rejects the files, with file and line. Empty if it accepts them.
    pub conflicts: Vec<String>,
    /// The names of their `defaults` sections.
    pub profiles: Vec<Profile>,
    /// The profiles with a `default-server` line, in themselves or in the section that they are taken `from`.
    pub server_profiles: BTreeSet<Profile>,
    /// The profiles with `option allbackups`, in themselves or in the section that they are taken `from`.
    pub all_backup_profiles: BTreeSet<Profile>,
    /// The lines of each profile that may keep every request from a service's upstreams.
    pub closing_lines: BTreeMap<Profile, ClosingLines>,
    /// The services that the files may name by their section. Words that only look like a section count too.
    pub mentioned_services: BTreeSet<ServiceId>,
    /// Sentences for the operator about lines that confgen can't understand.
    pub remarks: Vec<String>,
    /// The `defaults` sections with a name.
    named_defaults: Vec<Section>,
    /// All sections but `global` and `defaults`.
    sections: Vec<Section>,
    /// One for each address, also of lines with several.
    listeners: Vec<Listener>,
    /// The `global` lines, in words.
    directives: Vec<(SourceLine, Vec<String>)>,
    /// The places that name a service's section.
    references: Vec<Reference>,
}

/// A line of a file, for messages: `mine.cfg:3: \`bind :80\` in \`frontend web\``.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceLine {
    /// `mine.cfg:3`.
    place: String,
    /// The line's first words, at most 80 characters.
    text: String,
    /// The section with the line, `frontend web`. Empty for a line that opens a section.
    section: String,
    /// The line is between `.if` and `.endif`.
    is_conditional: bool,
}

impl SourceLine {
    /// The line and its section: `\`bind :80\` in \`frontend web\``.
    fn quote_with_section(&self) -> String {
        let Self { text: line, section, .. } = self;
        if section.is_empty() { format!("`{line}`") } else { format!("`{line}` in `{section}`") }
    }

    /// For the middle of a sentence: `mine.cfg:3 (\`bind :80\` in \`frontend web\`)`.
    fn to_citation(&self) -> String {
        format!("{} ({})", self.place, self.quote_with_section())
    }
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.quote_with_section())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    source: SourceLine,
    kind: String,
    name: String,
}

impl Section {
    /// The name of the service's section that conflicts with this section. A preview's section conflicts with its service's.
    fn service_section(&self) -> &str {
        self.name.split_once(PREVIEW).map_or(self.name.as_str(), |(own, _)| own)
    }
}

fn is_proxy_kind(kind: &str) -> bool {
    ["frontend", "backend", "listen"].contains(&kind)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    source: SourceLine,
    bound: Bound,
    /// The line says `v6only`.
    is_v6_only: bool,
    /// The only network interface from which connections are accepted.
    interface: Option<String>,
    namespace: Option<String>,
    /// The line is a peer on another host, as far as its name is known. HAProxy listens only where it finds itself.
    is_remote_peer: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    source: SourceLine,
    section: String,
    part: Part,
}

/// The operator's lines that name one section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferencedSection {
    /// `mine.cfg:3`, in the order of the files.
    pub places: Vec<String>,
    /// A line names the section's stick table.
    pub has_table: bool,
    /// A line sends requests to the section.
    pub gets_requests: bool,
}

/// A line's file, number and section.
#[derive(Clone, Copy)]
struct LineContext<'a> {
    file: &'a str,
    line: usize,
    kind: &'a str,
    name: &'a str,
    is_conditional: bool,
}

/// The variable with the name by which HAProxy finds itself among peers. HAProxy sets the variable at its start.
pub(crate) const LOCAL_PEER: &str = "HAPROXY_LOCALPEER";

/// The most characters of a line that a message shows.
const LONGEST_QUOTE: usize = 80;

impl LineContext<'_> {
    fn format_remark(&self, words: &str) -> String {
        format!("{}:{}: {words}", self.file, self.line)
    }

    /// The section that this line opens.
    fn to_section(self) -> Section {
        let source = SourceLine { section: String::new(), ..self.to_source_line(&[self.kind, self.name]) };
        Section { source, kind: self.kind.to_owned(), name: self.name.to_owned() }
    }

    /// This line, of which `words` are the first words.
    fn to_source_line(self, words: &[&str]) -> SourceLine {
        let line: String = words.join(" ").chars().take(LONGEST_QUOTE).collect();
        let at = format!("{}:{}", self.file, self.line);
        let section = format!("{} {}", self.kind, self.name).trim().to_owned();
        SourceLine { place: at, text: line, section, is_conditional: self.is_conditional }
    }
}

impl OperatorConfig {
    /// Reads the files without an environment.
    #[cfg(test)]
    pub fn from_texts<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::parse_files(files, &Environment::new())
    }

    /// Reads the files, each with its name, in the order in which HAProxy reads them. `environment` is that of `haproxy -c`. A
    /// variable that it lacks may still have a value for the HAProxy that serves.
    pub fn parse_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, environment: &Environment) -> Self {
        let mut operator = Self::default();
        let mut environment = environment.clone();
        for (file, text) in files {
            operator.parse_file(file, text, &mut environment);
        }
        let own: BTreeSet<String> = operator.sections.iter().map(|section| section.name.clone()).collect();
        // The operator's own section of that name is meant. It needs no stub.
        operator.mentioned_services.retain(|id| !own.contains(&id.to_string()));
        operator
    }

    /// Sets `conflicts`: the files use something of confgen's. `real` resolves the links of a path.
    pub fn detect_conflicts(&mut self, taken: &OwnEndpoints, real: &dyn Fn(&Path) -> PathBuf) {
        self.conflicts = conflicts::find_conflicts(self, taken, real);
    }

    /// The reasons why services lose something to these files that they had first. The files keep what they had in `before`,
    /// the last accepted form.
    pub fn find_late_claims(&self, before: &Self, held: &HeldNames) -> Vec<String> {
        conflicts::find_late_claims(self, before, held)
    }

    /// The TCP ports that the files bind, each with its line for messages.
    pub fn tcp_ports(&self) -> impl Iterator<Item = (RangeInclusive<u16>, String)> {
        self.listeners.iter().filter_map(|it| match &it.bound {
            // Another network namespace has ports of its own.
            Bound::Tcp(_, ports) if it.namespace.is_none() => Some((ports.clone(), it.source.to_citation())),
            _ => None,
        })
    }

    /// The names that no service's section can have, each with its line for messages.
    pub fn reserved_sections(&self) -> BTreeMap<String, String> {
        // Each kind of section counts: from HAProxy 3.3 on, a frontend and a backend can't share a name.
        let proxies = self.sections.iter().filter(|section| is_proxy_kind(&section.kind));
        proxies.map(|section| (section.service_section().to_owned(), section.source.to_citation())).collect()
    }

    fn parse_file(&mut self, file: &str, text: &str, environment: &mut Environment) {
        // A file begins in no section.
        let (mut kind, mut name) = (String::new(), String::new());
        let (mut conditional, mut depth) = (None, 0_usize);
        for (line, text) in (1..).zip(text.lines()) {
            let words = tokenize_with(text, &|name| environment.get(name).cloned());
            let Some(first) = words.first() else { continue };
            match first.text.as_str() {
                ".if" => depth += 1,
                ".endif" => depth = depth.saturating_sub(1),
                _ => {}
            }
            conditional = conditional.or((first.text == ".if").then_some(line));
            self.mentioned_services.extend(words.iter().flat_map(|word| services_in_word(&word.text)));
            let is_conditional = depth > 0;
            if SECTIONS.contains(&first.text.as_str()) {
                kind = first.text.clone();
                name = words.get(1).map(|word| word.text.clone()).unwrap_or_default();
                self.open_section(LineContext { file, line, kind: &kind, name: &name, is_conditional }, &words);
            } else {
                self.parse_line(
                    LineContext { file, line, kind: &kind, name: &name, is_conditional },
                    &words,
                    environment,
                );
            }
        }
        // One remark is enough for a file with many conditions.
        if let Some(line) = conditional {
            let words = "whether a conditional holds only HAProxy knows: its lines count as if it did";
            self.remarks.push(format!("{file}:{line}: {words}"));
        }
    }

    fn open_section(&mut self, place: LineContext, words: &[ConfigWord]) {
        let LineContext { kind, name, .. } = place;
        if words.get(1).is_some_and(|word| word.has_unknown_variable) {
            self.remarks.push(
                place.format_remark("the section's name comes from the environment: it is compared with no other"),
            );
        } else if kind == "defaults" && name != "from" {
            self.named_defaults.push(place.to_section());
            self.open_profile(place, words);
        } else if !["global", "defaults"].contains(&kind) {
            self.sections.push(place.to_section());
        }
    }

    fn parse_line(&mut self, place: LineContext, words: &[ConfigWord], environment: &mut Environment) {
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        for (section, part) in find_references(words) {
            let spot = place.to_source_line(texts.get(..2).unwrap_or(&texts));
            self.references.push(Reference { source: spot, section, part });
        }
        match (place.kind, texts.as_slice()) {
            ("global", ["stats", "socket", address, options @ ..]) => {
                self.add_listeners(place, &["stats", "socket", address], address, options);
            }
            ("global", [keyword, ..]) => {
                set_variables(environment, words);
                self.directives
                    .push((place.to_source_line(&texts), texts.iter().map(|text| (*text).to_owned()).collect()));
                self.parse_global_line(place, keyword, words.get(1..).unwrap_or_default());
            }
            ("peers", [keyword @ ("peer" | "server"), name, address, options @ ..]) => {
                let before = self.listeners.len();
                self.add_listeners(place, &[keyword, name, address], address, options);
                let is_known = words.get(1).is_some_and(|name| !name.has_unknown_variable);
                let is_remote = is_known && environment.get(LOCAL_PEER).is_none_or(|local| local != name);
                self.listeners.iter_mut().skip(before).for_each(|listener| listener.is_remote_peer = is_remote);
            }
            // UDP takes no TCP port, but a socket's path may be another's.
            ("log-forward", ["dgram-bind", addresses, options @ ..]) => {
                let datagram: Vec<String> = addresses.split(',').map(|address| format!("dgram+{address}")).collect();
                self.add_listeners(place, &["dgram-bind", addresses], &datagram.join(","), options);
            }
            ("defaults", texts) => self.parse_profile_line(place, texts),
            (_, ["bind", addresses, options @ ..]) => {
                self.add_listeners(place, &["bind", addresses], addresses, options);
            }
            _ => {}
        }
    }

    fn parse_global_line(&mut self, place: LineContext, keyword: &str, values: &[ConfigWord]) {
        self.global_keywords.insert(keyword.to_owned());
        if keyword == "maxconn" {
            self.maxconn = values.first().and_then(ConfigWord::known_text).and_then(|most| most.parse().ok());
        }
        if !["user", "uid", "chroot"].contains(&keyword) {
            return;
        }
        // The value goes into lines of confgen's own, so it must not hold a blank or a quote.
        match (keyword, values.first().and_then(ConfigWord::known_text).filter(|text| is_plain(text))) {
            ("chroot", Some(directory)) => self.chroot = Some(directory.to_owned()),
            (_, Some(who)) => self.user = Some(format!("{keyword} {who}")),
            (_, None) => self.remarks.push(place.format_remark(&format!("which `{keyword}` it is only HAProxy knows"))),
        }
    }

    /// Adds a listener for each of these addresses, which commas separate. An address from the environment may have its
    /// default too.
    fn add_listeners(&mut self, place: LineContext, line: &[&str], addresses: &str, options: &[&str]) {
        let by_default = fill_defaults(addresses);
        for address in addresses.split(',').chain(by_default.iter().flat_map(|all| all.split(','))) {
            let bound = parse_bound(address);
            if bound == Bound::Unknown {
                let words = format!("which port `{address}` is only HAProxy knows: it is kept from no service");
                self.remarks.push(place.format_remark(&words));
            }
            self.listeners.push(Listener {
                source: place.to_source_line(line),
                bound,
                is_v6_only: options.contains(&"v6only"),
                interface: find_value(options, "interface"),
                namespace: find_value(options, "namespace"),
                is_remote_peer: false,
            });
        }
    }
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
}

/// The word behind an option's name.
fn find_value(options: &[&str], name: &str) -> Option<String> {
    let at = options.iter().position(|option| *option == name)?;
    options.get(at + 1).map(|value| (*value).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::names::parse_section;

    fn of(text: &str) -> OperatorConfig {
        OperatorConfig::from_texts([("mine.cfg", text)])
    }

    fn ports(operator: &OperatorConfig) -> Vec<String> {
        operator.tcp_ports().map(|(ports, by)| format!("{}-{} {by}", ports.start(), ports.end())).collect()
    }

    #[test]
    fn every_part_that_the_generated_file_depends_on_is_read() {
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
        assert_eq!(operator.global_keywords.iter().collect::<Vec<_>>(), ["chroot", "log", "maxconn", "user"]);
        assert_eq!(operator.maxconn, Some(10_000));
        assert_eq!(operator.user.as_deref(), Some("user haproxy"));
        assert_eq!(operator.chroot.as_deref(), Some("/var/lib/haproxy"));
        let names = |profiles: &mut dyn Iterator<Item = &Profile>| profiles.map(Profile::to_string).collect::<Vec<_>>();
        assert_eq!(names(&mut operator.profiles.iter()), ["slow", "plain", "patient", "quick"]);
        assert_eq!(names(&mut operator.server_profiles.iter()), ["patient", "plain"]);
        let bound = [
            "9999-9999 mine.cfg:6 (`stats socket ipv4@127.0.0.1:9999` in `global`)",
            "8088-8088 mine.cfg:19 (`bind :8088,10.0.0.1:8089` in `frontend intern`)",
            "8089-8089 mine.cfg:19 (`bind :8088,10.0.0.1:8089` in `frontend intern`)",
            "1024-1024 mine.cfg:24 (`peer a 10.0.0.1:1024` in `peers us`)",
        ];
        assert_eq!(ports(&operator), bound);
        let mentions: Vec<_> = operator.mentioned_services.iter().map(ToString::to_string).collect();
        assert_eq!(mentions, ["http-shop", "tcp-db"]);
        assert_eq!((operator.conflicts.len(), operator.remarks.len()), (0, 0), "{operator:?}");
    }

    #[test]
    fn a_referenced_section_is_told_from_an_own_one() {
        let operator = of("frontend f
    bind :8000
    use_backend http-own if { nbsrv(http-shop) gt 0 }
    http-request track-sc0 src table http-shop
    default_backend http-shop
    option http-server-close
backend http-own
backend tcp-db:preview-blue
");
        let at = ["mine.cfg:3", "mine.cfg:4", "mine.cfg:5"].map(str::to_owned).into();
        let named = ReferencedSection { places: at, has_table: true, gets_requests: true };
        assert_eq!(operator.referenced_sections(), [("http-shop".to_owned(), named)].into());
        assert!(!operator.mentioned_services.contains(&parse_section("http-own").unwrap()), "it is the operator's own");
        let proxies = operator.reserved_sections();
        assert_eq!(proxies["http-own"], "mine.cfg:7 (`backend http-own`)");
        assert_eq!(
            proxies.keys().collect::<Vec<_>>(),
            ["f", "http-own", "tcp-db"],
            "a preview's name is its service's"
        );
    }

    #[test]
    fn variables_are_expanded_as_haproxy_expands_them() {
        let environment = [("PORT".to_owned(), "8001".to_owned())].into();
        let text = "frontend a
    bind \"*:${PORT}\"
global
    presetenv PORT 1
    setenv OTHER 8002
frontend b
    bind \"*:${OTHER}\",\":${PORT}0\"
global
    unsetenv OTHER
frontend c
    bind \"*:${OTHER}\"
";
        let operator = OperatorConfig::parse_files([("mine.cfg", text)], &environment);
        let known: Vec<_> = operator.tcp_ports().map(|(ports, _)| *ports.start()).collect();
        assert_eq!(known, [8001, 8002], "80010 is no port");
        assert_eq!(operator.remarks.len(), 2, "{:?}", operator.remarks);
    }

    #[test]
    fn an_unknown_value_is_a_remark() {
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
        let known: Vec<_> = operator.tcp_ports().map(|(ports, _)| *ports.start()).collect();
        assert_eq!(known, [8001, 8002]);
        assert!(operator.global_keywords.contains("log"), "the operator's line may stand: ours would log twice");
    }
}
