//! `docs/exit-codes.md`: each program's `--help` says the same, and each code occurs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::create_dir;
use std::net::TcpListener;
use std::process::Command;

use lab::{Etcd, PATIENCE, Process, Scratch, Signal, bin, free_port, light, until, write};

use super::read;

type Codes = BTreeMap<String, BTreeSet<i32>>;

/// The codes of each program, as the page has them.
fn codes() -> Codes {
    let page = read("docs/exit-codes.md");
    let mut rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let programs: Vec<&str> = rows.next().unwrap().trim_matches(|c| c == ' ' || c == '|').split(" | ").collect();
    let mut codes = Codes::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for (program, cell) in programs.iter().zip(&cells[1..]).filter(|(_, cell)| !cell.is_empty()) {
            assert!(
                codes.entry((*program).to_owned()).or_default().insert(cells[0].parse().unwrap()),
                "{program}: {cell}"
            );
        }
    }
    codes
}

/// The codes that a program's `--help` lists: lines of numbers and words below `Exit codes:` or `Exit status:`.
fn listed(program: &str) -> BTreeSet<i32> {
    let help = Command::new(bin(program)).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let (_, below) = help.split_once("\nExit ").unwrap_or_else(|| panic!("{program} --help lists no codes"));
    let lines = below.lines().skip(1).take_while(|line| line.starts_with(' '));
    let numbers = lines.map(|line| {
        let words = line.split_whitespace().map_while(|word| word.trim_end_matches(',').parse().ok());
        words.collect::<Vec<i32>>()
    });
    numbers.flatten().collect()
}

#[test]
fn exit_codes_are_what_the_page_and_help_say() {
    let codes = codes();
    for (program, codes) in &codes {
        assert_eq!(&listed(program), codes, "{program}");
    }
}

/// A store and files of each kind: good ones, bad ones, none.
struct Scene {
    etcd: Etcd,
    folder: Scratch,
    /// Where nobody listens.
    nowhere: String,
    /// A port that HAProxy can't have.
    taken: TcpListener,
}

/// A HAProxy that begins, and can't go on.
const CLASHES: &str =
    "defaults\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\nlisten web\n    bind ";

