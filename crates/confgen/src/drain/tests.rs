use super::*;
use crate::desired::tests::topology;
use crate::operator_files::filled::{FilledFile, FilledFiles};
use crate::store::Changed;

const SHOP: &str = "http-services/shop/domain shop.test\nhttp-services/shop/upstreams/a 10.0.0.1:80\n";
const DRAIN: &str = r#"http-services/shop/upstreams/b {"address":"10.0.0.2:80","state":"drain"}"#;
const READY: &str = "http-services/shop/upstreams/b 10.0.0.2:80";

/// A balancer with a clock of its own.
pub(super) struct Bench {
    pub(super) draining: DrainTracker,
    pub(super) settled: DesiredState,
    began: Instant,
    seconds: u64,
    circumstances: DrainContext,
}

impl Bench {
    fn new() -> Self {
        let began = Instant::now();
        let circumstances =
            DrainContext { published_revision: 0, published_at: began, process: Some((7, began)), is_confirmed: true };
        Self { draining: DrainTracker::default(), settled: DesiredState::default(), began, seconds: 0, circumstances }
    }

    pub(super) fn now(&self) -> Instant {
        self.began + Duration::from_secs(self.seconds)
    }

    /// HAProxy follows the shop with this besides, from the next second on.
    fn follow(&mut self, more: &str, revision: i64) {
        self.seconds += 1;
        self.settled.update_services(&topology(&format!("{SHOP}{more}")), &Changed::All);
        self.draining.update_drains(self.now(), &Arc::new(self.settled.clone()), revision, &[]);
    }

    fn count_with(&mut self, sessions: &[(&str, u64)], change: impl FnOnce(&mut SessionCount)) -> String {
        self.seconds += 1;
        let sessions = sessions.iter().map(|(server, count)| (("http-shop".into(), (*server).into()), *count));
        let (at, pid) = (self.now(), Some(7));
        let mut count = SessionCount {
            at,
            pid,
            sessions: sessions.collect(),
            old_processes: Vec::new(),
            silent_since: None,
            is_blind: false,
            is_complete: true,
        };
        change(&mut count);
        self.draining.apply_count(&count, self.circumstances);
        self.open()
    }

    fn count(&mut self, sessions: &[(&str, u64)]) -> String {
        self.count_with(sessions, |_| {})
    }

    fn open(&self) -> String {
        let open = self.draining.open_drains();
        open.iter().map(|((service, id), count)| format!("{service}/{id}={count}")).collect::<Vec<_>>().join(" ")
    }
}

/// The upstream that drains.
pub(super) fn shop_b() -> DrainedUpstream {
    let service = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
    (service, "b".parse().unwrap())
}

/// One whose drain stands in the file, long after HAProxy was started.
pub(super) fn drained() -> Bench {
    let mut bench = Bench::new();
    bench.seconds = 100;
    bench.follow(READY, 5);
    assert_eq!((bench.open().as_str(), bench.draining.draining_services().len()), ("", 0), "nobody is asked for");
    bench.follow(DRAIN, 6);
    bench.circumstances.published_revision = 6;
    assert_eq!(bench.open(), "http-shop/b=0", "at once, though nothing is known yet");
    bench
}

#[test]
fn a_drain_is_over_when_nothing_was_open_twice() {
    let mut bench = drained();
    assert_eq!(bench.count(&[("a", 9), ("b", 2)]), "http-shop/b=2");
    assert_eq!(bench.count(&[]), "http-shop/b=0");
    assert_eq!(bench.count(&[("b", 1)]), "http-shop/b=1", "it was between two places");
    assert_eq!(bench.count(&[]), "http-shop/b=0");
    assert_eq!(bench.count(&[]), "");
    assert_eq!(bench.draining.count_ended(), 1);
    assert_eq!(bench.count(&[("b", 1)]), "", "and stays so");
    bench.follow(READY, 7);
    bench.follow(DRAIN, 8);
    assert_eq!(bench.open(), "http-shop/b=0", "until the state is another");
}

#[test]
fn what_was_asked_before_the_drain_says_nothing() {
    let mut bench = drained();
    let before = bench.now().checked_sub(Duration::from_millis(1)).unwrap();
    for _ in 0..5 {
        assert_eq!(bench.count_with(&[], |count| count.at = before), "http-shop/b=0");
    }
}

#[test]
fn the_file_has_it_too() {
    let mut bench = drained();
    bench.circumstances.published_revision = 5;
    for _ in 0..5 {
        assert_eq!(bench.count(&[]), "http-shop/b=0");
    }
    bench.circumstances.published_revision = 6;
    assert_eq!(bench.count(&[]), "");
}

