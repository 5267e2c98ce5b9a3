//! Counts the sessions of draining upstreams in all HAProxy processes. The running process answers over its socket, an old one
//! over its master's. Blocks, and decides nothing: [`DrainTracker`](super::DrainTracker) judges the counts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use discovery::ServiceId;
use haproxy::masters::{self, Worker, Workers};
use haproxy::process;
use haproxy::runtime::{self, Sessions, Socket, Word};

use crate::drain::{OldProcess, SILENCE_WAIT, SessionCount};

/// The socket of a process's master, and the process's pid. Each start of HAProxy has a socket of its own. A pid alone may be an
/// earlier process's, because the kernel uses it again.
type WorkerId = (PathBuf, u32);

/// The counter of one HAProxy's sessions.
#[derive(Debug)]
pub struct SessionCounter {
    socket: Socket,
    /// Masters that don't answer.
    silent_masters: BTreeMap<PathBuf, Silence>,
    /// Old processes that don't answer, although their masters do.
    silent_workers: BTreeMap<WorkerId, Silence>,
    /// When each old process was first found to be old.
    old_processes: BTreeMap<WorkerId, Instant>,
    /// The last answer of each process, by section and server. It counts until the process answers again or ends.
    known_sessions: BTreeMap<WorkerId, BTreeMap<(String, String), u64>>,
    /// The end of the last count. `None` before the first one.
    counted_at: Option<Instant>,
}

/// The time in which questions to a master or a process were in vain.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    is_logged: bool,
}

impl Silence {
    fn begin(now: Instant) -> Self {
        Self { since: now, is_logged: false }
    }

    fn is_long(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= SILENCE_WAIT
    }

    /// True once, when the silence has become long.
    fn is_log_due(&mut self, now: Instant) -> bool {
        self.is_long(now) && !std::mem::replace(&mut self.is_logged, true)
    }
}

