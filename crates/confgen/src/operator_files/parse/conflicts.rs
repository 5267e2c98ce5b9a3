//! Conflicts of the operator's files with confgen and handover: addresses, sockets, names, and `global` lines that break a
//! restart. Each message names file, line, reason and remedy. Pure: no I/O, links are resolved by an argument.

use std::path::{Path, PathBuf};

use discovery::Bind;

use super::addresses::{Address, Bound, may_be_path};
use super::directives::{find_directive_conflict, find_section_conflict};
use super::references::Part;
use super::{Listener, OperatorConfig, is_proxy_kind};
use crate::desired::HeldNames;
use crate::desired::names::parse_section;

/// The addresses, sockets and files that belong to confgen and handover.
#[derive(Clone, Debug, Default)]
pub struct OwnEndpoints {
    /// The addresses of the generated file's own frontends, each with the option that sets it.
    pub binds: Vec<(Bind, &'static str)>,
    /// The Runtime API's socket.
    pub runtime_socket: PathBuf,
    /// The directories in one of which handover keeps the sockets of its masters.
    pub master_dirs: Vec<PathBuf>,
    /// The file that keeps the servers' states over a restart.
    pub state_file: PathBuf,
}

/// The names of the generated file's own frontends and backends, in each of its forms.
const PROXIES: [&str; 5] =
    ["discover-web", "discover-tls", "discover-stats", "discover-passthrough", "discover-terminated"];
/// The beginnings of the names of the generated file's `defaults` sections.
const DEFAULTS: [&str; 2] = ["discover-http", "discover-tcp"];
const OTHERS: [(&str, &str); 2] = [("userlist", "discover-stats"), ("peers", "discover-sticky")];

/// The beginnings of the names of `render::internal_sockets`, beside the Runtime API's socket or in the chroot.
const INNER: [&str; 2] = ["discover-tls", "discover-peers"];

/// The reasons why the files can't be used. `real` resolves the links of a path.
pub(super) fn find_conflicts(
    operator: &OperatorConfig,
    own: &OwnEndpoints,
    real: &dyn Fn(&Path) -> PathBuf,
) -> Vec<String> {
    let sections = operator.sections.iter().chain(&operator.named_defaults);
    let mut found: Vec<String> = sections.filter_map(find_name_conflict).collect();
    found.extend(operator.directives.iter().filter_map(|(source, words)| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        find_directive_conflict(&words, &own.state_file).map(|why| format!("{source}: {why}"))
    }));
    found.extend(operator.listeners.iter().filter_map(|listener| match &listener.bound {
        Bound::Tcp(..) => find_bind_conflict(listener, own),
        Bound::Path(path) => find_socket_conflict(listener, path, own, real),
        Bound::None | Bound::Unknown => None,
    }));
    // Two frontends on one address pass `haproxy -c` (2.6), so only confgen can tell the operator.
    found.extend(find_shared_addresses(&operator.listeners));
    let servers = operator.references.iter().filter(|it| it.part == Part::Server && !operator.has_section(&it.section));
    found.extend(servers.map(|it| {
        format!(
            "{}: it names an upstream of {}, which comes and goes: without it HAProxy would not start. Let the server have \
             its own `check`, or ask for the whole service with nbsrv({})",
            it.source, it.section, it.section
        )
    }));
    // An address from the environment and its default may conflict alike.
    found.dedup();
    found
}

fn find_name_conflict(section: &super::Section) -> Option<String> {
    let super::Section { source, kind, name } = section;
    if let Some(why) = find_section_conflict(kind) {
        return Some(format!("{source}: {why}"));
    }
    let is_taken = match kind.as_str() {
        "defaults" => DEFAULTS.iter().any(|base| {
            name.strip_prefix(base).is_some_and(|rest| matches!(rest.as_bytes().first(), None | Some(b'-')))
        }),
        kind if is_proxy_kind(kind) => PROXIES.contains(&name.as_str()),
        kind => OTHERS.contains(&(kind, name)),
    };
    is_taken.then(|| format!("{source}: the generated file has a section of this name. Rename yours"))
}

