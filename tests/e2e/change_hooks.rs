//! The hooks for changes: each hook gets each change, and a hook that hangs or fails holds up neither a change nor the other hook.

use std::fs::{Permissions, read_to_string, remove_file, set_permissions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::spawn;
use std::time::{Duration, Instant};

use lab::{Ground, PATIENCE, light, until, write};
use serde_json::Value;

/// A change over the Runtime API takes some milliseconds. The tests run beside others on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

/// An attempt has 10 s. The machine may be late by some.
const ATTEMPT: Duration = Duration::from_secs(10);

const OVERRIDE: &str = "http-services/shop/overrides/shop";

/// The last part of the webhook's URL, which is a secret.
const TOKEN: &str = "token-1";

/// The command of `--change-exec`. It hangs or fails at the change to the weight 11 while a file of that name exists.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0")
body=$(cat)
case "$body" in
*'"after":"{\"weight\":11}"'*)
    if [ -e "$here/hang" ]; then sleep 3600 & echo "$$ $!" > "$here/pids.new"; mv "$here/pids.new" "$here/pids"; wait; fi
    if [ -e "$here/fail" ]; then echo "$body" >> "$here/failed"; exit 3; fi ;;
esac
echo "$body" >> "$here/calls"
"#;

/// The behaviour of the web service at the change to the weight 11.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Take,
    Refuse,
    /// It reads the call and says nothing.
    Hang,
}

/// A web service that gets the changes.
struct Receiver {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    mode: Mode,
    /// The calls that were answered with 204.
    taken: Vec<Value>,
    refused: Vec<Instant>,
    /// The calls without an answer, and the time after which confgen gave each up.
    hung: Vec<Option<Duration>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{TOKEN}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen { mode: Mode::Take, taken: vec![], refused: vec![], hung: vec![] }));
        let shared = Arc::clone(&seen);
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&shared);
                spawn(move || answer(stream, &seen));
            }
        });
        Self { url, seen }
    }

    fn set_mode(&self, mode: Mode) {
        self.seen.lock().unwrap().mode = mode;
    }

    fn taken(&self) -> Vec<Value> {
        self.seen.lock().unwrap().taken.clone()
    }

    fn refused(&self) -> Vec<Instant> {
        self.seen.lock().unwrap().refused.clone()
    }

    fn hung(&self) -> Vec<Option<Duration>> {
        self.seen.lock().unwrap().hung.clone()
    }
}

/// Reads a POST, and answers as the mode says.
fn answer(mut stream: TcpStream, seen: &Mutex<Seen>) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    let body = loop {
        if let Some(body) = body_of(&bytes) {
            break body;
        }
        match stream.read(&mut chunk) {
            Ok(length) if length > 0 => bytes.extend_from_slice(&chunk[..length]),
            _ => return,
        }
    };
    assert!(bytes.starts_with(format!("POST /{TOKEN} HTTP/1.1\r\n").as_bytes()), "{}", String::from_utf8_lossy(&bytes));
    let call: Value = serde_json::from_slice(&body).unwrap();
    let is_eleven = String::from_utf8_lossy(&body).contains(r#""after":"{\"weight\":11}""#);
    let mode = if is_eleven { seen.lock().unwrap().mode } else { Mode::Take };
    let began = Instant::now();
    let status = match mode {
        Mode::Take => "204 Done",
        Mode::Refuse => "503 Busy",
        Mode::Hang => {
            let place = {
                let mut seen = seen.lock().unwrap();
                seen.hung.push(None);
                seen.hung.len() - 1
            };
            // It ends when confgen closes the connection.
            while stream.read(&mut chunk).is_ok_and(|length| length > 0) {}
            seen.lock().unwrap().hung[place] = Some(began.elapsed());
            return;
        }
    };
    let written = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let mut seen = seen.lock().unwrap();
    match mode {
        Mode::Refuse => seen.refused.push(began),
        _ if written.is_ok() => seen.taken.push(call),
        _ => {}
    }
}

/// The body of a request that is complete.
fn body_of(request: &[u8]) -> Option<Vec<u8>> {
    let end = request.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    request.get(end + 4..end + 4 + length).map(<[u8]>::to_vec)
}