impl SessionCounter {
    /// A counter for the HAProxy that listens on this socket, and for its old processes.
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            silent_masters: BTreeMap::new(),
            silent_workers: BTreeMap::new(),
            old_processes: BTreeMap::new(),
            known_sessions: BTreeMap::new(),
            counted_at: None,
        }
    }

    /// Counts the sessions of these services' servers in every process. `everywhere` counts those of all sections.
    pub fn count_sessions(&mut self, services: &BTreeSet<ServiceId>, everywhere: bool) -> SessionCount {
        let at = Instant::now();
        if self.counted_at.is_some_and(|last| at.duration_since(last) > SILENCE_WAIT) {
            // No drain was open meanwhile, so nothing was asked. One missed answer before that is no long silence.
            self.silent_masters.clear();
            self.silent_workers.clear();
        }
        let named = services.iter().filter(|_| !everywhere);
        let backends: Vec<Word> = named.filter_map(|service| service.to_string().parse().ok()).collect();
        let pid = self.socket.show_info().map(|info| info.pid).inspect_err(log_failed_question).ok();
        let Workers { alive, silent, is_starting } = masters::list_workers(self.socket.path());
        let is_mastered = pid.is_none_or(|pid| alive.iter().any(|worker| worker.pid == pid));
        // Without handover no master can be asked. Then only the host's processes tell whether an old HAProxy lives.
        let is_blind = !silent.is_empty() || !is_mastered && pid.and_then(process::is_alone) != Some(true);
        let mut count = SessionCount {
            at,
            pid,
            sessions: BTreeMap::new(),
            old_processes: Vec::new(),
            silent_since: self.log_silent_masters(silent, at),
            is_blind,
            is_complete: !is_starting,
        };
        if !is_mastered {
            // HAProxy runs without handover, or its master doesn't answer.
            take_answer(&mut count, self.socket.count_sessions(&backends, None));
        }
        self.forget_ended(&alive);
        self.add_hidden_sessions(&alive, pid, &mut count);
        for worker in &alive {
            let sessions = worker.count_sessions(&backends);
            if let Ok(sessions) = &sessions {
                self.remember_sessions(worker_id(worker), &backends, sessions);
            }
            if Some(worker.pid) == pid {
                take_answer(&mut count, sessions);
            } else {
                self.count_old_process(worker, sessions, &mut count);
            }
        }
        self.counted_at = Some(Instant::now());
        count
    }

    /// Forgets the processes that are no longer alive. The processes of a silent master may be.
    fn forget_ended(&mut self, alive: &[Worker]) {
        let alive: BTreeSet<WorkerId> = alive.iter().map(worker_id).collect();
        self.old_processes.retain(|id, _| alive.contains(id));
        self.silent_workers.retain(|id, _| alive.contains(id));
        let silent_masters = &self.silent_masters;
        self.known_sessions.retain(|id, _| alive.contains(id) || is_hidden(id, silent_masters));
    }

    /// Adds the last known sessions of the processes whose masters don't answer. The running one answers by itself.
    fn add_hidden_sessions(&self, alive: &[Worker], running: Option<u32>, count: &mut SessionCount) {
        let alive: BTreeSet<WorkerId> = alive.iter().map(worker_id).collect();
        let hidden = self.known_sessions.iter().filter(|(id, _)| !alive.contains(*id) && Some(id.1) != running);
        hidden.for_each(|(_, known)| add_known_sessions(count, known));
    }

    /// Remembers the answer of a process to a question about these backends. Without a backend the question was about
    /// all.
    fn remember_sessions(&mut self, id: WorkerId, backends: &[Word], sessions: &[Sessions]) {
        let known = self.known_sessions.entry(id).or_default();
        known.retain(|(section, _), _| {
            !backends.is_empty() && backends.iter().all(|backend| backend.as_str() != section)
        });
        for Sessions { backend, server, count } in sessions {
            let server = (backend.clone(), server.clone());
            // A question that would be too long is about all backends, so that others may be in the answer.
            if *count > 0 {
                known.insert(server, *count);
            } else {
                known.remove(&server);
            }
        }
    }

    /// Adds the sessions, connections and streams of a process beside the running one.
    fn count_old_process(
        &mut self,
        worker: &Worker,
        sessions: Result<Vec<Sessions>, runtime::Error>,
        count: &mut SessionCount,
    ) {
        if let (Err(_), Some(known)) = (&sessions, self.known_sessions.get(&worker_id(worker))) {
            add_known_sessions(count, known);
        }
        let answers = sessions.and_then(|sessions| {
            // An answer without the other one counts too: open sessions hold a drain up in any case.
            add_sessions(count, sessions);
            worker.count_streams()
        });
        let (info, mut streams) = match answers {
            Ok(answers) => answers,
            Err(error) => return self.count_silent_process(worker, &error, count),
        };
        self.silent_workers.remove(&worker_id(worker));
        if !info.stopping {
            // A restart is in progress. This process has just started, or handover has not told it to finish yet.
            count.is_complete = false;
            return;
        }
        if info.listening {
            // For some milliseconds after the process was told to finish, clients may still connect to it.
            streams.connections = streams.connections.max(1);
            streams.idle = streams.idle.max(1);
        }
        let since = *self.old_processes.entry(worker_id(worker)).or_insert(count.at);
        count.old_processes.push(OldProcess { since: Some(since), streams: Some(streams) });
    }

    /// Adds a process that didn't tell its sessions or streams. It may have ended just now, or be busy. Drains wait for its
    /// answer at first. After that they wait for its age and its last known sessions. A process that never answers would
    /// block all other drains for ever.
    fn count_silent_process(&mut self, worker: &Worker, error: &runtime::Error, count: &mut SessionCount) {
        log_failed_question(error);
        let id = worker_id(worker);
        let silence = self.silent_workers.entry(id.clone()).or_insert_with(|| Silence::begin(count.at));
        if !silence.is_long(count.at) {
            count.is_complete = false;
            return;
        }
        if silence.is_log_due(count.at) {
            tracing::warn!(
                pid = worker.pid,
                master = %worker.path().display(),
                %error,
                "old HAProxy process doesn't tell its streams, drains wait for its age and its last known sessions"
            );
        }
        let since = self.old_processes.get(&id).copied().unwrap_or(silence.since);
        count.old_processes.push(OldProcess { since: Some(since), streams: None });
    }

    /// Logs which masters don't answer, and returns when the latest of them was first asked in vain.
    fn log_silent_masters(&mut self, silent: Vec<(PathBuf, String)>, now: Instant) -> Option<Instant> {
        self.silent_masters.retain(|path, _| silent.iter().any(|(other, _)| other == path));
        for (path, error) in silent {
            let silence = self.silent_masters.entry(path.clone()).or_insert_with(|| Silence::begin(now));
            if silence.is_log_due(now) {
                tracing::warn!(
                    master = %path.display(),
                    %error,
                    hint = "is confgen in handover's --group?",
                    "HAProxy master doesn't answer, drains wait for its process's age and its last known sessions"
                );
            }
        }
        self.silent_masters.values().map(|silence| silence.since).max()
    }
}

