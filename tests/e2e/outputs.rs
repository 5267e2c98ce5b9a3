//! Outputs that are full, closed or not read. No program stops, hangs or loses a signal because of them, and none says that
//! it has answered when its answer could not be written.

use std::fs::create_dir;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use lab::{Etcd, Outlet, PATIENCE, Process, Scratch, Signal, bin, free_port, light, until, write};

const PROGRAMS: [(&str, i32); 4] = [("announcer", 2), ("confgen", 2), ("discoverctl", 2), ("handover", 64)];

fn command(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(bin(program));
    command.args(words);
    command
}

/// How it ends with its standard output there, and what it says on standard error.
fn answered(outlet: Outlet, mut command: Command) -> (Option<i32>, String) {
    let (stdout, _reader) = outlet.open();
    let output = command.stdin(Stdio::null()).stdout(stdout).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn help_version_man_and_completions_that_could_not_be_written_are_failures() {
    for (program, _) in PROGRAMS {
        for words in [&["--help"][..], &["-h"], &["--version"], &["man"], &["completions", "bash"]] {
            let (code, said) = answered(Outlet::Full, command(program, words));
            assert!(
                code == Some(1) && said.contains("standard output can't be written: No space left"),
                "{program} {words:?}: {code:?} {said}"
            );
            let gone = answered(Outlet::ReaderGone, command(program, words));
            assert_eq!(gone, (Some(0), String::new()), "{program} {words:?}: a reader that has enough is no failure");
        }
    }
}

#[test]
fn a_wrong_option_ends_the_program_even_if_no_output_can_be_written() {
    for (program, usage) in PROGRAMS {
        for outlet in Outlet::ALL {
            for words in ["--no-such-option", "completions --no-such-option"] {
                let words: Vec<&str> = words.split(' ').collect();
                let usage = if words.len() > 1 { 2 } else { usage };
                let mut process = Process::start_on(outlet, program, &command(program, &words));
                assert_eq!(process.wait(PATIENCE).code(), Some(usage), "{program} {words:?} {outlet:?}");
            }
        }
    }
}

#[test]
fn a_program_whose_answer_is_not_read_ends_by_a_signal() {
    for (program, _) in PROGRAMS {
        let mut process = Process::start_on(Outlet::Unread, program, &command(program, &["--help"]));
        until(PATIENCE, "the write that waits", || waits_in_write(process.pid().as_raw()));
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait(PATIENCE).signal(), Some(Signal::SIGTERM as i32), "{program}");
    }
}

/// True while the process, or what its shell became, sleeps in a write to a pipe.
fn waits_in_write(pid: i32) -> bool {
    let asleep = |text: String| text.split_whitespace().next().is_some_and(|number| number == "1");
    std::fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(asleep)
}

/// confgen, with a store and all of its files in a folder.
fn confgen(etcd: &Etcd, folder: &Path, more: &[&str]) -> Command {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut command = command("confgen", more);
    for name in ["conf.d", "certs", "ca"] {
        let _ = create_dir(folder.join(name));
    }
    for (option, value) in [
        ("--endpoints", etcd.endpoints()),
        ("--haproxy-cfg", path("haproxy.cfg")),
        ("--include", path("conf.d")),
        ("--state-dir", path("state")),
        ("--certs", path("certs")),
        ("--ca-dir", path("ca")),
        ("--runtime-socket", path("none.sock")),
        ("--server-state-file", path("servers.state")),
        ("--http-bind", format!("127.0.0.1:{}", free_port())),
        ("--https-bind", format!("127.0.0.1:{}", free_port())),
        ("--stats-bind", format!("127.0.0.1:{}", free_port())),
        ("--restart-command", "true".to_owned()),
        ("--upstream-networks", "127.0.0.0/8".to_owned()),
        ("--haproxy-user", "off".to_owned()),
        ("--haproxy-group", "off".to_owned()),
        ("--log-level", "trace".to_owned()),
    ] {
        command.args([option.to_owned(), value]);
    }
    command
}