impl Scene {
    fn new() -> Self {
        let folder = Scratch::new();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        for name in ["mine", "none"] {
            create_dir(folder.join(name)).unwrap();
        }
        write(folder.join("haproxy.cfg"), "a file that HAProxy refuses\n");
        write(folder.join("mine/mine.cfg"), "nor this one\n");
        write(folder.join("clashes.cfg"), format!("{CLASHES}{}\n", taken.local_addr().unwrap()));
        let scene = Self { etcd: Etcd::start(), folder, nowhere: format!("http://127.0.0.1:{}", free_port()), taken };
        scene.etcd.put("http-services/shop/path", "no path");
        scene.etcd.put("http-services/shop/active", "blue");
        for color in ["blue", "green"] {
            let record = format!(r#"{{"address":"10.0.0.9:80","color":"{color}","permanent":true}}"#);
            scene.etcd.put(&format!("http-services/shop/upstreams/{color}"), record);
        }
        scene
    }

    /// A balancer that has followed everything up to this revision.
    fn balancer(&self, applied: i64) {
        let said = format!(
            r#"{{"cluster":"{}","seen":{applied},"applied":{applied},"pending":[],"held":[],"draining":{{}}}}"#,
            self.etcd.cluster_id()
        );
        self.etcd.put("balancers/lb-1", said);
    }

    /// A program with the words of a line.
    fn command(&self, program: &str, line: &str) -> Command {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let line = line.replace("ETCD", &self.etcd.endpoints()).replace("NOWHERE", &self.nowhere);
        let line = line.replace("STATE", &path("state")).replace("FILE", &path("haproxy.cfg"));
        let line = line.replace("FOLDER", &self.folder.display().to_string());
        let mut command = Command::new(bin(program));
        command.args(line.split_whitespace());
        command
    }

    #[track_caller]
    fn code(&self, program: &str, line: &str) -> (i32, String) {
        let output = self.command(program, line).output().unwrap();
        let code = output.status.code().unwrap_or_else(|| panic!("{program} {line}: {output:?}"));
        (code, format!("{program} {line}: {output:?}"))
    }

    /// What discoverctl ends with after Ctrl-C, while it waits for the balancer.
    fn interrupted(&self, line: &str) -> i32 {
        let mut process = Process::start(&self.folder, "interrupted", &mut self.command("discoverctl", line));
        until(PATIENCE, "a word on who is waited for", || process.log().contains("lb-1"));
        process.signal(Signal::SIGINT);
        process.wait(PATIENCE).code().unwrap_or_else(|| panic!("{}", process.log()))
    }
}

#[test]
fn every_exit_code_occurs() {
    let _turn = light();
    let scene = Scene::new();
    let mut occurred = Codes::new();
    let mut see = |program: &str, code: i32| _ = occurred.entry(program.to_owned()).or_default().insert(code);
    let renders = "--endpoints ETCD --haproxy-cfg FILE --state-dir STATE --haproxy-user off --haproxy-group off";
    let once = format!(
        "once {renders} --certs STATE --ca-dir STATE --runtime-socket STATE/none --server-state-file STATE/servers"
    );
    for (program, line, code) in [
        ("announcer", "man FILE/man1", 1),
        ("announcer", "check-config /dev/null", 2),
        ("announcer", "register --endpoints NOWHERE --service shop --upstream 10.0.0.1:80 --id a", 3),
        ("announcer", "register --endpoints ETCD --service shop --upstream 10.0.0.1:80 --id a", 0),
        ("announcer", "register --endpoints ETCD --service shop --upstream 10.0.0.1:80 --id green", 4),
        ("announcer", "--endpoints ETCD --service shop --upstream 10.0.0.1:80 -- /", 126),
        ("announcer", "--endpoints ETCD --service shop --upstream 10.0.0.1:80 -- /no/such/program", 127),
        ("confgen", &format!("render {renders}"), 0),
        ("confgen", &format!("diff {renders}"), 1),
        ("confgen", "--no-such-option", 2),
        ("confgen", "render --endpoints NOWHERE --state-dir STATE", 3),
        ("confgen", &format!("{once} --include FOLDER/mine --restart-command true"), 4),
        ("confgen", &format!("{once} --include FOLDER/none --restart-command false"), 5),
        ("discoverctl", "list --endpoints ETCD", 0),
        ("discoverctl", "lint --endpoints ETCD", 1),
        ("discoverctl", "set", 2),
        ("discoverctl", "list --endpoints NOWHERE", 3),
        ("discoverctl", "show nobody --endpoints ETCD", 4),
        ("discoverctl", "check shop/green --endpoints ETCD", 6),
        ("handover", "stop --socket STATE/none", 0),
        ("handover", "--socket STATE/none -- haproxy -f FOLDER/mine", 2),
        ("handover", "--socket STATE/none -- haproxy -f FOLDER/clashes.cfg", 3),
        ("handover", "--socket STATE/none --group no-such-group -- haproxy -f FOLDER/none", 4),
        ("handover", "--socket STATE/none", 64),
    ] {
        let (seen, said) = scene.code(program, line);
        assert_eq!(seen, code, "{said}");
        see(program, code);
    }

    scene.balancer(0);
    let (seen, said) = scene.code("discoverctl", "set shop balance leastconn --timeout 1s --endpoints ETCD");
    assert_eq!(seen, 5, "{said}");
    assert_eq!(scene.interrupted("switch shop green --force --endpoints ETCD"), 130);
    scene.balancer(i64::MAX);
    let switch = "switch shop blue --force --every 0s --after false --endpoints ETCD";
    let (seen, said) = scene.code("discoverctl", switch);
    assert_eq!(seen, 7, "{said}");
    [5, 7, 130].into_iter().for_each(|code| see("discoverctl", code));

    assert_eq!(occurred, codes());
    drop(scene.taken);
}