/// Counts each second after a restart until the drain is over, and returns how many seconds that took.
fn seconds_after_a_restart(old: &Streams) -> u64 {
    seconds_until_drained(drained(), Some(old))
}

/// The same of that balancer. `None` is an old process that doesn't tell its streams.
fn seconds_until_drained(mut bench: Bench, old: Option<&Streams>) -> u64 {
    bench.circumstances.process = Some((8, bench.now()));
    let began = bench.seconds;
    let restarted = |count: &mut SessionCount| {
        count.pid = Some(8);
        count.old_processes.push(OldProcess { since: None, streams: old.cloned() });
    };
    while bench.seconds < began + 10_000 {
        if bench.count_with(&[], restarted).is_empty() {
            return bench.seconds - began;
        }
    }
    u64::MAX
}

/// The time that two counts in a row take.
const AT_ONCE: u64 = 2;

#[test]
fn an_old_process_without_connections_is_not_waited_for() {
    assert_eq!(seconds_after_a_restart(&Streams::default()), AT_ONCE);
}

#[test]
fn an_idle_connection_of_an_old_process_is_waited_for_as_long_as_it_may_send_a_first_request() {
    let idle = Streams { connections: 1, idle: 1, ..Streams::default() };
    assert_eq!(seconds_after_a_restart(&idle), FIRST_REQUEST_WAIT.as_secs() + AT_ONCE - 1);
}

#[test]
fn a_connection_whose_streams_are_all_decided_is_waited_for_until_its_goaway_has_been_read() {
    let decided = Streams { connections: 1, ..Streams::default() };
    assert_eq!(seconds_after_a_restart(&decided), GOAWAY_WAIT.as_secs() + 1 + AT_ONCE - 1);
}

#[test]
fn an_old_process_that_tells_nothing_is_waited_for_as_long_as_it_may_get_a_first_request() {
    assert_eq!(seconds_until_drained(drained(), None), FIRST_REQUEST_WAIT.as_secs() + AT_ONCE - 1);
}

