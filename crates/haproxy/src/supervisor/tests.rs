//! Against a real supervisord.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let config = format!(
            "[unix_http_server]\nfile={path}/s.sock\n\
             [supervisord]\nnodaemon=true\npidfile={path}/s.pid\nlogfile={path}/s.log\nchildlogdir={path}\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{path}/s.sock\n\
             [program:good]\ncommand=sleep 1000\nstartsecs=0\nautostart=false\n\
             [program:bad]\ncommand=sh -c 'exit 2'\nstartsecs=10\nstartretries=0\nautostart=false\n\
             [program:wordy]\ncommand=sh -c 'echo [ALERT] bad news >&2; exit 2'\nstartsecs=10\nstartretries=0\nautostart=false\n\
             redirect_stderr=true\n\
             [program:missing]\ncommand=/no/such/program\nautostart=false\n\
             [program:slow]\ncommand=sh -c 'trap \"sleep 1; exit 0\" TERM; touch {path}/trap; while :; do sleep 0.1; done'\nstartsecs=0\n"
        );
        let file = dir.path().join("s.conf");
        fs::File::create(&file).unwrap().write_all(config.as_bytes()).unwrap();
        let child = Command::new("supervisord")
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self { child, dir };
        let supervisord: Supervisord = daemon.url().parse().unwrap();
        daemon.until("supervisord answers", || matches!(supervisord.is_shutting_down(QUICK), Ok(false)));
        daemon
    }

    fn url(&self) -> String {
        format!("unix://{}/s.sock", self.dir.path().display())
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The control of a program, over direct calls or by supervisorctl alone.
    fn control(&self, program: &str, direct: bool) -> Control {
        let config = self.dir.path().join("s.conf");
        let line = if direct {
            format!("supervisorctl restart {program}")
        } else {
            format!("supervisorctl -c {} restart {program}", config.display())
        };
        Control::new(line.parse().unwrap(), Some(&self.url()))
    }
}

const QUICK: Duration = Duration::from_secs(1);

#[test]
fn restarts_over_rpc_and_over_the_command() {
    let daemon = Daemon::start();
    let supervisord: Supervisord = daemon.url().parse().unwrap();
    for direct in [true, false] {
        let control = daemon.control("good", direct);
        control.restart_program().unwrap();
        assert_eq!(control.query_state().unwrap(), State::Running);
        let first = supervisord.query_process("good").unwrap().pid.unwrap();
        control.restart_program().unwrap();
        let second = supervisord.query_process("good").unwrap().pid.unwrap();
        assert_ne!(first, second);
        supervisord.stop_program("good").unwrap();
        assert_eq!(control.query_state().unwrap(), State::Stopped);
        assert_eq!(supervisord.query_process("good").unwrap().pid, None);
    }
}

#[test]
fn a_stop_is_waited_for() {
    let daemon = Daemon::start();
    let supervisord: Supervisord = daemon.url().parse().unwrap();
    daemon.until("slow has set its trap", || daemon.dir.path().join("trap").exists());
    let begun = Instant::now();
    supervisord.restart_program("slow").unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(supervisord.query_process("slow").unwrap().state, State::Running);
}

