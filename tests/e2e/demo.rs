//! `make demo`: each command that it prints is pasted, and does what the text says.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use lab::http::Request;
use lab::{PATIENCE, Page, Process, Scratch, Signal, bin, medium, until};

/// The port that the demo would take first.
const FIRST_PORT: u16 = 8900;

/// A shell that has pasted the first block.
struct Shell {
    export: String,
}

impl Shell {
    /// Pastes a block, and returns what it prints.
    #[track_caller]
    fn paste(&self, block: &str) -> String {
        let script = format!("set -e\n{}{block}", self.export);
        let Output { status, stdout, stderr } = Command::new("bash").args(["-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        assert!(status.success(), "{block}: {said}");
        said
    }
}

/// Asks the console's API.
fn asked(console: &str, path: &str) -> Result<String, String> {
    let address = console.trim_start_matches("http://").trim_end_matches('/').parse().expect("an address");
    Request::get("localhost", path).send(address).map(|answer| answer.body).map_err(|error| error.to_string())
}

#[test]
fn every_command_of_the_walk_through_works_and_ctrl_c_ends_all() {
    let _turn = medium();
    let folder = Scratch::new();
    // Another program, such as the reader's own demo, may have it already.
    let _taken = TcpListener::bind(("127.0.0.1", FIRST_PORT));
    let demo = Process::start(&folder, "demo", &mut Command::new(bin("demo")));
    until(PATIENCE, "the demo to be up", || {
        demo.log().contains("Ctrl-C ends all").then_some(()).ok_or_else(|| demo.log())
    });
    let text = demo.log();
    let console = text.lines().find_map(|line| line.strip_prefix("The console")).expect("the console's address").trim();
    // What is being started, an empty line, the console.
    let mut lines = text.lines().skip(2);
    assert!(lines.next().is_some_and(|line| line.starts_with("The console ")), "{text}");
    let second = lines.next().unwrap_or_default();
    assert!(second.starts_with(&format!("Taken ports   {FIRST_PORT}")), "{second}");

    let page = Page::parse("the demo", &text);
    let [export] = &page.below("")[..] else { panic!("{text}") };
    let shell = Shell { export: export.clone() };
    let mut blocks =
        page.headings().into_iter().filter(|heading| !heading.is_empty()).map(|heading| page.below(heading));

    let [explain, deregister] = &blocks.next().unwrap()[..] else { panic!("two blocks") };
    assert!(shell.paste(explain).contains("Connection refused"));
    shell.paste(deregister);

    let [preview, switch, back] = &blocks.next().unwrap()[..] else { panic!("three blocks") };
    let answer = shell.paste(preview);
    assert!(answer.starts_with("green-") && answer.contains("x-discover-color: green"), "{answer}");
    assert!(shell.paste(switch).contains("active is green"));
    let history = shell.paste(back);
    assert!(history.contains("blue=75 green=25") && history.contains("the old one was nicer"), "{history}");

    let [crash] = &blocks.next().unwrap()[..] else { panic!("one block") };
    shell.paste(crash);
    until(PATIENCE, "the crash to be seen", || {
        let upstreams = asked(console, "/api/v1/upstreams?service=http-shop")?;
        if upstreams.contains("Connection refused") { Ok(()) } else { Err(upstreams) }
    });

    let [restart] = &blocks.next().unwrap()[..] else { panic!("one block") };
    assert!(shell.paste(restart).contains("haproxy: started"));

    let [put, unset] = &blocks.next().unwrap()[..] else { panic!("two blocks") };
    shell.paste(put);
    until(PATIENCE, "the bad value to be named", || {
        let keys = asked(console, "/api/v1/quarantine")?;
        if keys.contains("`quickly`") { Ok(()) } else { Err(keys) }
    });
    shell.paste(unset);

    let [announce, ask, end, delete] = &blocks.next().unwrap()[..] else { panic!("four blocks") };
    // A reader takes some seconds to paste the next block.
    let listed = "until discoverctl check mine | grep -q ' balanced'; do sleep 0.1; done\n";
    // One shell, because the blocks share a job. The job keeps the shell's output open until it ends.
    let said = shell.paste(&[announce, listed, ask, end].concat());
    assert!(said.contains("Directory listing") && said.contains("mine/domain"), "{said}");
    assert!(said.contains("every balancer has acknowledged the drain"), "{said}");
    assert!(shell.paste(delete).contains("mine/domain: deleted"));
    assert!(blocks.next().is_none(), "a step that this test doesn't know");
    until(PATIENCE, "the copy that crashed to serve again", || {
        shell.paste("discoverctl check shop/blue-2 || true").contains(" balanced")
    });
    assert_ends(demo, &text, console);
}

/// Ctrl-C ends all of it, without a trace.
#[track_caller]
fn assert_ends(mut demo: Process, text: &str, console: &str) {
    let left = text.lines().find_map(|line| line.strip_prefix("haproxy.cfg ")).expect("the file").trim().to_owned();
    assert!(Path::new(&left).is_file());
    demo.signal(Signal::SIGINT);
    assert!(demo.wait(PATIENCE).success());
    let said = demo.log();
    assert!(said.contains("shop ") && said.contains(" 0 failed"), "{said}");
    let address = console.trim_start_matches("http://").trim_end_matches('/').to_owned();
    until(PATIENCE, "all to be over", || TcpStream::connect(&address).is_err() && !Path::new(&left).exists());
}