#[test]
fn confgen_follows_the_store_and_stops_whatever_becomes_of_its_outputs() {
    let _turn = light();
    let etcd = Etcd::start();
    for outlet in Outlet::ALL {
        let folder = Scratch::new();
        let mut confgen = Process::start_on(outlet, "confgen", &confgen(&etcd, &folder, &["--admin", "off"]));
        for service in ["one", "two"] {
            // Several lines of the log come before each of them.
            etcd.put(&format!("http-services/{service}/domain"), format!("{service}-{outlet:?}.test").to_lowercase());
            etcd.put(&format!("http-services/{service}/upstreams/a"), "127.0.0.1:9");
            until(PATIENCE, service, || {
                let text = std::fs::read_to_string(folder.join("haproxy.cfg")).unwrap_or_default();
                if text.contains(&format!("backend http-{service}")) && confgen.running() { Ok(()) } else { Err(text) }
            });
        }
        confgen.signal(Signal::SIGTERM);
        assert_eq!(confgen.wait(PATIENCE).code(), Some(0), "{outlet:?}");
        etcd.delete_all("http-services/");
    }
}

#[test]
fn what_confgen_and_discoverctl_could_not_print_is_a_failure() {
    let _turn = light();
    let etcd = Etcd::start();
    etcd.put("http-services/shop/domain", "shop.test");
    etcd.put("http-services/shop/upstreams/a", "127.0.0.1:9");
    let folder = Scratch::new();
    let endpoints = etcd.endpoints();
    let ctl = |words: &[&str]| command("discoverctl", &[words, &["--endpoints", &endpoints]].concat());
    let asked: [(&str, &dyn Fn() -> Command, i32); 7] = [
        ("render", &|| confgen(&etcd, &folder, &["render"]), 0),
        ("diff", &|| confgen(&etcd, &folder, &["diff"]), 1),
        ("export", &|| ctl(&["export"]), 0),
        ("list", &|| ctl(&["list"]), 0),
        ("show", &|| ctl(&["show", "shop", "--output", "json"]), 0),
        ("lint", &|| ctl(&["lint"]), 1),
        ("show as YAML", &|| ctl(&["show", "shop", "--output", "yaml"]), 0),
    ];
    for (name, command, code) in asked {
        let (full, said) = answered(Outlet::Full, command());
        assert!(
            full == Some(1) && said.contains("standard output can't be written: No space left"),
            "{name}: {full:?} {said}"
        );
        let (gone, said) = answered(Outlet::ReaderGone, command());
        assert!(gone == Some(code) && !said.contains("standard output"), "{name}: {gone:?} {said}");
    }
    // What is to be written to the store is written nevertheless, and the failure told.
    let (full, said) = answered(Outlet::Full, ctl(&["set", "shop", "balance", "leastconn", "--no-wait"]));
    assert!(full == Some(1) && said.contains("standard output can't be written"), "{full:?} {said}");
    assert_eq!(etcd.get("http-services/shop/balance").as_deref(), Some("leastconn"));
}

