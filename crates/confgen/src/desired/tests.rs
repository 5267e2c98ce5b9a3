use discovery::{Entry, Kind, Topology, Upstream};
use proptest::prelude::*;

use super::*;

/// A store written down as lines of `key value`, each with its line's number as create revision.
pub(crate) fn topology(lines: &str) -> Topology {
    let entries: Vec<Entry> = lines
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .zip(1..)
        .map(|(line, revision)| {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            Entry { key: key.into(), value: value.into(), create_revision: revision, mod_revision: revision, lease: 0 }
        })
        .collect();
    Topology::from_entries(&entries)
}

fn http(name: &str) -> ServiceId {
    ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
}

/// Everything at once, from what was remembered.
pub(crate) fn settle(topology: &Topology, memory: &LastKnownGood, limits: &Policy) -> DesiredState {
    let mut settled = DesiredState::from_last_known_good(memory.clone());
    settled.set_policy(limits.clone());
    settled.update_services(topology, &Changed::All);
    settled.drop_removed();
    settled
}

fn service<'a>(settled: &'a DesiredState, name: &str) -> &'a DesiredService {
    settled.service(&http(name)).unwrap()
}

fn routes(settled: &DesiredState, name: &str) -> Vec<String> {
    service(settled, name).routes.iter().map(|r| format!("{}{}", r.domain, r.path)).collect()
}

fn settled(lines: &str) -> DesiredState {
    settle(&topology(lines), &LastKnownGood::default(), &Policy::default())
}

fn retained(record: Upstream) -> RetainedUpstream {
    RetainedUpstream { record, is_unproven: false }
}

#[test]
fn a_claim_belongs_to_the_first_and_the_loser_keeps_the_rest() {
    let first = settled("http-services/b/domain a.com b.com\n http-services/a/domain a.com c.com");
    assert_eq!(routes(&first, "b"), ["a.com/", "b.com/"]);
    assert_eq!(routes(&first, "a"), ["c.com/"]);
    assert_eq!(
        first.quarantined_keys(),
        [("http-services/a/domain".to_owned(), "a.com/ belongs to http-b, which had it first".to_owned())].into()
    );
}

#[test]
fn the_owner_of_a_claim_keeps_it() {
    let memory = settled("http-services/b/domain a.com").to_last_known_good();
    let later =
        settle(&topology("http-services/a/domain a.com\n http-services/b/domain a.com"), &memory, &Policy::default());
    assert_eq!(routes(&later, "b"), ["a.com/"]);
    let gone = settle(&topology("http-services/a/domain a.com"), &later.to_last_known_good(), &Policy::default());
    assert_eq!(routes(&gone, "a"), ["a.com/"]);
}

#[test]
fn hosts_meet_only_where_their_paths_do() {
    let both =
        settled("http-services/a/domain a.com\n http-services/b/domain a.com\n http-services/b/path /api /admin");
    assert_eq!(routes(&both, "a"), ["a.com/"]);
    assert_eq!(routes(&both, "b"), ["a.com/admin", "a.com/api"]);
    assert!(both.quarantined_keys().is_empty());
}

#[test]
fn a_bad_value_leaves_the_last_good_one_serving_while_the_key_exists() {
    let limits = Policy::default();
    let good = settled("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80");
    let bad = topology("http-services/a/domain a\"b\n http-services/a/upstreams/1 unix@/x");
    let kept = settle(&bad, &good.to_last_known_good(), &limits);
    assert!(kept.services().eq(good.services()));
    assert_eq!(kept.quarantined_keys().len(), 2);
    assert!(kept.quarantined_keys()["http-services/a/domain"].ends_with("the last good value serves"));
    // Once more, from what was remembered beside the bad values; then the key goes, and so does its value.
    let again = settle(&bad, &kept.to_last_known_good(), &limits);
    assert!(again.services().eq(kept.services()) && again.quarantined_keys() == kept.quarantined_keys());
    let gone = settle(&topology("http-services/a/domain a.com"), &again.to_last_known_good(), &limits);
    assert_eq!(service(&gone, "a").servers, []);
    let back = settle(&bad, &gone.to_last_known_good(), &limits);
    assert_eq!(service(&back, "a").servers, []);
}

