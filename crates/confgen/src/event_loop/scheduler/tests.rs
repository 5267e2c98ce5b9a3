use std::fmt::Write as _;

use expect_test::expect_file;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const QUIET: Duration = DAEMON.quiet;

fn with_min_wait(min_wait: Duration) -> Scheduler {
    Scheduler::new(&Pacing { min_wait, restart_interval: 2 * SECOND, resync: SECOND })
}

/// A scheduler whose first reconcile left nothing.
fn idle(now: Instant) -> Scheduler {
    let mut scheduler = with_min_wait(Duration::ZERO);
    scheduler.on(now, Input::StoreListed);
    reconcile(&mut scheduler, now, Pending::default());
    scheduler
}

fn begin_next(scheduler: &mut Scheduler, now: Instant) -> Action {
    let (_, action) = scheduler.next().expect("an action is due");
    scheduler.begin(now, &action);
    action
}

fn reconciled(pending: Pending) -> Input {
    Input::Finished { end: End::Reconciled { pending, accepts_files: true }, is_current: true }
}

fn finished(end: End) -> Input {
    Input::Finished { end, is_current: true }
}

fn restart_ended(end: RestartEnd) -> Input {
    Input::Restarted { end, is_current: true }
}

/// Begins the reconcile that is due next, and ends it.
fn reconcile(scheduler: &mut Scheduler, now: Instant, pending: Pending) {
    assert!(matches!(begin_next(scheduler, now), Action::Reconcile(_)));
    scheduler.on(now, reconciled(pending));
}

/// A change comes, and its reconcile leaves this.
fn change(scheduler: &mut Scheduler, now: Instant, pending: Pending) {
    scheduler.on(now, Input::StoreChanged);
    reconcile(scheduler, now, pending);
}

fn restart(reason: &str) -> Pending {
    Pending { restart: Some(reason.to_owned()), ..Pending::default() }
}

fn file() -> Pending {
    Pending { file: true, ..Pending::default() }
}

/// Ends the restart in progress. Nothing waits for its last connection.
fn restarted(scheduler: &mut Scheduler, now: Instant) {
    scheduler.on(now, restart_ended(RestartEnd::Restarted));
    scheduler.remove_servers_at = None;
}

/// The time of the next action, and its name.
fn next(scheduler: &Scheduler) -> Option<(Instant, &'static str)> {
    scheduler.next().map(|(at, action)| (at, name(&action)))
}

fn name(action: &Action) -> &'static str {
    match action {
        Action::Reconcile(_) => "Reconcile",
        Action::Restart { .. } => "Restart",
        Action::Publish => "Publish",
        Action::ReadFiles => "ReadFiles",
        Action::RemoveServers => "RemoveServers",
        Action::RequeueServers { .. } => "RequeueServers",
    }
}

#[test]
fn a_change_is_applied_at_once_and_the_file_follows() {
    let t = Instant::now();
    let mut scheduler = with_min_wait(Duration::ZERO);
    assert_eq!(next(&scheduler), None);
    scheduler.on(t, Input::StoreListed);
    reconcile(&mut scheduler, t, file());
    change(&mut scheduler, t + SECOND / 10, file());
    assert_eq!(next(&scheduler), Some((t + DAEMON.publish, "Publish")), "a burst is written once, and not put off");
    begin_next(&mut scheduler, t + DAEMON.publish);
    assert_eq!(next(&scheduler), None);
    scheduler.on(t + SECOND, Input::StoreChanged);
    assert_eq!(next(&scheduler), Some((t + SECOND, "Reconcile")), "also while the file is being written");
}

#[test]
fn a_file_waits_four_times_as_long_as_the_last_one_took() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    for (took, waited) in [(SECOND / 2, 2 * SECOND), (SECOND / 100, DAEMON.publish), (10 * SECOND, 5 * SECOND)] {
        change(&mut scheduler, t, file());
        begin_next(&mut scheduler, t);
        scheduler.on(t + took, Input::Published(PublishEnd::UpToDate));
        change(&mut scheduler, t + took, file());
        assert_eq!(next(&scheduler), Some((t + took + waited, "Publish")), "after {took:?}");
        // A restart publishes too.
        scheduler = idle(t);
    }
}