struct Scene {
    ground: Ground,
    receiver: Receiver,
    folder: PathBuf,
}

impl Scene {
    fn start() -> Self {
        let receiver = Receiver::start();
        let build = Ground::build().http("shop", Ground::HOST, &["shop"]);
        let folder = build.setup.folder().join("hook");
        std::fs::create_dir(&folder).unwrap();
        let script = folder.join("script");
        write(&script, SCRIPT);
        set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let flags = ["--change-webhook", &receiver.url, "--change-exec", script.to_str().unwrap()];
        let ground = build.flags(&flags).start();
        Self { ground, receiver, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The calls that the script took.
    fn executed(&self) -> Vec<Value> {
        read_calls(&self.file("calls"))
    }

    fn put_weight(&self, weight: u32) {
        self.ground.etcd.put(OVERRIDE, format!("{{\"weight\":{weight}}}"));
    }

    /// Changes the weight, and returns the time until HAProxy has it.
    #[track_caller]
    fn change_weight(&self, weight: u32) -> Duration {
        let began = Instant::now();
        self.put_weight(weight);
        until(PATIENCE, &format!("the weight {weight} in HAProxy"), || {
            let row = self.ground.balancer.server_row("http-shop", "shop");
            if row["weight"] == weight.to_string() { Ok(()) } else { Err(row["weight"].clone()) }
        });
        began.elapsed()
    }

    /// Waits until both hooks have had these weights, each once and in this order.
    #[track_caller]
    fn until_told(&self, weights: &[u32]) {
        for (hook, told) in
            [("webhook", &(|| self.receiver.taken()) as &dyn Fn() -> Vec<Value>), ("exec", &|| self.executed())]
        {
            until(PATIENCE, &format!("{weights:?} at the {hook}"), || {
                let told = weights_of(&told());
                if told == weights { Ok(()) } else { Err(format!("{told:?}")) }
            });
        }
    }
}

/// Whole lines of JSON.
fn read_calls(file: &Path) -> Vec<Value> {
    let text = read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn overrides_of(calls: &[Value]) -> Vec<&Value> {
    let changes = calls.iter().flat_map(|call| call["changes"].as_array().unwrap());
    changes.filter(|change| change["key"] == OVERRIDE).collect()
}

fn weight_of(value: &Value) -> Option<u32> {
    serde_json::from_str::<Value>(value.as_str()?).ok()?["weight"].as_u64()?.try_into().ok()
}

fn weights_of(calls: &[Value]) -> Vec<u32> {
    overrides_of(calls).iter().map(|change| weight_of(&change["after"]).unwrap()).collect()
}

#[test]
fn each_hook_gets_each_change_once_and_in_order() {
    let _turn = light();
    let scene = Scene::start();
    let weights: Vec<u32> = (20..50).collect();
    weights.iter().for_each(|weight| scene.put_weight(*weight));
    scene.until_told(&weights);
    let node = scene.ground.balancer.api("status")["identity"]["node"].clone();
    for calls in [scene.receiver.taken(), scene.executed()] {
        assert!(calls.iter().all(|call| call["balancer"] == node), "{calls:?}");
        let changes = overrides_of(&calls);
        let befores: Vec<Option<u32>> = changes.iter().map(|change| weight_of(&change["before"])).collect();
        let expected: Vec<Option<u32>> = [None].into_iter().chain(weights.iter().copied().map(Some)).collect();
        assert_eq!(befores, expected[..weights.len()]);
        let revisions: Vec<i64> = changes.iter().map(|change| change["revision"].as_i64().unwrap()).collect();
        assert!(revisions.is_sorted() && revisions[0] > 0, "{revisions:?}");
        assert!(changes.iter().all(|change| change["applied_by"] == "runtime"), "{changes:?}");
    }
    // A deletion is a change, too, and an upstream's record.
    scene.ground.etcd.delete(OVERRIDE);
    scene.ground.etcd.put("http-services/shop/upstreams/other", "127.0.0.1:9");
    for told in [&(|| scene.receiver.taken()) as &dyn Fn() -> Vec<Value>, &|| scene.executed()] {
        let has = |told: &[Value], key: &str, after: &Value| {
            let mut changes = told.iter().flat_map(|call| call["changes"].as_array().unwrap());
            changes.any(|change| change["key"] == key && change["after"] == *after)
        };
        until(PATIENCE, "a deletion and a record", || {
            let told = told();
            let is_whole = has(&told, OVERRIDE, &Value::Null)
                && has(&told, "http-services/shop/upstreams/other", &Value::from("127.0.0.1:9"));
            if is_whole { Ok(()) } else { Err(format!("{told:?}")) }
        });
    }
}

#[test]
fn hooks_that_hang_hold_up_no_change_and_are_ended_and_tried_again() {
    let _turn = light();
    let scene = Scene::start();
    scene.receiver.set_mode(Mode::Hang);
    write(scene.file("hang"), "");
    let began = Instant::now();
    scene.put_weight(11);
    until(PATIENCE, "both hooks to hang", || scene.receiver.hung() == [None] && scene.file("pids").exists());
    for weight in 12..18 {
        let taken = scene.change_weight(weight);
        assert!(taken < AT_ONCE, "{weight}: {taken:?}");
    }
    if began.elapsed() < ATTEMPT {
        assert_eq!(scene.receiver.hung(), [None], "the first attempt goes on");
    }
    // The hooks that hung were ended after their time, with all that the command started.
    until(PATIENCE, "the end of the first attempts", || scene.receiver.hung().first().copied().flatten().is_some());
    let first = scene.receiver.hung()[0].unwrap();
    assert!((ATTEMPT - AT_ONCE..ATTEMPT * 2).contains(&first), "{first:?}");
    let pids = read_to_string(scene.file("pids")).unwrap();
    until(PATIENCE, "the end of the command's processes", || {
        let left = pids.split_whitespace().filter(|pid| is_running(pid)).collect::<Vec<_>>();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    // The next attempts succeed. What came meanwhile is one call.
    scene.receiver.set_mode(Mode::Take);
    remove_file(scene.file("hang")).unwrap();
    let weights: Vec<u32> = (11..18).collect();
    scene.until_told(&weights);
    for calls in [scene.receiver.taken(), scene.executed()] {
        let with_weights = calls.iter().map(|call| weights_of(std::slice::from_ref(call))).filter(|it| !it.is_empty());
        assert_eq!(with_weights.collect::<Vec<_>>(), [&weights[..1], &weights[1..]]);
    }
}

/// False for a process that is gone, or that nothing has waited for yet.
fn is_running(pid: &str) -> bool {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn hooks_that_fail_are_tried_four_times_and_then_the_next_changes_go_on() {
    let _turn = light();
    let scene = Scene::start();
    scene.receiver.set_mode(Mode::Refuse);
    write(scene.file("fail"), "");
    scene.put_weight(11);
    until(PATIENCE, "the first failures", || !scene.receiver.refused().is_empty() && scene.file("failed").exists());
    let taken = scene.change_weight(12);
    assert!(taken < AT_ONCE, "{taken:?}");
    // The call with 11 is lost, and the next one isn't.
    scene.until_told(&[12]);
    let attempts = scene.receiver.refused();
    let gaps: Vec<u64> = attempts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!((attempts.len(), read_calls(&scene.file("failed")).len()), (4, 4));
    assert!(gaps.iter().zip([1, 4, 15]).all(|(gap, least)| (least..least + 5).contains(gap)), "{gaps:?}");
    for option in ["--change-webhook", "--change-exec"] {
        let log = scene.ground.balancer.log("confgen");
        let line = log.lines().find(|line| line.contains("hook failed, leaving changes out") && line.contains(option));
        let line = line.unwrap_or_else(|| panic!("{option}: {log}"));
        assert!(line.contains("WARN") && line.contains("changes=1"), "{line}");
        assert!(!log.contains(TOKEN), "the log has the URL's secret");
    }
    let taken = scene.change_weight(13);
    assert!(taken < AT_ONCE, "{taken:?}");
    scene.until_told(&[12, 13]);
}