#[test]
fn a_value_that_went_with_its_service_does_not_come_back() {
    let good = settled("http-services/a/upstreams/1 10.0.0.1:80");
    let mut settled = settle(&topology("http-services/b/domain b.com"), &good.to_last_known_good(), &Policy::default());
    let bad = topology("http-services/b/domain b.com\n http-services/a/upstreams/1 unix@/x");
    settled.update_services(&bad, &Changed::Services([http("a")].into()));
    assert_eq!(service(&settled, "a").servers, []);
}

#[test]
fn a_service_without_any_key_stays_with_retained_upstreams_or_is_dropped() {
    let all = topology("http-services/default/upstreams/1 10.0.0.1:80\n http-services/a/domain a.com");
    let none = topology("http-services/a/domain a.com");
    let mut settled = settle(&all, &LastKnownGood::default(), &Policy::default());
    let one = Changed::Services([http("default")].into());
    assert!(settled.update_services(&none, &one).contains(&http("default")));
    let [lost] = <[UpstreamRemoval; 1]>::try_from(settled.take_removals()).unwrap();
    settled.set_retained(&http("default"), [(lost.id, retained(lost.upstream))].into());
    assert_eq!(settled.drop_removed(), []);
    assert_eq!(service(&settled, "default").servers.len(), 1);
    settled.update_services(&none, &Changed::All);
    assert_eq!(service(&settled, "default").servers.len(), 1, "nor by a listing");
    settled.set_retained(&http("default"), BTreeMap::new());
    assert_eq!(settled.drop_removed(), [http("default")]);
    assert_eq!(settled.service(&http("default")), None);
    // After a restart of confgen it is known from nothing but that it is kept.
    let mut anew = settle(&none, &LastKnownGood::default(), &Policy::default());
    let upstream = Upstream::parse(b"10.0.0.1:80").unwrap();
    anew.set_retained(&http("default"), [("1".parse().unwrap(), retained(upstream))].into());
    anew.update_services(&none, &Changed::All);
    assert_eq!((service(&anew, "default").servers.len(), anew.drop_removed()), (1, vec![]));
}

#[test]
fn a_port_on_every_ipv4_address_takes_in_ipv4_alone() {
    let settled = settled("tcp-services/db/ports 10.0.0.1:3306 *:3306 [fd00::1]:3306");
    let id = ServiceId { kind: Kind::Tcp, name: "db".parse().unwrap() };
    let binds = settled.service(&id).unwrap().binds.iter().map(ToString::to_string);
    assert_eq!(binds.collect::<Vec<_>>(), ["*:3306", "[fd00::1]:3306"]);
}

#[test]
fn a_setting_that_decides_access_is_never_guessed() {
    for gate in ["allow nonsense", "tls nonsense", "proto h3", "active ="] {
        let lines =
            format!("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/{gate}");
        let held = settled(&lines);
        assert_eq!(routes(&held, "a"), ["a.com/"], "{gate}: the host stays its own, and answers 503");
        assert_eq!(service(&held, "a").servers, [], "{gate}");
        assert_eq!(held.quarantined_keys().len(), 1, "{gate}");
    }
    let beaten =
        settled("http-services/a/sslpass 1\n http-services/a/tls both\n http-services/a/upstreams/1 10.0.0.1:80");
    assert_eq!(service(&beaten, "a").servers.len(), 1);
    assert!(beaten.quarantined_keys().is_empty());
}

/// A bad `verify` or `sni` affects only services that speak TLS to their upstreams.
#[test]
fn an_upstream_that_is_trusted_over_tls_is_never_guessed() {
    for (lines, servers, quarantined) in [
        ("tls reencrypt", 1, 0),
        ("tls reencrypt\n http-services/a/verify no-such.pem", 0, 1),
        ("tls reencrypt\n http-services/a/sni a b", 0, 1),
        ("tls reencrypt\n http-services/a/sni off", 1, 0),
        ("tls terminate\n http-services/a/verify no-such.pem", 1, 1),
        ("tls terminate\n http-services/a/sni a b", 1, 1),
    ] {
        let store = "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/";
        let settled = settled(&format!("{store}{lines}"));
        let seen = (service(&settled, "a").servers.len(), settled.quarantined_keys().len());
        assert_eq!(seen, (servers, quarantined), "{lines}");
    }
    let nameless = |verify: &str| {
        let lines = "http-services/a/domain *.a.com\n http-services/a/upstreams/1 10.0.0.1:80\n \
                     http-services/a/tls reencrypt\n http-services/a/sni off\n http-services/a/verify ";
        service(&settled(&format!("{lines}{verify}")), "a").servers.len()
    };
    assert_eq!((nameless("on"), nameless("off")), (0, 1));
}