#[test]
fn servers_are_requeued_at_once_also_while_a_file_is_written() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    change(&mut scheduler, t, file());
    begin_next(&mut scheduler, t);
    for (later, section) in [(0, "a"), (1, "b")] {
        scheduler.on(t + later * SECOND, Input::TurnsMissed { sections: [section.to_owned()].into() });
    }
    let sections: BTreeSet<String> = ["a".to_owned(), "b".to_owned()].into();
    assert_eq!(scheduler.next(), Some((t, Action::RequeueServers { sections })));
    begin_next(&mut scheduler, t);
    scheduler.on(t, finished(End::Requeued));
    assert_eq!(next(&scheduler), None);
}

#[test]
fn changes_wait_for_each_other_if_so_wished() {
    let t = Instant::now();
    let mut scheduler = with_min_wait(SECOND);
    scheduler.on(t, Input::StoreListed);
    scheduler.on(t + SECOND / 2, Input::StoreChanged);
    assert_eq!(next(&scheduler), Some((t + SECOND, "Reconcile")));
}

#[test]
fn restarts_keep_their_distance() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    change(&mut scheduler, t, restart("a"));
    assert_eq!(next(&scheduler), Some((t + QUIET, "Restart")), "after a quiet interval it is at once");
    let later = t + SECOND;
    for _ in 0..SPARE_RESTARTS {
        begin_next(&mut scheduler, later);
        restarted(&mut scheduler, later);
        change(&mut scheduler, later, restart("a"));
        assert_eq!(next(&scheduler), Some((later + QUIET, "Restart")), "so are some more: a service comes key by key");
    }
    begin_next(&mut scheduler, later);
    restarted(&mut scheduler, later);
    change(&mut scheduler, later, Pending { file: true, ..restart("a") });
    assert_eq!(next(&scheduler), Some((later + DAEMON.publish, "Publish")), "the file doesn't wait so long");
    begin_next(&mut scheduler, later);
    scheduler.on(later, Input::Published(PublishEnd::UpToDate));
    change(&mut scheduler, t + 3 * SECOND, Pending { file: true, ..restart("a") });
    assert_eq!(next(&scheduler), Some((t + 3 * SECOND, "Restart")), "which publishes too");
    change(&mut scheduler, t + 3 * SECOND, Pending::default());
    assert_eq!(next(&scheduler), Some((t + 3 * SECOND + DAEMON.publish, "Publish")));
}

#[test]
fn without_a_quiet_time_there_is_one_restart_an_interval() {
    let t = Instant::now() + SECOND;
    let mut scheduler = idle(t);
    let mut begun = Vec::new();
    let mut now = t;
    for _ in 0..7 {
        // The store has been quiet for long enough.
        change(&mut scheduler, now.checked_sub(QUIET).unwrap(), restart("a"));
        now = now.max(next(&scheduler).unwrap().0);
        begin_next(&mut scheduler, now);
        begun.push((now - t).as_secs());
        restarted(&mut scheduler, now);
    }
    assert_eq!(begun, [0, 0, 0, 2, 4, 6, 8]);
    let later = now + 3 * SECOND;
    change(&mut scheduler, later, restart("a"));
    assert_eq!(next(&scheduler), Some((later + QUIET, "Restart")));
    begin_next(&mut scheduler, later);
    restarted(&mut scheduler, later);
    change(&mut scheduler, later, restart("a"));
    assert_eq!(next(&scheduler), Some((now + 4 * SECOND, "Restart")), "half a quiet time saves half of the wait");
}

