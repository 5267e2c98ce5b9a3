use discovery::{Entry, Kind, Topology};
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
    Topology::of(&entries)
}

fn http(name: &str) -> ServiceId {
    ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
}

/// Everything at once, from what was remembered.
pub(crate) fn settle(topology: &Topology, memory: &Memory, limits: &Limits) -> Settled {
    let mut settled = Settled::remembering(memory.clone());
    settled.limit(limits.clone());
    settled.update(topology, &Changed::All);
    settled
}

fn service<'a>(settled: &'a Settled, name: &str) -> &'a Wanted {
    settled.service(&http(name)).unwrap()
}

fn routes(settled: &Settled, name: &str) -> Vec<String> {
    service(settled, name).routes.iter().map(|r| format!("{}{}", r.domain, r.path)).collect()
}

fn settled(lines: &str) -> Settled {
    settle(&topology(lines), &Memory::default(), &Limits::default())
}

#[test]
fn a_claim_belongs_to_the_first_and_the_loser_keeps_the_rest() {
    let first = settled("http-services/b/domain a.com b.com\n http-services/a/domain a.com c.com");
    assert_eq!(routes(&first, "b"), ["a.com/", "b.com/"]);
    assert_eq!(routes(&first, "a"), ["c.com/"]);
    assert_eq!(
        first.quarantined(),
        [("http-services/a/domain".to_owned(), "a.com/ belongs to http-b, which had it first".to_owned())].into()
    );
}

#[test]
fn who_holds_a_claim_keeps_it() {
    let memory = settled("http-services/b/domain a.com").memory();
    let later =
        settle(&topology("http-services/a/domain a.com\n http-services/b/domain a.com"), &memory, &Limits::default());
    assert_eq!(routes(&later, "b"), ["a.com/"]);
    let gone = settle(&topology("http-services/a/domain a.com"), &later.memory(), &Limits::default());
    assert_eq!(routes(&gone, "a"), ["a.com/"]);
}

#[test]
fn hosts_meet_only_where_their_paths_do() {
    let both =
        settled("http-services/a/domain a.com\n http-services/b/domain a.com\n http-services/b/path /api /admin");
    assert_eq!(routes(&both, "a"), ["a.com/"]);
    assert_eq!(routes(&both, "b"), ["a.com/admin", "a.com/api"]);
    assert!(both.quarantined().is_empty());
}

#[test]
fn a_bad_value_leaves_the_last_good_one_serving_while_the_key_exists() {
    let limits = Limits::default();
    let good = settled("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80");
    let bad = topology("http-services/a/domain a\"b\n http-services/a/upstreams/1 unix@/x");
    let kept = settle(&bad, &good.memory(), &limits);
    assert!(kept.services().eq(good.services()));
    assert_eq!(kept.quarantined().len(), 2);
    assert!(kept.quarantined()["http-services/a/domain"].ends_with("the last good value serves"));
    // Once more, from what was remembered beside the bad values; then the key goes, and so does its value.
    let again = settle(&bad, &kept.memory(), &limits);
    assert!(again.services().eq(kept.services()) && again.quarantined() == kept.quarantined());
    let gone = settle(&topology("http-services/a/domain a.com"), &again.memory(), &limits);
    assert_eq!(service(&gone, "a").servers, []);
    let back = settle(&bad, &gone.memory(), &limits);
    assert_eq!(service(&back, "a").servers, []);
}

#[test]
fn what_decides_who_may_come_in_is_never_guessed() {
    for gate in ["allow nonsense", "tls passthrough", "tls nonsense", "sslpass 1", "proto h3", "active ="] {
        let lines =
            format!("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/{gate}");
        let held = settled(&lines);
        assert_eq!(routes(&held, "a"), ["a.com/"], "{gate}: the host stays its own, and answers 503");
        assert_eq!(service(&held, "a").servers, [], "{gate}");
        assert_eq!(held.quarantined().len(), 1, "{gate}");
    }
    let beaten =
        settled("http-services/a/sslpass 1\n http-services/a/tls both\n http-services/a/upstreams/1 10.0.0.1:80");
    assert_eq!(service(&beaten, "a").servers.len(), 1);
    assert!(beaten.quarantined().is_empty());
}

#[test]
fn an_unreadable_path_claims_nothing() {
    let settled = settled("http-services/a/domain a.com\n http-services/a/path api");
    assert_eq!(routes(&settled, "a"), [""; 0]);
}