#[test]
fn an_older_content_of_a_file_of_authorities_serves_and_is_told_of() {
    let name: discovery::FileName = "ca.pem".parse().unwrap();
    let authority = Authority { copy: "/state/ca/ca.pem".parse().unwrap(), fingerprint: "1".to_owned() };
    let limits = |usable: bool, refused: Option<&str>| {
        let usable = usable.then(|| (name.clone(), authority.clone())).into_iter().collect();
        let refused = refused.map(|reason| (name.clone(), reason.to_owned())).into_iter().collect();
        Policy { ca_files: Authorities { usable, refused }, ..Policy::default() }
    };
    let store = topology(
        "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/tls reencrypt\n \
         http-services/a/verify ca.pem",
    );
    for (usable, refused, servers, said) in [
        (true, None, 1, None),
        (true, Some("broken"), 1, Some("ca.pem in --ca-dir: broken; its last good content serves")),
        (false, Some("broken"), 0, Some("ca.pem in --ca-dir: broken; no good value yet")),
        (false, None, 0, Some("no file ca.pem in --ca-dir; no good value yet")),
    ] {
        let settled = settle(&store, &LastKnownGood::default(), &limits(usable, refused));
        assert_eq!(service(&settled, "a").servers.len(), servers, "{said:?}");
        assert_eq!(settled.quarantined_keys().values().next().map(String::as_str), said);
    }
}

#[test]
fn passthrough_has_its_whole_host_and_nothing_inside_beside_it() {
    for by in ["tls passthrough", "sslpass"] {
        let store = |more: &str| {
            settled(&format!(
                "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:443\n http-services/a/{by}\n {more}"
            ))
        };
        let alone = store("");
        assert!(service(&alone, "a").settings.passes_through() && alone.quarantined_keys().is_empty());
        for beside in ["path /x", "url_reg ^/x", "sticky cookie", "hsts 180d"] {
            let settled = store(&format!("http-services/a/{beside}"));
            let (a, key) = (service(&settled, "a"), format!("http-services/a/{}", by.split(' ').next().unwrap()));
            assert!(!a.settings.passes_through() && a.servers.is_empty(), "{beside}: {a:?}");
            assert!(settled.quarantined_keys()[&key].contains("not beside"), "{beside}");
        }
        for pointless in ["balance uri", "proto h2"] {
            let settled = store(&format!("http-services/a/{pointless}"));
            let a = service(&settled, "a");
            assert!(a.settings.passes_through() && a.servers.len() == 1, "{pointless}: {a:?}");
            assert_eq!(settled.quarantined_keys().len(), 1, "{pointless}");
        }
        assert!(store("http-services/a/sticky source").quarantined_keys().is_empty());
    }
    let beaten = settled("http-services/a/sslpass\n http-services/a/tls terminate");
    assert!(!service(&beaten, "a").settings.passes_through());
    let default = settled("http-services/default/tls passthrough\n http-services/default/upstreams/1 10.0.0.1:443");
    assert!(service(&default, "default").servers.is_empty());
}

#[test]
fn the_setting_before_a_bad_passthrough_serves_on() {
    let store = |tls: &str| {
        topology(&format!(
            "http-services/a/domain a.com\n http-services/a/path /x\n http-services/a/tls {tls}\n \
             http-services/a/upstreams/1 10.0.0.1:443"
        ))
    };
    let mut settled = settle(&store("terminate"), &LastKnownGood::default(), &Policy::default());
    settled.update_services(&store("passthrough"), &Changed::All);
    let a = service(&settled, "a");
    assert_eq!((a.settings.tls, a.servers.len()), (discovery::Tls::Terminate, 1));
}