fn find_bind_conflict(listener: &Listener, own: &OwnEndpoints) -> Option<String> {
    let (bind, option) = own.binds.iter().find(|(bind, _)| is_overlapping(listener, bind))?;
    let v6only = match listener.bound {
        Bound::Tcp(Address::AnyV6, _) if bind.address.is_none_or(|it| it.is_ipv4()) => ", `v6only`",
        _ => "",
    };
    Some(format!(
        "{}: confgen's own {bind} ({option}) is bound there too: HAProxy would accept both, and clients reach one or the other. \
         Give yours another port{v6only}, or an address that {option} doesn't have",
        listener.source
    ))
}

/// True if a client's connection fits both. HAProxy shares the connections of an equal address between the two. A narrower address
/// takes its connections from the wider one.
fn is_overlapping(listener: &Listener, bind: &Bind) -> bool {
    let Bound::Tcp(address, ports) = &listener.bound else { return false };
    if listener.namespace.is_some() || listener.is_remote_peer || !ports.contains(&bind.port) {
        return false;
    }
    match (own_address(bind), address) {
        (_, Address::Unknown) | (Address::AnyV6, _) => true,
        (Address::Ip(own), Address::Ip(address)) => own == *address,
        (Address::Ip(own), wide) if own.is_ipv6() => *wide == Address::AnyV6,
        (_, Address::Ip(address)) => address.is_ipv4(),
        (_, Address::AnyV6) => !listener.is_v6_only,
        (_, Address::AnyV4) => true,
    }
}

/// The address that an option names. `[::]` takes IPv4 too, as the generated file binds it.
fn own_address(bind: &Bind) -> Address {
    match bind.address.map(|address| address.to_canonical()) {
        None => Address::AnyV4,
        Some(address) if address.is_unspecified() && address.is_ipv4() => Address::AnyV4,
        Some(address) if address.is_unspecified() => Address::AnyV6,
        Some(address) => Address::Ip(address),
    }
}