#[test]
fn a_restart_waits_for_keys_that_come_one_by_one_but_not_for_ever() {
    let t = Instant::now();
    let time_of = |number: u32| t + number * SECOND / 20;
    let mut scheduler = idle(t);
    for number in 0..5 {
        change(&mut scheduler, time_of(number), restart("a"));
    }
    assert_eq!(next(&scheduler), Some((time_of(4) + QUIET, "Restart")));
    for number in 5..19 {
        change(&mut scheduler, time_of(number), restart("a"));
    }
    assert_eq!(next(&scheduler), Some((t + DAEMON.quiet_at_most, "Restart")));
    change(&mut scheduler, time_of(19), Pending::default());
    assert_eq!(next(&scheduler), None, "the last key may make it needless");
}

/// One transaction writes a service, and its reconcile leaves this.
fn write_service(scheduler: &mut Scheduler, now: Instant, pending: Pending) {
    scheduler.on(now, Input::ServiceWritten);
    reconcile(scheduler, now, pending);
}

#[test]
fn a_service_of_one_transaction_waits_for_no_further_keys() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    write_service(&mut scheduler, t, restart("a"));
    assert_eq!(next(&scheduler), Some((t, "Restart")));
    change(&mut scheduler, t, restart("a"));
    assert_eq!(next(&scheduler), Some((t, "Restart")), "other changes don't put it off");
    begin_next(&mut scheduler, t);
    restarted(&mut scheduler, t);
    write_service(&mut scheduler, t, restart("b"));
    assert_eq!(next(&scheduler), Some((t + QUIET, "Restart")), "the next one waits for more services");
    let later = t + 3 * SECOND;
    begin_next(&mut scheduler, later);
    restarted(&mut scheduler, later);
    write_service(&mut scheduler, later + 5 * SECOND, restart("c"));
    assert_eq!(next(&scheduler), Some((later + 5 * SECOND, "Restart")), "after a quiet time");
}

#[test]
fn a_service_of_one_transaction_hurries_no_service_that_is_written_key_by_key() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    change(&mut scheduler, t, restart("a"));
    write_service(&mut scheduler, t + QUIET / 3, restart("a, b"));
    assert_eq!(next(&scheduler), Some((t + QUIET / 3 + QUIET, "Restart")));
    let mut scheduler = idle(t);
    scheduler.on(t, Input::StoreChanged);
    begin_next(&mut scheduler, t);
    scheduler.on(t, Input::ServiceWritten);
    scheduler.on(t, reconciled(restart("a")));
    reconcile(&mut scheduler, t, restart("a, b"));
    assert_eq!(next(&scheduler), Some((t + QUIET, "Restart")), "it came during the reconcile for the other one");
}

#[test]
fn a_haproxy_that_does_not_answer_is_given_time() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    for now in [t, t + SECOND] {
        change(&mut scheduler, now, Pending { unreachable: true, ..restart("a") });
    }
    assert_eq!(next(&scheduler), Some((t + DAEMON.unreachable, "Restart")), "but not for ever");
}

#[test]
fn failures_are_repeated_ever_more_seldom_and_a_change_comes_sooner() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    let mut delays = Vec::new();
    for _ in 0..7 {
        change(&mut scheduler, t, restart("a"));
        // The files were read in between.
        (scheduler.earliest_restart_at, scheduler.files_at) = (None, None);
        assert!(matches!(begin_next(&mut scheduler, t), Action::Restart { .. }));
        scheduler.on(t, restart_ended(RestartEnd::Failed));
        delays.push((next(&scheduler).unwrap().0 - t).as_secs());
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
    scheduler.on(t, Input::StoreChanged);
    assert_eq!(next(&scheduler), Some((t, "Reconcile")), "it may be the remedy");
    reconcile(&mut scheduler, t, restart("a"));
    // The files were read in between.
    scheduler.files_at = None;
    assert_eq!(next(&scheduler), Some((t + 30 * SECOND, "Restart")), "but a restart is not tried more often");
    change(&mut scheduler, t, file());
    begin_next(&mut scheduler, t);
    scheduler.on(t, Input::Published(PublishEnd::UpToDate));
    scheduler.on(t, Input::FilesChanged);
    begin_next(&mut scheduler, t);
    scheduler.on(t, Input::FilesRead { is_usable: false });
    begin_next(&mut scheduler, t);
    scheduler.on(t, reconciled(Pending::default()));
    assert_eq!(next(&scheduler), Some((t + SECOND, "ReadFiles")), "a failure that is long over counts no more");
}

