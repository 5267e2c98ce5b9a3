//! A real browser: Debian's Chromium without a window, driven over WebDriver by its chromedriver.
//!
//! It asks over plain HTTP, because the crates for WebDriver don't fit: `fantoccini` needs a crate under the MPL, `thirtyfour` has
//! serde_json keep the order of each object's names, in the programs under test too.

mod devtools;
mod keyboard;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::{Process, Scratch, free_address, until, write};

pub use devtools::{Look, Node};

/// The deadline of an answer. Chromium starts within 2 s, and later on a machine that is busy with 60 tests.
const ANSWERS: Duration = Duration::from_secs(60);

/// The path of Debian's package. The file is a script that starts the real program.
const CHROMIUM: &str = "/usr/bin/chromium";

/// Chromium's options besides its profile.
const FLAGS: [&str; 10] = [
    "--headless=new",
    // The tests run as root, for whom there is no sandbox.
    "--no-sandbox",
    "--disable-gpu",
    // A container's /dev/shm has 64 MiB.
    "--disable-dev-shm-usage",
    // Nothing asks for anything outside of this machine.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
];

/// The browser of all tests that wait for it or have it.
static SHARED: Mutex<Weak<Mutex<Option<Browser>>>> = Mutex::new(Weak::new());

/// A running browser with one tab. Dropping it ends it.
pub struct Browser {
    driver: SocketAddr,
    session: String,
    _process: Process,
    _folder: Scratch,
}

/// A test's claim on the browser that all tests share. The browser ends with the last claim.
pub struct Claim(Arc<Mutex<Option<Browser>>>);

/// A test's turn with the shared browser, whose tab is as new.
pub struct Tab<'a>(MutexGuard<'a, Option<Browser>>);

impl Claim {
    /// Claims the browser. This starts nothing.
    pub fn new() -> Self {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let browser = shared.upgrade().unwrap_or_default();
        *shared = Arc::downgrade(&browser);
        Self(browser)
    }

    /// Waits until no other test has the browser. Take the machine's turn after this, so that no test holds a share of it while it
    /// waits here.
    pub fn wait(&self) -> Tab<'_> {
        Tab(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::new()
    }
}

impl Tab<'_> {
    /// Starts the browser if no test before has, and forgets what that test saw.
    pub fn start(&mut self) {
        match self.0.as_ref() {
            Some(browser) => browser.reset(),
            None => *self.0 = Some(Browser::start()),
        }
    }
}

impl Deref for Tab<'_> {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        self.0.as_ref().expect("a tab that was started")
    }
}

impl Drop for Tab<'_> {
    fn drop(&mut self) {
        // A test that failed may have left anything behind: the next one starts anew.
        if std::thread::panicking() {
            *self.0 = None;
        }
    }
}

impl Browser {
    /// Starts chromedriver and Chromium, with a profile of its own.
    ///
    /// # Panics
    /// If one of them doesn't start: `make deps` installs both.
    pub fn start() -> Self {
        let (folder, driver) = (Scratch::new(), free_address());
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={}", driver.port()));
        // Both write below their user's home and below /tmp otherwise.
        for variable in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env(variable, folder.path());
        }
        let process = Process::start(&folder, "chromedriver", &mut command);
        until(ANSWERS, "chromedriver", || ask(driver, "GET", "/status", &Value::Null));
        let arguments: Vec<String> = FLAGS
            .iter()
            .map(ToString::to_string)
            .chain([format!("--user-data-dir={}", folder.join("profile").display())])
            .collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let opened = ask(driver, "POST", "/session", &wanted).unwrap_or_else(|error| panic!("no browser: {error}"));
        let session = opened["sessionId"].as_str().expect("a session").to_owned();
        let browser = Self { driver, session, _process: process, _folder: folder };
        browser.reset();
        browser
    }

    /// Opens a page, and waits until it is loaded.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.ask("POST", "url", &json!({ "url": url }));
    }

    /// The URL of the page.
    #[track_caller]
    pub fn url(&self) -> String {
        self.ask("GET", "url", &Value::Null).as_str().expect("a URL").to_owned()
    }

    /// Goes back, as the button does.
    #[track_caller]
    pub fn go_back(&self) {
        self.ask("POST", "back", &json!({}));
    }

    /// Runs the body of a function in the page, and returns what it returns.
    ///
    /// # Panics
    /// If it throws.
    #[track_caller]
    pub fn run(&self, body: &str) -> Value {
        self.ask("POST", "execute/sync", &json!({"script": body, "args": []}))
    }

    /// Waits until this expression is true in the page.
    ///
    /// # Panics
    /// If it isn't in time, with what the page says then.
    #[track_caller]
    pub fn wait(&self, deadline: Duration, expression: &str) {
        // The page may be about to change, and then there is no document.
        let script = format!("return !document.body ? 'no page' : ({expression}) ? true : document.body.innerText");
        until(deadline, expression, || match self.run(&script) {
            Value::Bool(true) => Ok(()),
            Value::String(text) => Err(text),
            other => Err(other.to_string()),
        });
    }

    /// The browser's log since the last call: errors of scripts, breaches of the page's policy, failed requests.
    #[track_caller]
    pub fn take_complaints(&self) -> Vec<String> {
        let log = self.ask("POST", "se/log", &json!({"type": "browser"}));
        let entries = log.as_array().expect("a log");
        entries.iter().map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect()
    }

    /// Writes what the window shows into a file of PNG.
    #[track_caller]
    pub fn save_picture(&self, path: &Path) {
        let picture = self.ask("GET", "screenshot", &Value::Null);
        let bytes = BASE64_STANDARD.decode(picture.as_str().expect("a picture")).expect("base64");
        write(path, bytes);
    }

    /// Forgets the page and how it was looked at.
    fn reset(&self) {
        self.set_script(true);
        self.open("about:blank");
        self.look(Look::WIDE);
        self.take_complaints();
    }

    /// A command of this session, and its answer's value.
    #[track_caller]
    fn ask(&self, method: &str, command: &str, body: &Value) -> Value {
        let target = format!("/session/{}/{command}", self.session);
        ask(self.driver, method, &target, body).unwrap_or_else(|error| panic!("{command} {body}: {error}"))
    }
}

/// Sends a command to the driver. The error is the driver's own words.
fn ask(driver: SocketAddr, method: &str, target: &str, body: &Value) -> Result<Value, String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, answer) = exchange(driver, method, target, &body).map_err(|error| error.to_string())?;
    let mut json: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    if status == "200" { Ok(json["value"].take()) } else { Err(json["value"]["message"].to_string()) }
}

/// Sends a request and reads the answer by its length, because chromedriver leaves the connection open after `Connection: close`.
fn exchange(driver: SocketAddr, method: &str, target: &str, body: &str) -> io::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(driver)?;
    stream.set_read_timeout(Some(ANSWERS))?;
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: {driver}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    let mut answer = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while answer.read_line(&mut line)? > 0 && line != "\r\n" {
        head += &line.to_ascii_lowercase();
        line.clear();
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    answer.read_exact(&mut body)?;
    Ok((head.split(' ').nth(1).unwrap_or_default().to_owned(), body))
}