#[test]
fn faults_are_named() {
    let daemon = Daemon::start();
    let supervisord: Supervisord = daemon.url().parse().unwrap();
    let fault = |result: Result<(), Error>| match result {
        Err(Error::Fault { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(supervisord.stop_program("good")), Fault::NotRunning);
    assert_eq!(fault(supervisord.stop_program("no <such> & program")), Fault::BadName);
    assert_eq!(fault(supervisord.start_program("missing")), Fault::NoFile);
    supervisord.start_program("good").unwrap();
    assert_eq!(fault(supervisord.start_program("good")), Fault::AlreadyStarted);
    // supervisord may notice the end of what it has just started before it answers.
    if let Err(error) = supervisord.start_program("bad") {
        assert_eq!(fault(Err(error)), Fault::SpawnError);
    }
    daemon.until("bad is FATAL", || supervisord.query_process("bad").is_ok_and(|p| p.state == State::Fatal));
}

#[test]
fn a_failed_start_is_told_in_the_programs_own_words() {
    let daemon = Daemon::start();
    let supervisord: Supervisord = daemon.url().parse().unwrap();
    let socket = daemon.dir.path().join("admin.sock");
    let control = daemon.control("wordy", true);
    let since = SystemTime::now();
    let _ = supervisord.start_program("wordy");
    daemon.until("it has failed", || supervisord.query_process("wordy").is_ok_and(|p| p.state == State::Fatal));
    let info = supervisord.query_process("wordy").unwrap();
    assert!(info.started.is_some_and(|started| started + Duration::from_secs(1) >= since), "{info:?}");
    assert_eq!(control.read_failure_message(&socket, since).as_deref(), Some("[ALERT] bad news"));
    // What handover has left is newer than the log, if it is of this start.
    let masters = crate::masters::nested_directory(&socket);
    fs::create_dir(&masters).unwrap();
    let mut file = fs::File::create(masters.join(failure::FILE)).unwrap();
    file.write_all(&failure::encode_message("no space left")).unwrap();
    assert_eq!(control.read_failure_message(&socket, since).as_deref(), Some("no space left"));
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(control.read_failure_message(&socket, since).as_deref(), Some("[ALERT] bad news"));
    assert_eq!(daemon.control("good", true).read_failure_message(&socket, since), None, "not started");
}

#[test]
fn the_command_says_why_it_failed() {
    let daemon = Daemon::start();
    let error = daemon.control("bad", false).restart_program().unwrap_err();
    assert!(matches!(&error, Error::Refused { output, .. } if output.contains("ERROR (spawn error)")), "{error}");
    assert_eq!(daemon.control("bad", false).query_state().unwrap(), State::Fatal);
    let error = daemon.control("nobody", false).query_state().unwrap_err();
    assert!(error.to_string().contains("no such process"), "{error}");
}

#[test]
fn without_supervisord_the_command_runs() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("unix://{}/none.sock", dir.path().display());
    let control = Control::new(format!("supervisorctl -s {url} restart x").parse().unwrap(), None);
    let error = control.restart_program().unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let plain = Control::new("true".parse().unwrap(), Some(&url));
    plain.restart_program().unwrap();
    assert!(matches!(plain.query_state(), Err(Error::NoState { .. })));
}

#[test]
fn its_own_shutdown_is_told_from_running() {
    let daemon = Daemon::start();
    let supervisord: Supervisord = daemon.url().parse().unwrap();
    daemon.until("slow has set its trap", || daemon.dir.path().join("trap").exists());
    assert!(!supervisord.is_shutting_down(QUICK).unwrap());
    kill(Pid::from_raw(daemon.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    daemon.until("it says so", || matches!(supervisord.is_shutting_down(QUICK), Ok(true)));
}

#[test]
fn only_a_plain_command_is_replaced() {
    let url = Some("unix:///run/s.sock");
    let direct = |line: &str| Control::new(line.parse().unwrap(), url).direct.map(|(s, p)| (s.to_string(), p));
    assert_eq!(
        direct("/usr/bin/supervisorctl restart lb:haproxy"),
        Some(("unix:///run/s.sock".to_owned(), "lb:haproxy".to_owned()))
    );
    assert_eq!(
        direct("supervisorctl -s http://127.0.0.1:9001 restart haproxy"),
        Some(("http://127.0.0.1:9001".to_owned(), "haproxy".to_owned()))
    );
    for line in
        ["supervisorctl -c /etc/x restart haproxy", "sudo supervisorctl restart haproxy", "supervisorctl stop h"]
    {
        assert_eq!(direct(line), None, "{line}");
    }
}

#[test]
fn addresses_are_read_strictly() {
    for url in ["unix://relative", "http://host", "http://u:p@host:1", "ftp://host:1", ""] {
        assert!(url.parse::<Supervisord>().is_err(), "{url}");
    }
}