#[test]
fn a_command_that_waits_goes_on_while_its_outputs_are_not_read_and_takes_signals() {
    let _turn = light();
    let etcd = Etcd::start();
    etcd.put("http-services/shop/domain", "shop.test");
    etcd.put("http-services/shop/upstreams/a", "127.0.0.1:9");
    let endpoints = etcd.endpoints();
    let ctl = |words: &[&str]| command("discoverctl", &[words, &["--endpoints", &endpoints]].concat());
    for outlet in [Outlet::Full, Outlet::ReaderGone, Outlet::Unread] {
        // A balancer that never follows: it says on standard error that it waits, and ends in time.
        etcd.put("balancers/lb", "?");
        let (stderr, _reader) = outlet.open();
        let mut drain = ctl(&["drain", "shop/a", "--timeout", "4s"]);
        let mut drain = drain.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let status = until(PATIENCE, "the end of the drain", || drain.try_wait().unwrap());
        assert_eq!(status.code(), Some(5), "{outlet:?}");
        etcd.delete_all("balancers/");
        etcd.delete_all("http-services/shop/overrides/");
    }
    for (signal, code, by) in [(Signal::SIGINT, Some(0), None), (Signal::SIGTERM, None, Some(Signal::SIGTERM as i32))] {
        let mut watch = Process::start_on(Outlet::Unread, "watch", &ctl(&["watch"]));
        until(PATIENCE, "the write that waits", || threads_wait_in_write(watch.pid().as_raw()));
        watch.signal(signal);
        let status = watch.wait(PATIENCE);
        assert_eq!((status.code(), status.signal()), (code, by), "watch, {signal}");
    }
    let mut list = Process::start_on(Outlet::Unread, "list", &ctl(&["list"]));
    until(PATIENCE, "the write that waits", || threads_wait_in_write(list.pid().as_raw()));
    list.signal(Signal::SIGINT);
    // By the signal itself if it comes before the command waits for its reader.
    let status = list.wait(PATIENCE);
    assert!(status.code() == Some(130) || status.signal() == Some(Signal::SIGINT as i32), "list: {status}");
    let mut watch = Process::start_on(Outlet::ReaderGone, "watch", &ctl(&["watch"]));
    assert_eq!(watch.wait(PATIENCE).code(), Some(0), "its reader has gone");
}

fn threads_wait_in_write(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.filter_map(Result::ok).any(|task| {
        let asleep = |text: String| text.split_whitespace().next().is_some_and(|number| number == "1");
        std::fs::read_to_string(task.path().join("syscall")).is_ok_and(asleep)
    })
}

#[test]
fn handover_serves_and_stops_whatever_becomes_of_its_outputs() {
    let _turn = light();
    // An output that is not read stops HAProxy itself at its first word, whoever starts it: it writes there too.
    for outlet in [Outlet::Full, Outlet::ReaderGone, Outlet::Closed] {
        let folder = Scratch::new();
        let socket = folder.join("admin.sock");
        let port = free_port();
        let file = format!(
            "global\n    stats socket {} level admin expose-fd listeners\ndefaults\n    mode http\n    timeout client 1s\n    \
             timeout connect 1s\n    timeout server 1s\nfrontend web\n    bind 127.0.0.1:{port}\n    http-request return \
             status 200\n",
            socket.display()
        );
        write(folder.join("haproxy.cfg"), file);
        let mut command = command("handover", &["--drain", "2s", "--socket"]);
        command.arg(&socket).args(["--", "haproxy", "-f"]).arg(folder.join("haproxy.cfg"));
        command.env_remove("SUPERVISOR_ENABLED").env_remove("SUPERVISOR_SERVER_URL");
        let mut handover = Process::start_on(outlet, "handover", &command);
        until(PATIENCE, "an answer", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        until(PATIENCE, "the runtime socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        assert!(handover.running(), "{outlet:?}");
        handover.signal(Signal::SIGTERM);
        assert_eq!(handover.wait(PATIENCE).code(), Some(0), "{outlet:?}");
        until(PATIENCE, "the end of HAProxy", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
    // Its own words alone: the file is refused, and HAProxy's words on that are passed on.
    let folder = Scratch::new();
    write(folder.join("haproxy.cfg"), "nonsense\n".repeat(1_000));
    for outlet in Outlet::ALL {
        let mut command = command("handover", &["--socket"]);
        command.arg(folder.join("none.sock")).args(["--", "haproxy", "-f"]).arg(folder.join("haproxy.cfg"));
        let mut handover = Process::start_on(outlet, "handover", &command);
        assert_eq!(handover.wait(PATIENCE).code(), Some(2), "{outlet:?}");
    }
}