#[test]
fn a_failed_action_is_tried_again_with_everything_it_was_to_take_in() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    scheduler.on(t, Input::StoreChanged);
    begin_next(&mut scheduler, t);
    assert_eq!(scheduler.on(t, finished(End::Failed)), Some(Effect::OutOfSync));
    let scope = Scope { files_read: false, reobserve: true, resolve_all: true };
    assert_eq!(scheduler.next(), Some((t + SECOND, Action::Reconcile(scope))));
    assert!(!scheduler.is_current());
    begin_next(&mut scheduler, t + SECOND);
    scheduler.on(t + SECOND, reconciled(Pending::default()));
    assert_eq!(next(&scheduler), Some((t + SECOND, "ReadFiles")));
}

#[test]
fn once_does_all_at_once_and_then_rests() {
    let t = Instant::now();
    let mut scheduler = Scheduler::once();
    scheduler.on(t, Input::StoreListed);
    reconcile(&mut scheduler, t, Pending { file: true, removals: true, unreachable: true, ..restart("a") });
    assert_eq!(next(&scheduler), Some((t, "Restart")), "which publishes too");
    begin_next(&mut scheduler, t);
    scheduler.on(t, restart_ended(RestartEnd::PartRejected));
    reconcile(&mut scheduler, t, file());
    assert_eq!(next(&scheduler), Some((t, "Publish")));
    begin_next(&mut scheduler, t);
    assert_eq!(scheduler.on(t, Input::Published(PublishEnd::UpToDate)), Some(Effect::Rest));
    assert_eq!(next(&scheduler), None, "it waits for no server's last connection");
}

#[test]
fn drains_are_confirmed_by_a_reconcile_that_began_after_haproxy_changed() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    assert!(scheduler.is_confirmed());
    scheduler.on(t + SECOND, Input::StoreChanged);
    begin_next(&mut scheduler, t + SECOND);
    scheduler.on(t + 2 * SECOND, Input::HaproxyUnsettled);
    scheduler.on(t + 3 * SECOND, reconciled(Pending::default()));
    assert!(!scheduler.is_confirmed());
    change(&mut scheduler, t + 3 * SECOND, Pending::default());
    assert!(scheduler.is_confirmed());
}

#[test]
#[should_panic(expected = "beside another action")]
fn two_actions_at_once_are_noticed() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    scheduler.on(t, Input::StoreChanged);
    begin_next(&mut scheduler, t);
    scheduler.begin(t, &Action::RemoveServers);
}

#[test]
fn changes_are_applied_while_a_restart_or_files_are_waited_for() {
    let t = Instant::now();
    for is_restart in [true, false] {
        let mut scheduler = idle(t);
        if is_restart {
            change(&mut scheduler, t, restart("a"));
        } else {
            scheduler.on(t, Input::FilesChanged);
        }
        begin_next(&mut scheduler, t);
        change(&mut scheduler, t + SECOND, Pending { removals: true, ..file() });
        assert_eq!(next(&scheduler), Some((t + SECOND + SECOND / 5, "RemoveServers")), "the file waits");
    }
}

#[test]
fn a_restart_that_was_wanted_during_a_restart_is_decided_after_it() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    change(&mut scheduler, t, restart("a"));
    begin_next(&mut scheduler, t);
    change(&mut scheduler, t + SECOND, restart("a"));
    assert_eq!(next(&scheduler), None, "the restart in progress may be the one that is needed");
    let later = t + 2 * SECOND;
    assert_eq!(scheduler.on(later, restart_ended(RestartEnd::Restarted)), None, "HAProxy isn't known to be in sync");
    assert_eq!(next(&scheduler), Some((later, "Reconcile")));
    begin_next(&mut scheduler, later);
    assert_eq!(scheduler.on(later, reconciled(Pending::default())), Some(Effect::InSync));
    assert_eq!(next(&scheduler).map(|(_, name)| name), Some("RemoveServers"));
}