#[test]
fn a_host_is_passed_through_whole_or_not_at_all() {
    let through = "http-services/pt/tls passthrough\n http-services/pt/domain a.com *.b.com\n";
    let part = "http-services/part/domain a.com\n http-services/part/path /x\n";
    let routes_of = |settled: &DesiredState| (routes(settled, "pt"), routes(settled, "part"));
    let whole = || (vec!["a.com/".to_owned(), "*.b.com/".to_owned()], Vec::<String>::new());
    let parts = || (vec!["*.b.com/".to_owned()], vec!["a.com/x".to_owned()]);
    // If no service holds the host yet, it belongs to the service with the older key. A line is a revision.
    let first = settled(&format!("{through}{part}"));
    assert_eq!(routes_of(&first), whole());
    let second = settled(&format!("{part}{through}"));
    assert_eq!(routes_of(&second), parts());
    let reason = "a.com has another service, and passthrough takes a host whole";
    assert_eq!(second.quarantined_keys(), [("http-services/pt/domain".to_owned(), reason.to_owned())].into());
    // Its holder keeps it.
    let limits = Policy::default();
    let both = [topology(&format!("{through}{part}")), topology(&format!("{part}{through}"))];
    for store in both {
        assert_eq!(routes_of(&settle(&store, &first.to_last_known_good(), &limits)), whole());
        assert_eq!(routes_of(&settle(&store, &second.to_last_known_good(), &limits)), parts());
    }
    // The other service's part of a host that was shared until now.
    let shared =
        settled("http-services/pt/domain a.com *.b.com\n http-services/part/domain a.com\n http-services/part/path /x");
    let now = settle(&topology(&format!("{through}{part}")), &shared.to_last_known_good(), &limits);
    assert_eq!(routes_of(&now), parts());
    // Wildcards and hosts are different things.
    let beside = settled(&format!("{through} http-services/part/domain x.b.com"));
    assert_eq!(routes_of(&beside), (whole().0, vec!["x.b.com/".to_owned()]));
    // Of two that pass through, the first.
    let two = settled(&format!("{through} http-services/part/tls passthrough\n http-services/part/domain a.com"));
    assert_eq!(routes_of(&two), whole());
}

#[test]
fn an_unreadable_path_claims_nothing() {
    let settled = settled("http-services/a/domain a.com\n http-services/a/path api");
    assert_eq!(routes(&settled, "a"), [""; 0]);
}