fn worker_id(worker: &Worker) -> WorkerId {
    (worker.path().to_owned(), worker.pid)
}

fn log_failed_question(error: &runtime::Error) {
    tracing::debug!(%error, "can't count sessions");
}

/// Adds the answer of the running process. The count isn't complete without it.
fn take_answer(count: &mut SessionCount, answer: Result<Vec<Sessions>, runtime::Error>) {
    match answer {
        Ok(sessions) => add_sessions(count, sessions),
        Err(error) => {
            log_failed_question(&error);
            count.is_complete = false;
        }
    }
}

/// True if the process's master, or the directory of its socket, can't be asked.
fn is_hidden((master, _): &WorkerId, silent_masters: &BTreeMap<PathBuf, Silence>) -> bool {
    silent_masters.keys().any(|silent| master.starts_with(silent))
}

fn add_known_sessions(count: &mut SessionCount, known: &BTreeMap<(String, String), u64>) {
    for (server, some) in known {
        *count.sessions.entry(server.clone()).or_default() += some;
    }
}

fn add_sessions(count: &mut SessionCount, sessions: Vec<Sessions>) {
    for Sessions { backend, server, count: some } in sessions {
        *count.sessions.entry((backend, server)).or_default() += some;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_silent_master_is_known_by_its_path() {
        let mut counter = SessionCounter::new(Socket::new("/no/such/socket"));
        let silent = |path: &str| (PathBuf::from(path), "Permission denied".to_owned());
        let (t, later) = (Instant::now(), Instant::now() + SILENCE_WAIT);
        assert_eq!(counter.log_silent_masters(Vec::new(), t), None);
        assert_eq!(counter.log_silent_masters(vec![silent("/x.sock")], t), Some(t));
        assert_eq!(counter.log_silent_masters(vec![silent("/x.sock")], later), Some(t));
        assert_eq!(counter.log_silent_masters(vec![silent("/x.sock"), silent("/y.sock")], later), Some(later));
        assert_eq!(counter.log_silent_masters(Vec::new(), later), None);
        assert_eq!(counter.log_silent_masters(vec![silent("/x.sock")], later), Some(later), "another one of that name");
    }

    #[test]
    fn a_missing_haproxy_is_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut counter = SessionCounter::new(Socket::new(dir.path().join("admin.sock")));
        let count = counter.count_sessions(&BTreeSet::new(), false);
        assert!(count.pid.is_none() && count.is_complete);
    }

    /// The pid of every old process here.
    const OLD: u32 = 4242;

    const NO_STREAMS: &str = "";
    const UNREADABLE: &str = "Permission denied\n";

    /// A HAProxy whose old process has its last connections.
    struct Bench {
        dir: tempfile::TempDir,
        counter: SessionCounter,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("handover")).unwrap();
            let socket = dir.path().join("admin.sock");
            serve(&socket, answer_as_running);
            Self { dir, counter: SessionCounter::new(Socket::new(socket)) }
        }

        /// The old process of this start has these streams, as `show sess` answers.
        fn set_master(&self, start: &str, streams: &'static str) {
            self.serve_master(start, move |command| answer_as_master(command, streams));
        }

        fn serve_master(&self, start: &str, answer: impl Fn(&str) -> String + Send + 'static) {
            serve(&self.master_path(start), answer);
        }

        fn master_path(&self, start: &str) -> PathBuf {
            self.dir.path().join("handover").join(format!("{start}.sock"))
        }

        fn remove_master(&self, start: &str) {
            std::fs::remove_file(self.master_path(start)).unwrap();
        }

        fn count(&mut self) -> SessionCount {
            self.counter.count_sessions(&BTreeSet::new(), true)
        }
    }

    /// Answers each connection's one line until the test ends.
    fn serve(path: &Path, answer: impl Fn(&str) -> String + Send + 'static) {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                stream.write_all(answer(line.trim_end()).as_bytes()).unwrap();
            }
        });
    }

    fn show_info(pid: u32, stopping: u8) -> String {
        format!("Version: 2.6.12\nPid: {pid}\nUptime_sec: 7\nCurrConns: 1\nListeners: 0\nStopping: {stopping}\n\n")
    }

    const NO_SESSIONS: &str = "# pxname,svname,qcur,qmax,scur,smax\n\n";

    fn answer_as_running(command: &str) -> String {
        if command == "show info" { show_info(7, 0) } else { NO_SESSIONS.to_owned() }
    }

    fn answer_as_master(command: &str, streams: &str) -> String {
        match command {
            "show proc" => format!("{OLD} worker 1 0d00h00m02s 2.6.12\n\n"),
            _ if command.contains("show stat") => NO_SESSIONS.to_owned(),
            _ => format!("{}{streams}\n", show_info(OLD, 1)),
        }
    }

    #[test]
    fn an_old_process_that_does_not_answer_holds_up_no_drain_for_ever() {
        let mut bench = Bench::new();
        bench.set_master("1", UNREADABLE);
        let count = bench.count();
        assert!(!count.is_complete && count.old_processes.is_empty(), "it may answer yet: {count:?}");
        for silence in bench.counter.silent_workers.values_mut() {
            silence.since = silence.since.checked_sub(SILENCE_WAIT).unwrap();
        }
        let count = bench.count();
        assert!(count.is_complete, "{count:?}");
        let old = count.old_processes.first().unwrap();
        assert!(old.streams.is_none() && old.since <= count.at.checked_sub(SILENCE_WAIT), "{old:?}");
    }

    #[test]
    fn the_last_known_sessions_of_a_process_that_falls_silent_count() {
        let mut bench = Bench::new();
        let server = ("http-shop".to_owned(), "b".to_owned());
        let open = |bench: &mut Bench| bench.count().sessions.get(&server).copied();
        bench.serve_master("1", |command| match command {
            _ if command.contains("show stat") => {
                "# pxname,svname,qcur,qmax,scur,smax\nhttp-shop,b,0,0,2,2\n\n".to_owned()
            }
            _ => answer_as_master(command, NO_STREAMS),
        });
        assert_eq!(open(&mut bench), Some(2));
        bench.remove_master("1");
        bench.serve_master("1", |command| match command {
            "show proc" => answer_as_master(command, NO_STREAMS),
            _ => "Permission denied\n\n".to_owned(),
        });
        assert_eq!(open(&mut bench), Some(2), "its master answers");
        bench.remove_master("1");
        let silent = UnixListener::bind(bench.master_path("1")).unwrap();
        assert_eq!(open(&mut bench), Some(2), "its master is silent too");
        drop(silent);
        assert_eq!(open(&mut bench), None, "it has ended");
    }

    #[test]
    fn a_silence_before_a_pause_between_drains_does_not_count() {
        let mut bench = Bench::new();
        bench.set_master("1", UNREADABLE);
        bench.count();
        let earlier = |at: &mut Instant| *at = at.checked_sub(SILENCE_WAIT * 2).unwrap();
        bench.counter.silent_workers.values_mut().for_each(|silence| earlier(&mut silence.since));
        bench.counter.counted_at.iter_mut().for_each(earlier);
        let count = bench.count();
        assert!(!count.is_complete && count.old_processes.is_empty(), "it may be busy for a moment: {count:?}");
    }

    #[test]
    fn an_old_process_is_known_by_its_master_and_pid() {
        let mut bench = Bench::new();
        bench.set_master("1", NO_STREAMS);
        let since = |count: SessionCount| count.old_processes.first().unwrap().since.unwrap();
        let first = since(bench.count());
        assert_eq!(since(bench.count()), first);
        // The kernel may give the next start's worker the pid of the worker that ended.
        bench.remove_master("1");
        bench.set_master("2", NO_STREAMS);
        assert!(since(bench.count()) > first);
    }
}