#[test]
fn files_that_cannot_be_used_are_read_again_and_confgen_is_not_in_sync() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    scheduler.on(t, Input::FilesChanged);
    assert_eq!(begin_next(&mut scheduler, t), Action::ReadFiles);
    assert_eq!(scheduler.on(t, Input::FilesRead { is_usable: false }), Some(Effect::OutOfSync));
    begin_next(&mut scheduler, t);
    assert_eq!(scheduler.on(t, reconciled(Pending::default())), None, "the files that can be used are applied");
    assert_eq!(next(&scheduler), Some((t + SECOND, "ReadFiles")));
    begin_next(&mut scheduler, t + SECOND);
    scheduler.on(t + SECOND, Input::FilesRead { is_usable: true });
    begin_next(&mut scheduler, t + SECOND);
    assert_eq!(scheduler.on(t + SECOND, reconciled(Pending::default())), Some(Effect::InSync));
}

#[test]
#[should_panic(expected = "begins while Some(Publish) is in progress")]
fn a_restart_beside_a_publish_is_noticed() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    scheduler.begin(t, &Action::Publish);
    scheduler.begin(t, &Action::Restart { reason: "a".into() });
}

#[test]
#[should_panic(expected = "before the store is known")]
fn an_action_before_the_store_is_known_is_noticed() {
    with_min_wait(Duration::ZERO).begin(Instant::now(), &Action::Publish);
}

#[test]
#[should_panic(expected = "an action is in progress before the store is known")]
fn an_action_in_progress_before_the_store_is_known_is_noticed() {
    let mut scheduler = with_min_wait(Duration::ZERO);
    scheduler.beside = Some(Beside::Publish);
    scheduler.check_invariants(Instant::now());
}

#[test]
#[should_panic(expected = "a reconcile waits longer than the longest retry")]
fn a_reconcile_that_waits_too_long_is_noticed() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    scheduler.reconcile_at = Some(t + LONGEST_RETRY + SECOND);
    scheduler.check_invariants(t);
}

#[test]
#[should_panic(expected = "a restart is due before it was wanted")]
fn a_restart_that_is_due_before_it_was_wanted_is_noticed() {
    let t = Instant::now();
    let mut scheduler = idle(t);
    scheduler.restart = Some(WantedRestart { reason: "a".into(), at: t, since: t + SECOND, is_complete: false });
    scheduler.check_invariants(t);
}