#[test]
fn reserved_ports() {
    let limits = Policy {
        reserved_ports: vec![(80..=80, "--http-bind".to_owned()), (4000..=4010, "frontend a".to_owned())],
        tcp_ports: Some(1024..=65535),
        ..Policy::default()
    };
    let lines =
        "tcp-services/db/ports 80 81 3306\n tcp-services/three/ports 4010\n tcp-services/two/ports 10.0.0.1:3306";
    let settled = settle(&topology(lines), &LastKnownGood::default(), &limits);
    let db = ServiceId { kind: Kind::Tcp, name: "db".parse().unwrap() };
    assert_eq!(settled.service(&db).unwrap().binds, ["3306".parse().unwrap()]);
    let reasons: Vec<_> = settled.quarantined_keys().iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    expect_test::expect![[r#"
        tcp-services/db/ports: port 80 is reserved: --http-bind binds it; port 81 is outside of --tcp-ports 1024-65535
        tcp-services/three/ports: port 4010 is reserved: frontend a binds it
        tcp-services/two/ports: :3306 belongs to tcp-db, which had it first"#]]
    .assert_eq(&reasons.join("\n"));
}

#[test]
fn a_reserved_host_is_nobodys() {
    let reserved_hosts = [("stats.a.com".parse().unwrap(), "--stats-domain".to_owned())].into();
    let limits = Policy { reserved_hosts, ..Policy::default() };
    let lines =
        "http-services/a/domain stats.a.com www.a.com\n http-services/a/path /x /y\n http-services/b/domain *.a.com";
    let settled = settle(&topology(lines), &LastKnownGood::default(), &limits);
    let routes = |name| service(&settled, name).routes.iter().map(|it| it.domain.to_string()).collect::<Vec<_>>();
    assert_eq!((routes("a"), routes("b")), (vec!["www.a.com".into(); 2], vec!["*.a.com".into()]));
    let reasons: Vec<_> = settled.quarantined_keys().into_iter().collect();
    let reason = "stats.a.com is reserved: --stats-domain has it";
    assert_eq!(reasons, [("http-services/a/domain".to_owned(), reason.to_owned())]);
}

#[test]
fn an_upstream_is_where_upstreams_may_be() {
    let store = topology(
        "http-services/a/upstreams/1 127.0.0.1:80\n http-services/a/upstreams/2 [::ffff:127.0.0.1]:80
         http-services/a/upstreams/3 0.0.0.0:80\n http-services/a/upstreams/4 169.254.169.254:80
         http-services/a/upstreams/5 10.0.0.1:80\n http-services/a/upstreams/6 [fe80::1]:80",
    );
    let ids = |upstream_networks| {
        let limits = Policy { upstream_networks, ..Policy::default() };
        let settled = settle(&store, &LastKnownGood::default(), &limits);
        service(&settled, "a").servers.iter().map(|s| s.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(None), ["5"]);
    assert_eq!(ids(Some("127.0.0.0/8".parse().unwrap())), ["1", "2"]);
}

#[test]
fn the_strictest_state_counts() {
    let settled = settled(
        r#"http-services/a/upstreams/1 {"address":"10.0.0.1:80","state":"drain"}
           http-services/a/upstreams/2 10.0.0.2:80
           http-services/a/overrides/2 {"state":"drain","weight":7}
           http-services/a/upstreams/3 {"address":"10.0.0.3:80","state":"down"}
           http-services/a/overrides/3 {"state":"drain"}
           http-services/a/upstreams/4 10.0.0.4:80
           http-services/a/overrides/gone {"state":"maint"}"#,
    );
    let servers: Vec<_> =
        service(&settled, "a").servers.iter().map(|s| format!("{} {:?} {}", s.id, s.state, s.weight)).collect();
    assert_eq!(servers, ["1 Maint 100", "2 Drain 7", "3 Maint 100", "4 Ready 100"]);
}

#[test]
fn a_share_is_the_colors_however_many_upstreams_it_has() {
    let upstream = |id: u8, color: &str| {
        format!("http-services/a/upstreams/{id} {{\"address\":\"10.0.0.{id}:80\",\"color\":\"{color}\"}}\n")
    };
    let colored = |active: &str| {
        let records: String = (1..=4).map(|id| upstream(id, "blue")).chain([upstream(5, "green")]).collect();
        let settled =
            settled(&format!("{records}http-services/a/upstreams/6 10.0.0.6:80\nhttp-services/a/active {active}"));
        let servers = &service(&settled, "a").servers;
        servers.iter().map(|s| format!("{:?} {}", s.state, s.weight)).collect::<Vec<_>>()
    };
    let drained = "Drain 100";
    assert_eq!(colored("blue"), ["Ready 100", "Ready 100", "Ready 100", "Ready 100", drained, drained]);
    assert_eq!(colored("blue=80 green=20"), ["Ready 256", "Ready 256", "Ready 256", "Ready 256", "Ready 256", drained]);
    assert_eq!(colored("blue=1 green=99"), ["Ready 1", "Ready 1", "Ready 1", "Ready 1", "Ready 256", drained]);
    assert_eq!(colored("red"), [drained; 6]);
}

#[test]
fn hsts_is_refused_beside_plain_http() {
    let settled = settled(
        "http-services/a/domain a.com\n http-services/a/hsts 180d\n \
         http-services/b/domain a.com\n http-services/b/path /plain\n http-services/b/tls off",
    );
    assert_eq!(service(&settled, "a").settings.hsts, None);
    assert!(settled.quarantined_keys().contains_key("http-services/a/hsts"));
}

#[test]
fn a_change_costs_its_own_service_alone() {
    let limits = Policy::default();
    let lines = "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/b/domain b.com";
    let mut settled = settle(&topology(lines), &LastKnownGood::default(), &limits);
    let b = Arc::clone(settled.service(&http("b")).unwrap());
    let more = topology(&format!("{lines}\n http-services/a/upstreams/2 10.0.0.2:80"));
    let mut changed = Changed::no_services();
    changed.add_service(http("a"));
    assert_eq!(settled.update_services(&more, &changed), [http("a")].into());
    assert!(Arc::ptr_eq(&b, settled.service(&http("b")).unwrap()));
    let less = topology("http-services/b/domain b.com");
    assert_eq!(settled.update_services(&less, &changed), [http("a")].into());
    assert_eq!(settled.drop_removed(), [http("a")]);
    assert!(settled.service(&http("a")).is_none());
}

#[test]
fn a_key_that_was_deleted_and_written_again_claims_anew() {
    let entry = |service: &str, create_revision, mod_revision| {
        let key = format!("http-services/{service}/domain");
        Entry { key, value: "a.com".into(), create_revision, mod_revision, lease: 0 }
    };
    let owner = |settled: &DesiredState| {
        let services = settled.services().filter(|(_, it)| !it.routes.is_empty());
        services.map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    let before = Topology::from_entries(&[entry("a", 1, 1), entry("b", 2, 2)]);
    let mut settled = settle(&before, &LastKnownGood::default(), &Policy::default());
    assert_eq!(owner(&settled), ["http-a"]);
    // A balancer that saw the deletion gave the host to b, and one that saw only what came of it must too.
    let written_again = Topology::from_entries(&[entry("a", 4, 4), entry("b", 2, 2)]);
    settled.update_services(&written_again, &Changed::Services([http("a")].into()));
    assert_eq!(owner(&settled), ["http-b"]);
    // A key that was only changed keeps what it has.
    let mut settled = settle(&before, &LastKnownGood::default(), &Policy::default());
    settled.update_services(&Topology::from_entries(&[entry("a", 1, 4), entry("b", 2, 2)]), &Changed::All);
    assert_eq!(owner(&settled), ["http-a"]);
}

proptest! {
    /// In every order of changes, a confgen that keeps the decisions of earlier steps decides as one that was started anew.
    #[test]
    fn step_by_step_comes_to_the_same_as_at_once(
        steps in prop::collection::vec((0..5_usize, 0..6_usize, 0..8_usize, any::<bool>()), 1..30),
    ) {
        let keys = ["domain", "path", "tls", "hsts", "upstreams/1", "ports"];
        let values = ["a.com b.com", "b.com", "/x", "off", "10.0.0.1:80", "passthrough", "3306 3307", "3307"];
        let (mut store, mut created) = (Topology::default(), BTreeMap::new());
        let mut settled = DesiredState::from_last_known_good(LastKnownGood::default());
        for (step, (service, key, value, is_new)) in steps.into_iter().enumerate() {
            let kind = if service >= 3 { Kind::Tcp } else { Kind::Http };
            let id = ServiceId { kind, name: format!("s{service}").parse().unwrap() };
            let key = format!("{}{}", id.folder_path(), keys[key]);
            let revision = i64::try_from(step).unwrap() + 1;
            let value = values[value].into();
            // Every fifth step deletes the key. A new key was deleted and written again, and confgen sees only the second.
            let change = if step % 5 == 4 {
                created.remove(&key);
                discovery::Change::Delete { key, revision, previous: None }
            } else {
                let create_revision = *created.get(&key).filter(|_| !is_new).unwrap_or(&revision);
                created.insert(key.clone(), create_revision);
                discovery::Change::Put(Entry { key, value, create_revision, mod_revision: revision, lease: 0 })
            };
            let mut at_once = DesiredState::from_last_known_good(settled.to_last_known_good());
            at_once.assume_topology(&store);
            store.apply_change(&change);
            let mut changed = Changed::no_services();
            changed.add_service(id);
            let touched = settled.update_services(&store, &changed);
            settled.drop_removed();
            at_once.update_services(&store, &Changed::All);
            at_once.drop_removed();
            prop_assert!(settled.services().eq(at_once.services()), "{touched:?}");
            prop_assert_eq!(settled.quarantined_keys(), at_once.quarantined_keys());
            prop_assert_eq!(settled.to_last_known_good(), at_once.to_last_known_good());
        }
    }
}

#[test]
fn a_service_that_haproxy_refuses_goes_back_to_its_last_good_form() {
    let lines = "http-services/a/domain a.com\n http-services/b/domain b.com";
    let mut settled = settle(&topology(lines), &LastKnownGood::default(), &Policy::default());
    settled.mark_accepted(&settled.clone());
    let worse = topology(&format!("{lines}\n http-services/a/url_reg ^/x\n http-services/c/url_reg ^/y"));
    settled.update_services(&worse, &Changed::All);
    let judged = settled.clone();
    let culprits = [(http("a"), "bad".to_owned()), (http("c"), "bad too".to_owned())].into();
    assert_eq!(settled.reject_services(&culprits, &judged), [http("a"), http("c")].into());
    assert_eq!(service(&settled, "a").url_reg, None);
    assert!(settled.service(&http("c")).is_none());
    let reasons = settled.quarantined_keys();
    assert_eq!(reasons["http-services/a/"], "HAProxy refuses the service: bad; its last good form serves");
    assert_eq!(reasons["http-services/c/"], "HAProxy refuses the service: bad too; it has no good form yet");
    settled.update_services(
        &topology(&format!("{lines}\n http-services/a/url_reg ^/x\n http-services/c/url_reg ^/y")),
        &Changed::All,
    );
    assert_eq!(settled.quarantined_keys(), reasons, "a listing of the same store changes no verdict");
    // Written anew, it is tried anew; a verdict on what it was before says nothing.
    let better = topology(&format!("{lines}\n http-services/c/url_reg ^/z"));
    settled.update_services(&better, &Changed::All);
    assert_eq!(settled.reject_services(&culprits, &judged), BTreeSet::new());
    assert!(settled.quarantined_keys().is_empty() && settled.service(&http("c")).is_some());
}

#[test]
fn a_form_that_runs_and_that_no_file_may_have_is_no_way_back() {
    let lines = "http-services/a/domain a.com\n http-services/b/domain b.com";
    let with = |upstream: &str| topology(&format!("{lines}\n http-services/a/upstreams/1 {upstream}"));
    let is_served = |settled: &DesiredState| {
        let servers = &service(settled, "a").servers;
        servers.iter().map(|it| it.address.to_string()).collect::<Vec<_>>()
    };
    let mut settled = settle(&with("10.0.0.1:80"), &LastKnownGood::default(), &Policy::default());
    settled.mark_accepted(&settled.clone());
    // HAProxy takes the next one while it runs, and rejects the file with it.
    settled.update_services(&with("10.0.0.2:80"), &Changed::All);
    settled.mark_running([http("a")].iter());
    let culprits: BTreeMap<ServiceId, String> = [(http("a"), "bad".to_owned())].into();
    let judged = settled.clone();
    settled.reject_services(&culprits, &judged);
    assert_eq!(is_served(&settled), ["10.0.0.2:80"], "the form in the last good file has the servers of now");
    let judged = settled.clone();
    assert_eq!(settled.reject_services(&culprits, &judged), [http("a")].into());
    assert_eq!(is_served(&settled), ["10.0.0.1:80"], "the servers are to blame");
    // A service that no file may have in any form is left out, so that the others reach the file.
    let judged = settled.clone();
    assert_eq!(settled.reject_services(&culprits, &judged), [http("a")].into());
    assert!(settled.service(&http("a")).is_none() && settled.service(&http("b")).is_some());
}

#[test]
fn a_form_that_runs_is_no_way_back_without_its_routes_either() {
    let with = |upstream: &str, of_b: &str| {
        let a = format!("http-services/a/domain a.com\n http-services/a/upstreams/1 {upstream}");
        topology(&format!("{a}\n http-services/b/domain {of_b}"))
    };
    let mut settled = settle(&with("10.0.0.2:80", "b.com"), &LastKnownGood::default(), &Policy::default());
    settled.mark_running([http("a"), http("b")].iter());
    // Its keys claim another host now, and b has the one that it served.
    let moved =
        "http-services/a/domain z.com\n http-services/a/upstreams/1 10.0.0.2:80\n http-services/b/domain a.com b.com";
    settled.update_services(&topology(moved), &Changed::All);
    let culprits: BTreeMap<ServiceId, String> = [(http("a"), "bad".to_owned())].into();
    for _ in 0..3 {
        let judged = settled.clone();
        settled.reject_services(&culprits, &judged);
    }
    assert!(settled.service(&http("a")).is_none() && settled.service(&http("b")).is_some());
}

#[test]
fn hosts_with_paths_are_bounded() {
    let words = |word: &dyn Fn(usize) -> String| (0..101).map(word).collect::<Vec<_>>().join(" ");
    let (hosts, paths) = (words(&|n| format!("{n}.a.com")), words(&|n| format!("/{n}")));
    let store = |paths: &str| settled(&format!("http-services/a/domain {hosts}\n http-services/a/path {paths}"));
    assert_eq!(routes(&store("/x /y"), "a").len(), 202);
    let bomb = store(&paths);
    assert_eq!(routes(&bomb, "a"), Vec::<String>::new());
    let reason = "101 hosts with 101 paths each; 10000 routes are the most; none is served";
    assert_eq!(bomb.quarantined_keys(), [("http-services/a/path".to_owned(), reason.to_owned())].into());
}

#[test]
fn the_servers_of_a_service_that_haproxy_refuses_come_and_go() {
    let store = |more: &str| {
        topology(&format!("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n{more}"))
    };
    let mut settled = settle(&store(""), &LastKnownGood::default(), &Policy::default());
    settled.mark_accepted(&settled.clone());
    assert!(settled.is_accepted(&http("a")));
    let drained = r#"http-services/a/upstreams/1 {"address":"10.0.0.1:80","state":"drain"}"#;
    settled.update_services(&store(&format!("http-services/a/url_reg ^/x\n{drained}")), &Changed::All);
    assert!(!settled.is_accepted(&http("a")));
    let culprits = [(http("a"), "bad".to_owned())].into();
    settled.reject_services(&culprits, &settled.clone());
    let states = |settled: &DesiredState| service(settled, "a").servers.iter().map(|it| it.state).collect::<Vec<_>>();
    assert_eq!((states(&settled), service(&settled, "a").url_reg.is_none()), (vec![ServerState::Maint], true));
    assert_eq!(settled.services_with_rejected_servers().count(), 0);
    settled.reject_services(&culprits, &settled.clone());
    assert_eq!(states(&settled), [ServerState::Ready], "HAProxy refuses that too");
    assert!(settled.is_accepted(&http("a")));
    assert_eq!(settled.services_with_rejected_servers().collect::<Vec<_>>(), [&http("a")]);
    settled.clear_rejections();
    assert_eq!(settled.services_with_rejected_servers().count(), 0);
}

#[test]
fn whoever_bore_a_lost_address_is_noted() {
    let leased = |service: &str, id: &str, lease| Entry {
        key: format!("http-services/{service}/upstreams/{id}"),
        value: b"10.0.0.1:80".to_vec(),
        create_revision: 1,
        mod_revision: 1,
        lease,
    };
    let stays = Entry { value: b"10.0.0.2:80".to_vec(), ..leased("a", "2", 7) };
    let before = [leased("a", "1", 7), leased("b", "1", 7), stays.clone()];
    // In one breath `a` loses it, `0` and `c` come to it, and `b`, which had it, is written again.
    let now = Topology::from_entries(&[leased("0", "1", 7), leased("b", "1", 8), leased("c", "1", 9), stays]);
    let changed = ["0", "a", "b", "c"].map(http).into();
    for changed in [Changed::Services(changed), Changed::All] {
        let mut settled = settle(&Topology::from_entries(&before), &LastKnownGood::default(), &Policy::default());
        settled.update_services(&now, &changed);
        let [lost] = <[UpstreamRemoval; 1]>::try_from(settled.take_removals()).unwrap();
        let bore: Vec<String> = lost.previous_owners.iter().map(|(service, _)| service.to_string()).collect();
        assert_eq!(bore, ["http-a", "http-b"], "{changed:?}");
        let live = settled.find_address_owners([&lost.upstream].into_iter());
        assert_eq!(live[&lost.upstream.address].len(), 3);
    }
}