fn find_socket_conflict(
    listener: &Listener,
    written: &str,
    own: &OwnEndpoints,
    real: &dyn Fn(&Path) -> PathBuf,
) -> Option<String> {
    let source = &listener.source;
    // Only HAProxy knows the value of a variable, and the directory in which a relative path begins.
    let is_whole = written.starts_with('/') && !written.contains('$');
    let path = if is_whole { real(Path::new(written)) } else { PathBuf::from(written) };
    if may_be_path(&path.to_string_lossy(), &real(&own.runtime_socket)) {
        return Some(format!(
            "{source}: confgen's own socket for the Runtime API is {} (--runtime-socket). Delete the line: the generated file \
             has that socket. Or give one of the two another path; handover's --socket is confgen's --runtime-socket",
            own.runtime_socket.display()
        ));
    }
    if let Some(masters) = own.master_dirs.iter().map(|masters| real(masters)).find(|masters| path.starts_with(masters))
    {
        return Some(format!("{source}: {} is handover's own directory. Give it another path", masters.display()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    INNER
        .iter()
        .any(|inner| name.starts_with(inner))
        .then(|| format!("{source}: HAProxy reaches itself over sockets of this name. Give it another"))
}

/// Different sections on one address, between which HAProxy would share the connections. Within one section that is meant, to give
/// each thread a socket.
fn find_shared_addresses(listeners: &[Listener]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, one) in listeners.iter().enumerate() {
        let others = listeners.iter().skip(number + 1);
        if let Some(other) =
            others.filter(|other| is_same_address(one, other)).find(|other| one.source.section != other.source.section)
        {
            found.push(format!(
                "{}, and {}: HAProxy would share the connections between the two. Give one another port",
                one.source, other.source
            ));
        }
    }
    found
}

fn is_same_address(one: &Listener, other: &Listener) -> bool {
    let both_hold = !one.source.is_conditional && !other.source.is_conditional;
    let alike = (&one.interface, &one.namespace) == (&other.interface, &other.namespace);
    match (&one.bound, &other.bound) {
        _ if one.is_remote_peer || other.is_remote_peer => false,
        (Bound::Tcp(Address::Unknown, _), _) | (_, Bound::Tcp(Address::Unknown, _)) => false,
        (Bound::Tcp(address, ports), Bound::Tcp(same, others)) => {
            let overlap = ports.start() <= others.end() && others.start() <= ports.end();
            both_hold && alike && address == same && overlap
        }
        (Bound::Path(path), Bound::Path(same)) => both_hold && path == same && !path.contains('$'),
        _ => false,
    }
}

/// The reasons why services lose something to these files that they had first. The files keep what they had in `before`, the last
/// accepted form.
pub(super) fn find_late_claims(operator: &OperatorConfig, before: &OperatorConfig, held: &HeldNames) -> Vec<String> {
    let mut found = Vec::new();
    for section in operator.sections.iter().filter(|section| !before.has_section(&section.name)) {
        if is_proxy_kind(&section.kind) && held.sections.contains(section.service_section()) {
            found.push(format!(
                "{}: the section of {}, which is served, has this name. Rename yours, or delete the service first",
                section.source,
                key_of(section.service_section())
            ));
        }
    }
    // Without this, HAProxy would reject the whole, and confgen would blame the service.
    let tables = operator.references.iter().filter(|it| it.part == Part::Table);
    for it in tables.filter(|it| held.without_stick_table.contains(&it.section) && !operator.has_section(&it.section)) {
        found.push(format!(
            "{}: {} has no stick table. Use one of your own, or set the service's `sticky` to source",
            it.source,
            key_of(&it.section)
        ));
    }
    for listener in &operator.listeners {
        let (Bound::Tcp(_, ports), None) = (&listener.bound, &listener.namespace) else { continue };
        let claimed = held.ports.range(ports.clone()).find(|(port, _)| !has_port(before, **port));
        if let Some((port, section)) = claimed {
            found.push(format!(
                "{}: port {port} belongs to {}, which had it first. Give yours another port, or change the service's `ports`",
                listener.source,
                key_of(section)
            ));
        }
    }
    found
}

fn has_port(operator: &OperatorConfig, port: u16) -> bool {
    operator.tcp_ports().any(|(ports, _)| ports.contains(&port))
}

/// The key of the service with this section: `http-services/shop`.
fn key_of(section: &str) -> String {
    parse_section(section).map_or(section.to_owned(), |id| id.folder_path().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> OwnEndpoints {
        let bind = |text: &str| text.parse().unwrap();
        OwnEndpoints {
            binds: vec![
                (bind("*:80"), "--http-bind"),
                (bind("*:443"), "--https-bind"),
                (bind("10.0.0.1:1936"), "--stats-bind"),
                (bind("[::]:8443"), "--https-bind"),
            ],
            runtime_socket: "/run/haproxy/admin.sock".into(),
            master_dirs: vec!["/run/haproxy-handover".into(), "/run/haproxy/handover".into()],
            state_file: "/run/haproxy/servers.state".into(),
        }
    }

    fn real(path: &Path) -> PathBuf {
        let text = path.to_string_lossy().replace("/./", "/").replace("/var/run/", "/run/");
        PathBuf::from(text)
    }

    fn found(text: &str) -> Vec<String> {
        find_conflicts(&OperatorConfig::from_texts([("mine.cfg", text)]), &taken(), &real)
    }

    #[test]
    fn an_address_of_confgens_is_refused_by_file_line_and_option() {
        for bind in [
            "*:80",
            ":80",
            "0.0.0.0:80",
            "ipv4@*:80",
            "10.1.2.3:80",
            "127.0.0.1:80 interface lo",
            "[::]:80",
            ":::80 v4v6",
            ":79-81",
            ":8080,:80",
            "\"${HOST}:80\"",
            "\"${HOST-10.0.0.2}:80\"",
            "\"${ALL-:80}\"",
            r"*:\x38\x30",
            "\x0b*:80",
            ":80 transparent",
        ] {
            let found = found(&format!("frontend web\n    bind {bind}\n"));
            assert_eq!(found.len(), 1, "{bind}: {found:?}");
            assert!(found[0].starts_with("mine.cfg:2: `bind ") && found[0].contains("(--http-bind)"), "{found:?}");
            assert!(found[0].contains("frontend web") && found[0].contains("another port"), "{found:?}");
        }
        for (bind, option) in
            [("*:443 ssl", "--https-bind"), ("*:1936", "--stats-bind"), ("[::1]:8443", "--https-bind")]
        {
            let found = found(&format!("listen web\n    bind {bind}\n"));
            assert!(found.len() == 1 && found[0].contains(option), "{bind}: {found:?}");
        }
    }

    #[test]
    fn each_address_of_a_list_in_the_environment_counts() {
        let found = found("global\n    setenv ALL \":8080 :80\"\nfrontend web\n    bind \"${ALL[*]}\"\n");
        assert_eq!(found, Vec::<String>::new(), "the second word is an option, and HAProxy refuses it");
        let found = self::found("global\n    setenv ALL \":80 ssl\"\nfrontend web\n    bind \"${ALL[*]}\"\n");
        assert!(found.len() == 1 && found[0].starts_with("mine.cfg:4: `bind :80` in `frontend web`"), "{found:?}");
    }

    #[test]
    fn an_address_that_takes_nothing_of_confgens_is_the_operators() {
        for bind in [
            ":8080",
            "[::]:80 v6only",
            "[fd00::1]:80",
            "10.0.0.2:1936",
            "[::]:1936 v6only",
            "quic4@:443 ssl",
            "*:80 namespace blue",
            "/run/mine.sock",
            "abns@discover-tls",
            "fd@5",
            "\"*:${PORT}\"",
        ] {
            assert_eq!(found(&format!("frontend web\n    bind {bind}\n")), Vec::<String>::new(), "{bind}");
        }
    }

    #[test]
    fn an_address_of_a_listener_that_is_no_frontend_counts_too() {
        let environment = [("HAPROXY_LOCALPEER".to_owned(), "lb1".to_owned())].into();
        let found = |text: &str| {
            find_conflicts(&OperatorConfig::parse_files([("mine.cfg", text)], &environment), &taken(), &real)
        };
        for refused in [
            "peers us\n peer lb1 10.0.0.1:80\n",
            "peers us\n server lb1 *:443\n",
            "peers us\n bind :80\n server lb1\n",
            "peers us\n peer \"${HAPROXY_LOCALPEER}\" :80\n",
            "peers us\n peer \"${NAME}\" :80\n",
            "global\n localpeer me\npeers us\n peer me :80\n",
            "log-forward x\n bind :80\n",
            "log-forward x\n dgram-bind unix@/run/haproxy/admin.sock\n",
            "global\n stats socket ipv4@*:80\n",
            "frontend a\n bind :8080\npeers us\n peer lb1 :8080\n",
        ] {
            assert_eq!(found(refused).len(), 1, "{refused}: {:?}", found(refused));
        }
        for fine in [
            "peers us\n peer lb2 10.0.0.2:80\n",
            "peers us\n peer lb1 10.0.0.1:1024\n peer lb2 10.0.0.2:1024\n",
            "global\n localpeer me\npeers us\n peer lb1 :80\n",
            "log-forward x\n dgram-bind :80\n",
            "mailers m\n mailer smtp 10.0.0.1:80\n",
            "ring r\n server log 10.0.0.1:80\n",
            "resolvers d\n nameserver one 10.0.0.1:80\n",
        ] {
            assert_eq!(found(fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn a_socket_of_confgens_is_refused_in_every_spelling() {
        for socket in [
            "/run/haproxy/admin.sock mode 660 level admin",
            "\t'/run/haproxy/admin.sock'",
            "/run/haproxy/./admin.sock",
            "unix@/run/haproxy/admin.sock",
            "/var/run/haproxy/admin.sock",
            "unix@admin.sock",
            "\"${DIR}/admin.sock\"",
            "/run/haproxy/handover/1.sock",
            "/run/haproxy-handover/1.sock",
            "/run/haproxy/discover-tls-haproxy.sock",
        ] {
            let found = found(&format!("global\n.if defined(X)\n    stats socket {socket}\n.endif\n"));
            assert_eq!(found.len(), 1, "{socket}: {found:?}");
            assert!(found[0].starts_with("mine.cfg:3: `stats socket "), "{found:?}");
        }
        let admin = found("global\n  stats socket /run/haproxy/admin.sock\n").join("");
        assert!(admin.contains("(--runtime-socket). Delete the line"), "{admin}");
        assert_eq!(found("frontend f\n bind /run/haproxy/admin.sock\n").len(), 1);
        for socket in ["/run/haproxy/mine.sock level user", "ipv4@127.0.0.1:9999", "fd@3", "\"${X}\""] {
            assert_eq!(found(&format!("global\n stats socket {socket}\n")), Vec::<String>::new(), "{socket}");
        }
    }

    #[test]
    fn only_names_that_the_generated_file_has_are_refused() {
        let refused =
            found("frontend discover-web\nlisten discover-stats\nuserlist discover-stats\npeers discover-sticky\n");
        assert_eq!(refused.len(), 4, "{refused:?}");
        let shapes = found("defaults discover-http\ndefaults discover-tcp-leastconn from other\n");
        assert_eq!(shapes.len(), 2, "{shapes:?}");
        let words = "mine.cfg:1: `frontend discover-web`: the generated file has a section of this name. Rename yours";
        assert_eq!(refused[0], words);
        let fine = "frontend http-in\nbackend tcp-x\ndefaults http-fast\ndefaults discover-https\nfrontend discovery\nfrontend discover-mine\n\
                    userlist discover-web\npeers discover-stats\ncache discover-web\n";
        assert_eq!(found(fine), Vec::<String>::new());
        assert!(found("program p\n  command x\n")[0].contains("supervisord"));
    }

    #[test]
    fn two_sections_on_one_address_are_refused_by_both_lines() {
        let both = found("frontend a\n bind :8080\n\nlisten b\n bind *:8000-8100\n");
        assert_eq!(both.len(), 1, "{both:?}");
        assert!(
            both[0].starts_with("mine.cfg:2: `bind :8080` in `frontend a`, and mine.cfg:5: `bind *:8000-8100`"),
            "{both:?}"
        );
        for apart in [
            "frontend a\n bind :8080\n bind :8080 process 1\n",
            "frontend a\n bind :8080\nfrontend b\n bind 10.0.0.1:8080\n",
            "frontend a\n bind :8080 interface x\nfrontend b\n bind :8080 interface y\n",
            ".if defined(A)\nfrontend a\n bind :8080\n.else\nfrontend b\n bind :8080\n.endif\n",
        ] {
            assert_eq!(found(apart), Vec::<String>::new(), "{apart}");
        }
    }

    #[test]
    fn a_line_of_global_that_breaks_a_restart_is_refused_by_name() {
        let state = found("global\n    server-state-file /var/lib/haproxy/state\n").join("");
        assert!(
            state.starts_with("mine.cfg:2: `server-state-file /var/lib/haproxy/state` in `global`: handover"),
            "{state}"
        );
        assert!(state.contains("--server-state-file"), "{state}");
    }

    #[test]
    fn an_upstream_can_not_be_named() {
        let track = found("backend mine\n server a 10.0.0.1:80 track http-a/x\n");
        assert!(track.len() == 1 && track[0].starts_with("mine.cfg:2: "), "{track:?}");
        assert_eq!(found("backend http-a\n server x 10.0.0.1:80\n server b 10.0.0.1:80 track http-a/x\n"), [""; 0]);
    }

    #[test]
    fn a_later_edit_takes_nothing_from_a_service() {
        let of = |text: &str| OperatorConfig::from_texts([("mine.cfg", text)]);
        let held = HeldNames {
            sections: ["http-in", "tcp-db"].map(str::to_owned).into(),
            without_stick_table: ["http-in".to_owned()].into(),
            ports: [(5432, "tcp-db".to_owned())].into(),
        };
        let named = of("backend x\n stick match src table http-in\n stick store-request src table http-out\n");
        let late = find_late_claims(&named, &named, &held);
        assert!(late.len() == 1 && late[0].contains("http-services/in has no stick table"), "{late:?}");
        let file = of("frontend http-in\n bind :5000-6000\nbackend http-out\nbackend http-in:preview-blue\n");
        let late = find_late_claims(&file, &OperatorConfig::default(), &held);
        assert_eq!(late.len(), 3, "{late:?}");
        assert!(
            late[0].starts_with("mine.cfg:1: `frontend http-in`: the section of http-services/in, which"),
            "{late:?}"
        );
        assert!(late[2].contains("port 5432 belongs to tcp-services/db, which had it first"), "{late:?}");
        assert_eq!(find_late_claims(&file, &file, &held), Vec::<String>::new(), "the file had it first");
    }
}