/// A TCP service whose upstream drains.
fn drained_tcp(settings: &str) -> Bench {
    let upstream = |record: &str| format!("{settings}tcp-services/db/ports 3306\ntcp-services/db/upstreams/b {record}");
    let mut bench = Bench::new();
    bench.seconds = 100;
    bench.follow(&upstream("10.0.0.2:80"), 5);
    bench.follow(&upstream(r#"{"address":"10.0.0.2:80","state":"drain"}"#), 6);
    bench.circumstances.published_revision = 6;
    assert_eq!(bench.open(), "tcp-db/b=0");
    bench
}

#[test]
fn a_tls_handshake_with_a_tcp_service_has_the_client_timeout_of_tcp_services() {
    let idle = Streams { connections: 1, idle: 1, ..Streams::default() };
    let seconds = |settings: &str| seconds_until_drained(drained_tcp(settings), Some(&idle));
    assert_eq!(seconds(""), FIRST_REQUEST_WAIT.as_secs() + AT_ONCE - 1, "a session begins with the connection");
    assert_eq!(seconds("tcp-services/db/tls terminate\n"), TCP_CLIENT_TIMEOUT.as_secs() + AT_ONCE - 1);
}

#[test]
fn an_old_process_goes_on_to_terminate_tls_if_the_service_no_longer_does() {
    let idle = Streams { connections: 1, idle: 1, ..Streams::default() };
    let mut bench = drained_tcp("tcp-services/db/tls terminate\n");
    let drain = r#"tcp-services/db/upstreams/b {"address":"10.0.0.2:80","state":"drain"}"#;
    bench.follow(&format!("tcp-services/db/ports 3306\n{drain}"), 7);
    bench.circumstances.published_revision = 7;
    assert_eq!(seconds_until_drained(bench, Some(&idle)), TCP_CLIENT_TIMEOUT.as_secs() + AT_ONCE - 1);
}

#[test]
fn an_undecided_stream_of_an_old_process_is_waited_for_in_its_own_sections_only() {
    let undecided = |section: &str| {
        let undecided = [(section.to_owned(), 1)].into();
        seconds_after_a_restart(&Streams { undecided, ..Streams::default() })
    };
    for section in ["http-shop", "http-shop:preview-green"] {
        assert_eq!(undecided(section), u64::MAX, "{section}");
    }
    for section in ["http-shop2", "http-shop2:preview-green", "tcp-shop", "mine"] {
        assert_eq!(undecided(section), AT_ONCE, "{section}");
    }
    assert_eq!(seconds_after_a_restart(&Streams { unrouted: 1, ..Streams::default() }), u64::MAX);
}

#[test]
fn a_process_is_old_since_it_was_first_found_so_even_if_others_follow() {
    let mut bench = drained();
    let since = Some(bench.now());
    let streams = Streams { connections: 1, idle: 1, ..Streams::default() };
    for second in 0..=FIRST_REQUEST_WAIT.as_secs() + 1 {
        bench.circumstances.process = Some((8, bench.now()));
        let restarted = |count: &mut SessionCount| {
            count.pid = Some(8);
            count.old_processes.push(OldProcess { since, streams: Some(streams.clone()) });
        };
        let is_over = bench.count_with(&[], restarted).is_empty();
        assert_eq!(is_over, second >= FIRST_REQUEST_WAIT.as_secs(), "{second}");
    }
}

#[test]
fn an_old_process_that_cannot_be_asked_is_waited_for_by_time() {
    let seconds = |change: fn(&mut SessionCount, Instant)| {
        let mut bench = drained();
        let restarted = bench.now();
        bench.circumstances.process = Some((8, restarted));
        let began = bench.seconds;
        while bench.seconds < began + 1_000 {
            let blind = |count: &mut SessionCount| {
                count.pid = Some(8);
                change(count, restarted);
            };
            if bench.count_with(&[], blind).is_empty() {
                break;
            }
        }
        bench.seconds - began
    };
    assert_eq!(seconds(|count, _| count.is_blind = true), FIRST_REQUEST_WAIT.as_secs() + AT_ONCE - 1);
    let silent = |count: &mut SessionCount, since: Instant| count.silent_since = Some(since);
    assert_eq!(seconds(silent), SILENCE_WAIT.as_secs() + AT_ONCE - 1);
}

#[test]
fn a_drain_goes_on_while_the_last_answer_of_a_silent_old_process_has_a_session() {
    let mut bench = drained();
    bench.circumstances.process = Some((8, bench.now()));
    let silent = |count: &mut SessionCount| {
        count.pid = Some(8);
        count.old_processes.push(OldProcess { since: None, streams: None });
    };
    for _ in 0..2 * FIRST_REQUEST_WAIT.as_secs() {
        assert_eq!(bench.count_with(&[("b", 1)], silent), "http-shop/b=1");
    }
    bench.count_with(&[], silent);
    assert_eq!(bench.count_with(&[], silent), "");
}

#[test]
fn a_new_process_has_to_be_found_to_follow_first() {
    let mut bench = drained();
    bench.circumstances.is_confirmed = false;
    for _ in 0..5 {
        assert_eq!(bench.count(&[]), "http-shop/b=0");
    }
    bench.circumstances.is_confirmed = true;
    assert_eq!(bench.count(&[]), "");
}

#[test]
fn a_start_that_read_the_file_of_before_shows_in_a_later_count() {
    let mut bench = drained();
    bench.count(&[]);
    bench.circumstances.published_at = bench.now() + Duration::from_millis(1_500);
    assert_eq!(bench.count(&[]), "http-shop/b=0", "written during the count");
    assert_eq!(bench.count(&[]), "");
}

#[test]
fn the_times_are_those_of_haproxy_cfg() {
    let template = include_str!("../../../../templates/haproxy.cfg");
    for line in [
        "    timeout client 1h\n",
        "    timeout client 1m\n",
        "    timeout http-request 10s\n",
        "    tcp-request inspect-delay 5s\n",
    ] {
        assert!(template.contains(line), "{line}");
    }
    assert_eq!((INSPECT_DELAY, TCP_CLIENT_TIMEOUT), (Duration::from_secs(5), Duration::from_secs(3600)));
    assert!(CLIENT_TIMEOUT == Duration::from_secs(60) && Duration::from_secs(10) <= CLIENT_TIMEOUT);
}

#[test]
fn who_is_not_asked_may_have_some() {
    let mut bench = drained();
    for _ in 0..5 {
        assert_eq!(bench.count_with(&[], |count| count.is_complete = false), "http-shop/b=0");
        assert_eq!(bench.count_with(&[], |count| count.pid = None), "http-shop/b=0", "HAProxy doesn't answer");
        assert_eq!(bench.count_with(&[], |count| count.pid = Some(8)), "http-shop/b=0", "a restart, not seen yet");
    }
}

#[test]
fn one_that_was_removed_leaves_when_it_is_free() {
    let mut bench = drained();
    bench.follow("", 7);
    assert_eq!(bench.count(&[("b", 3)]), "http-shop/b=3");
    bench.count(&[]);
    assert_eq!(bench.count(&[]), "");
    assert!(bench.draining.upstreams.is_empty(), "nothing of it is kept");
    bench.follow(READY, 8);
    bench.follow("", 9);
    bench.circumstances.published_revision = 9;
    assert_eq!(bench.open(), "http-shop/b=0", "nor of one that went without a word");
    bench.count(&[]);
    bench.count(&[]);
    bench.follow(DRAIN, 10);
    bench.circumstances.published_revision = 10;
    bench.count(&[]);
    bench.count(&[]);
    bench.follow("", 11);
    assert_eq!(bench.open(), "", "one that was free already only goes");
    assert!(bench.draining.upstreams.is_empty());
}

#[test]
fn what_haproxy_was_removing_is_known_from_the_start() {
    let mut bench = Bench::new();
    let shop = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
    let leaving = |id: &str| [(shop.clone(), id.parse().unwrap())];
    bench.settled.update_services(&topology(SHOP), &Changed::All);
    let settled = Arc::new(bench.settled.clone());
    bench.draining.update_drains(bench.now(), &settled, 5, &leaving("z"));
    assert_eq!(bench.open(), "http-shop/z=0");
    bench.draining.update_drains(bench.now(), &settled, 5, &leaving("y"));
    assert_eq!(bench.open(), "http-shop/z=0", "what is removed later is seen to go");
}

#[test]
fn what_a_section_of_the_operators_has_open_counts_until_a_restart_has_filled_it_anew() {
    let mut bench = drained();
    let text = "backend mine\n# discover shop: server s-<id> <address>\n";
    let file = || "/mine.cfg".into();
    let fills = FilledFiles::new(vec![FilledFile::new(file(), file(), text.into(), None)]);
    let shop = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
    let elsewhere = |bench: &mut Bench, pending: &[&ServiceId]| {
        let pending = pending.iter().copied().cloned().collect();
        bench.draining.set_other_backends(fills.other_backends(), &pending);
    };
    elsewhere(&mut bench, &[&shop]);
    assert!(bench.draining.has_other_sections(&[shop.clone()].into()));
    for _ in 0..3 {
        assert_eq!(bench.count(&[]), "http-shop/b=0", "the section goes on sending");
    }
    elsewhere(&mut bench, &[]);
    let mine = |count: &mut SessionCount| _ = count.sessions.insert(("mine".into(), "s-b".into()), 2);
    assert_eq!(bench.count_with(&[("b", 1)], mine), "http-shop/b=3");
    bench.count(&[]);
    assert_eq!(bench.count(&[]), "");
}

const PREVIEWED: &str = r#"http-services/shop/active blue
    http-services/shop/preview 10.0.0.0/8
    http-services/shop/upstreams/b {"address":"10.0.0.2:80","color":"green"}"#;

/// Counts with so many on the upstream in the section for previews.
fn with_preview(bench: &mut Bench, own: u64, previewed: u64) -> String {
    let there = |count: &mut SessionCount| {
        for section in ["http-shop:preview-green", "http-shop2:preview-green"] {
            count.sessions.insert((section.into(), "b".into()), previewed);
        }
    };
    bench.count_with(&[("b", own)], there)
}

#[test]
fn what_is_open_in_a_preview_counts() {
    let mut bench = Bench::new();
    bench.seconds = 100;
    bench.follow(PREVIEWED, 5);
    let shop = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
    let everywhere = |bench: &Bench| bench.draining.has_other_sections(&[shop.clone()].into());
    assert!(everywhere(&bench));
    bench.circumstances.published_revision = 9;
    with_preview(&mut bench, 0, 0);
    assert_eq!(with_preview(&mut bench, 0, 0), "", "a is of no color, and so is drained too");
    // An operator's drain is another one than the color's, which is over.
    let drained = format!("{PREVIEWED}\nhttp-services/shop/overrides/b {{\"state\":\"drain\"}}");
    bench.follow(&drained, 6);
    assert_eq!(with_preview(&mut bench, 1, 2), "http-shop/b=3");
    assert_eq!(with_preview(&mut bench, 0, 1), "http-shop/b=1");
    // A server that becomes active and goes may still have some there.
    bench.follow(&PREVIEWED.replace("active blue", "active green"), 7);
    assert_eq!(with_preview(&mut bench, 0, 1), "");
    bench.follow("", 8);
    assert!(everywhere(&bench), "nobody is previewed any more");
    assert_eq!(with_preview(&mut bench, 0, 1), "http-shop/b=1");
    with_preview(&mut bench, 0, 0);
    assert_eq!(with_preview(&mut bench, 0, 0), "");
}

#[test]
fn a_wiped_store_counts_anew() {
    let mut bench = drained();
    bench.follow(DRAIN, 2);
    bench.circumstances.published_revision = 2;
    bench.count(&[]);
    assert_eq!(bench.count(&[]), "");
}