#[test]
fn reserved_ports_and_sections() {
    let limits = Limits {
        reserved_ports: [(80, "--http-bind".to_owned())].into(),
        reserved_sections: vec!["http-mine".into()],
        tcp_ports: Some(1024..=65535),
        ..Limits::default()
    };
    let lines =
        "tcp-services/db/ports 80 81 3306\n http-services/mine/domain a.com\n tcp-services/two/ports 10.0.0.1:3306";
    let settled = settle(&topology(lines), &Memory::default(), &limits);
    let db = ServiceId { kind: Kind::Tcp, name: "db".parse().unwrap() };
    assert_eq!(settled.service(&db).unwrap().binds, ["3306".parse().unwrap()]);
    assert!(settled.service(&http("mine")).is_none());
    let reasons: Vec<_> = settled.quarantined().iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    expect_test::expect![[r#"
        http-services/mine/: an operator's own section is called http-mine
        tcp-services/db/ports: port 80 is reserved: --http-bind binds it; port 81 is outside of --tcp-ports 1024-65535
        tcp-services/two/ports: :3306 belongs to tcp-db, which had it first"#]]
    .assert_eq(&reasons.join("\n"));
}

#[test]
fn an_upstream_is_where_upstreams_may_be() {
    let store = topology(
        "http-services/a/upstreams/1 127.0.0.1:80\n http-services/a/upstreams/2 [::ffff:127.0.0.1]:80
         http-services/a/upstreams/3 0.0.0.0:80\n http-services/a/upstreams/4 169.254.169.254:80
         http-services/a/upstreams/5 10.0.0.1:80\n http-services/a/upstreams/6 [fe80::1]:80",
    );
    let ids = |upstream_networks| {
        let limits = Limits { upstream_networks, ..Limits::default() };
        let settled = settle(&store, &Memory::default(), &limits);
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
    assert!(settled.quarantined().contains_key("http-services/a/hsts"));
}

#[test]
fn a_change_costs_its_own_service_alone() {
    let limits = Limits::default();
    let lines = "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/b/domain b.com";
    let mut settled = settle(&topology(lines), &Memory::default(), &limits);
    let b = Arc::clone(settled.service(&http("b")).unwrap());
    let more = topology(&format!("{lines}\n http-services/a/upstreams/2 10.0.0.2:80"));
    let mut changed = Changed::nothing();
    changed.join(http("a"));
    assert_eq!(settled.update(&more, &changed), [http("a")].into());
    assert!(Arc::ptr_eq(&b, settled.service(&http("b")).unwrap()));
    let less = topology("http-services/b/domain b.com");
    assert_eq!(settled.update(&less, &changed), [http("a")].into());
    assert!(settled.service(&http("a")).is_none());
}

proptest! {
    /// Whatever comes in whatever order: keeping what was decided changes no decision.
    #[test]
    fn step_by_step_comes_to_the_same_as_at_once(
        steps in prop::collection::vec((0..4_usize, 0..6_usize, 0..5_usize), 1..30),
    ) {
        let keys = ["domain", "path", "tls", "hsts", "upstreams/1", "ports"];
        let values = ["a.com b.com", "b.com", "/x", "off", "10.0.0.1:80"];
        let mut store = Topology::default();
        let mut settled = Settled::remembering(Memory::default());
        for (step, (service, key, value)) in steps.into_iter().enumerate() {
            let kind = if service == 3 { Kind::Tcp } else { Kind::Http };
            let id = ServiceId { kind, name: format!("s{service}").parse().unwrap() };
            let key = format!("{}{}", id.folder(), keys[key]);
            let revision = i64::try_from(step).unwrap() + 1;
            let value = values[value].into();
            // The fifth value stands for a deletion of what is no upstream.
            let change = if step % 5 == 4 {
                discovery::Change::Delete { key, revision, previous: None }
            } else {
                discovery::Change::Put(Entry { key, value, create_revision: revision, mod_revision: revision, lease: 0 })
            };
            let before = settled.memory();
            store.apply(&change);
            let mut changed = Changed::nothing();
            changed.join(id);
            let touched = settled.update(&store, &changed);
            let at_once = settle(&store, &before, &Limits::default());
            prop_assert!(settled.services().eq(at_once.services()), "{touched:?}");
            prop_assert_eq!(settled.quarantined(), at_once.quarantined());
            prop_assert_eq!(settled.memory(), at_once.memory());
        }
    }
}

#[test]
fn a_service_that_haproxy_refuses_goes_back_to_its_last_good_form() {
    let lines = "http-services/a/domain a.com\n http-services/b/domain b.com";
    let mut settled = settle(&topology(lines), &Memory::default(), &Limits::default());
    settled.taken(&settled.clone());
    let worse = topology(&format!("{lines}\n http-services/a/url_reg ^/x\n http-services/c/url_reg ^/y"));
    settled.update(&worse, &Changed::All);
    let judged = settled.clone();
    let culprits = [(http("a"), "bad".to_owned()), (http("c"), "bad too".to_owned())].into();
    assert_eq!(settled.refuse(&culprits, &judged), [http("a"), http("c")].into());
    assert_eq!(service(&settled, "a").url_reg, None);
    assert!(settled.service(&http("c")).is_none());
    let reasons = settled.quarantined();
    assert_eq!(reasons["http-services/a/"], "HAProxy refuses the service: bad; its last good form serves");
    assert_eq!(reasons["http-services/c/"], "HAProxy refuses the service: bad too; it has no good form yet");
    settled.update(
        &topology(&format!("{lines}\n http-services/a/url_reg ^/x\n http-services/c/url_reg ^/y")),
        &Changed::All,
    );
    assert_eq!(settled.quarantined(), reasons, "a listing of the same store changes no verdict");
    // Written anew, it is tried anew; a verdict on what it was before says nothing.
    let better = topology(&format!("{lines}\n http-services/c/url_reg ^/z"));
    settled.update(&better, &Changed::All);
    assert_eq!(settled.refuse(&culprits, &judged), BTreeSet::new());
    assert!(settled.quarantined().is_empty() && settled.service(&http("c")).is_some());
}