/// The states of the table: each with the inputs and actions that lead to it from the one before, by its number.
fn states(t: Instant) -> Vec<(&'static str, Scheduler)> {
    let unknown = with_min_wait(Duration::ZERO);
    let idle = idle(t);
    let with = |of: &Scheduler, input: Input| {
        let mut scheduler = of.clone();
        scheduler.on(t, input);
        scheduler
    };
    let begun = |of: &Scheduler| {
        let mut scheduler = of.clone();
        begin_next(&mut scheduler, t);
        scheduler
    };
    let change_due = with(&idle, Input::StoreChanged);
    let reconciling = begun(&change_due);
    let reconciling_whole = begun(&with(&idle, Input::ServiceWritten));
    let publish_due = with(&reconciling, reconciled(file()));
    let publishing = begun(&publish_due);
    let both = begun(&with(&publishing, Input::StoreChanged));
    let restart_due = with(&reconciling, reconciled(Pending { file: true, ..restart("needed") }));
    let restart_waits = with(&both, reconciled(restart("needed")));
    let restarting = begun(&restart_due);
    let both_restart = begun(&with(&restarting, Input::StoreChanged));
    let restart_wanted_again = with(&both_restart, reconciled(Pending { file: true, ..restart("needed") }));
    let reading = begun(&with(&idle, Input::FilesChanged));
    let removing = begun(&with(&reconciling, reconciled(Pending { removals: true, ..Pending::default() })));
    let requeueing = begun(&with(&idle, Input::TurnsMissed { sections: ["http-a".to_owned()].into() }));
    let retry_due = with(&restarting, restart_ended(RestartEnd::Failed));
    vec![
        ("Store unknown", unknown),
        ("Idle", idle),
        ("Change due", change_due),
        ("Reconciling", reconciling),
        ("Reconciling a service of one transaction", reconciling_whole),
        ("Publish due", publish_due),
        ("Publishing", publishing),
        ("Reconciling while publishing", both),
        ("Restart due", restart_due),
        ("Restart due while publishing", restart_waits),
        ("Restarting", restarting),
        ("Reconciling while restarting", both_restart),
        ("Restarting, and a restart is wanted again", restart_wanted_again),
        ("Reading files", reading),
        ("Removing servers", removing),
        ("Requeueing servers", requeueing),
        ("Retry due after a failed restart", retry_due),
    ]
}

/// The inputs that can come in this state, with their names.
fn inputs(name: &str, scheduler: &Scheduler) -> Vec<(&'static str, Input)> {
    let sections: BTreeSet<String> = ["http-a".to_owned()].into();
    let mut inputs = vec![
        ("StoreListed", Input::StoreListed),
        ("StoreChanged", Input::StoreChanged),
        ("ServiceWritten", Input::ServiceWritten),
        ("FilesChanged", Input::FilesChanged),
        ("HaproxyChanged", Input::HaproxyChanged),
        ("HaproxyUnsettled", Input::HaproxyUnsettled),
        ("DayBegan", Input::DayBegan),
        ("TurnsMissed", Input::TurnsMissed { sections }),
    ];
    let ends = if name.starts_with("Reconciling") {
        let left = Pending { file: true, removals: true, ..Pending::default() };
        let silent = Pending { unreachable: true, ..restart("needed") };
        let rejected = End::Reconciled { pending: Pending::default(), accepts_files: false };
        vec![
            ("Reconciled: nothing left", reconciled(Pending::default())),
            ("Reconciled: file and removals left", reconciled(left)),
            ("Reconciled: restart needed", reconciled(Pending { file: true, ..restart("needed") })),
            ("Reconciled: restart needed, HAProxy doesn't answer", reconciled(silent)),
            ("Reconciled: operator files not accepted", finished(rejected)),
            ("Failed", finished(End::Failed)),
        ]
    } else if name.starts_with("Removing") {
        let some = Pending { removals: true, ..Pending::default() };
        vec![
            ("ServersRemoved: all", finished(End::ServersRemoved(Pending::default()))),
            ("ServersRemoved: some wait", finished(End::ServersRemoved(some))),
            ("Failed", finished(End::Failed)),
        ]
    } else if name.starts_with("Requeueing") {
        vec![("Requeued", finished(End::Requeued)), ("RequeueRefused", finished(End::RequeueRefused))]
    } else {
        Vec::new()
    };
    inputs.extend(ends);
    let beside = match scheduler.beside {
        None => Vec::new(),
        Some(Beside::Publish) => vec![
            ("Published: UpToDate", Input::Published(PublishEnd::UpToDate)),
            ("Published: PartRejected", Input::Published(PublishEnd::PartRejected)),
            ("Published: Blocked", Input::Published(PublishEnd::Blocked)),
            ("Published: Failed", Input::Published(PublishEnd::Failed)),
        ],
        Some(Beside::Restart) => vec![
            ("Restarted", restart_ended(RestartEnd::Restarted)),
            ("Restarted: stopped by an operator", restart_ended(RestartEnd::Stopped)),
            ("Restarted: PartRejected", restart_ended(RestartEnd::PartRejected)),
            ("Restarted: Failed", restart_ended(RestartEnd::Failed)),
        ],
        Some(Beside::ReadFiles) => vec![
            ("FilesRead", Input::FilesRead { is_usable: true }),
            ("FilesRead: not usable", Input::FilesRead { is_usable: false }),
        ],
    };
    inputs.extend(beside);
    inputs
}

/// The actions that wait, with the time until they may begin.
fn waiting(scheduler: &Scheduler, now: Instant) -> String {
    let Scope { files_read, reobserve, resolve_all } = scheduler.scope;
    let scope = [(files_read, "files read"), (reobserve, "observe HAProxy"), (resolve_all, "resolve all")];
    let scope: Vec<&str> = scope.into_iter().filter_map(|(is_so, words)| is_so.then_some(words)).collect();
    let scope = if scope.is_empty() { String::new() } else { format!(" ({})", scope.join(", ")) };
    let timers = [
        (format!("Reconcile{scope}"), scheduler.reconcile_at),
        ("ReadFiles".to_owned(), scheduler.files_at),
        ("Restart".to_owned(), scheduler.restart.as_ref().map(|restart| restart.at)),
        ("Publish".to_owned(), scheduler.publish_at),
        ("RemoveServers".to_owned(), scheduler.remove_servers_at),
        ("RequeueServers".to_owned(), scheduler.requeue.as_ref().map(|(at, _)| *at)),
    ];
    let waiting = timers.into_iter().filter_map(|(words, at)| {
        let wait = at?.saturating_duration_since(now);
        Some(if wait.is_zero() { words } else { format!("{words} in {} ms", wait.as_millis()) })
    });
    waiting.collect::<Vec<_>>().join(", ")
}

fn in_progress(scheduler: &Scheduler) -> String {
    let beside = scheduler.beside.map(|beside| match beside {
        Beside::Publish => "publish",
        Beside::Restart => "restart",
        Beside::ReadFiles => "read files",
    });
    let words: Vec<&str> = scheduler.began_at.map(|_| "action").into_iter().chain(beside).collect();
    words.join(", ")
}

fn row(scheduler: &Scheduler, now: Instant) -> String {
    let next = scheduler.next().map(|(_, action)| name(&action)).unwrap_or_default();
    format!("{} | {} | {next}", in_progress(scheduler), waiting(scheduler, now))
}

#[test]
fn the_table_is_the_code() {
    let t = Instant::now() + 10 * SECOND;
    let mut table = String::from(
        "<!-- Printed by the test `the_table_is_the_code`; UPDATE_EXPECT=1 writes it anew. -->\n\
         # The schedule of confgen\n\n\
         For each state, the first row says how it stands, and the others what an input makes of it. Inputs that change nothing \
         are left\nout. `--min-wait` is 0 and `--restart-interval` 2 s here. \"Waiting\" has every timer that is set, with the time until \
         it runs out.\n\"Next\" is the action that begins first of them. It is empty while none may begin, and before the store is \
         known. Publish, Restart\nand ReadFiles wait for other programs. One of them may be in progress beside a change over the Runtime API.\n",
    );
    for (name, scheduler) in states(t) {
        write!(table, "\n## {name}\n\n| input | in progress | waiting | next | effect |\n|---|---|---|---|---|\n")
            .unwrap();
        let before = row(&scheduler, t);
        writeln!(table, "| *none yet* | {before} | |").unwrap();
        for (input_name, input) in inputs(name, &scheduler) {
            let mut scheduler = scheduler.clone();
            let effect = scheduler.on(t, input).map(|effect| format!("{effect:?}")).unwrap_or_default();
            let after = row(&scheduler, t);
            if after != before || !effect.is_empty() {
                writeln!(table, "| {input_name} | {after} | {effect} |").unwrap();
            }
        }
    }
    expect_file!["../../../SCHEDULE.md"].assert_eq(&table.replace("|  |", "| |").replace("|  |", "| |"));
}
