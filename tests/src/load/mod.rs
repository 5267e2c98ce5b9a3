//! A load generator that counts exactly.
//!
//! Workers share a fixed rate and send by the clock, whether or not answers come back in time. A request is good only
//! when its status is 200 and its body is the web app's answer to that very request; every other outcome is kept with
//! its time and what was seen. Nothing is retried but what HTTP itself says was not processed.

mod http1;
mod http2;
mod report;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::runtime;
use report::Tally;
pub use report::{Failure, Fault, Report, Upstream};

/// Two cores under full load let a timer slip by a few milliseconds; what is sent later than this was held up.
const LATE: Duration = Duration::from_millis(25);

/// How requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.1, a connection each.
    PerRequest,
    /// HTTP/1.1 over connections that are kept.
    KeepAlive,
    /// HTTP/1.1 over TLS, a connection with a whole handshake each: no session is resumed.
    PerHandshake,
    /// HTTP/2 over TLS, several requests at once over each connection.
    Http2,
}

/// What to send, how often, and what to expect.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How requests travel.
    pub kind: Kind,
    /// Where to.
    pub target: SocketAddr,
    /// The host asked for, in TLS too.
    pub host: String,
    /// The path asked for; each request gets a number of its own in its query.
    pub path: String,
    /// Requests a second, over all workers.
    pub rate: u32,
    /// How many requests may be under way at once.
    pub workers: u32,
    /// How long an answer may take.
    pub timeout: Duration,
    /// What to expect of a body.
    pub expect: Expect,
}

/// What makes a body the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The sample web app's text: its first line, the app's name, starts so, and its `url` is the one asked for.
    App(String),
    /// Anything.
    Any,
}

/// A load under way.
pub struct Running {
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    workers: Vec<JoinHandle<()>>,
}

impl Plan {
    /// 2,000 requests a second by 30 workers, answers of any web app, 10 s for each.
    pub fn new(kind: Kind, target: SocketAddr, host: &str) -> Self {
        Self {
            kind,
            target,
            host: host.to_owned(),
            path: "/".to_owned(),
            rate: 2_000,
            workers: 30,
            timeout: Duration::from_secs(10),
            expect: Expect::App(String::new()),
        }
    }

    /// Another rate.
    #[must_use]
    pub fn rate(mut self, rate: u32) -> Self {
        self.rate = rate;
        self
    }

    /// Another number of workers.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Another path.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Only answers of web apps whose names start so.
    #[must_use]
    pub fn from(mut self, name: &str) -> Self {
        self.expect = Expect::App(name.to_owned());
        self
    }

    /// Starts the load in the background; it ends with [`Running::stop`].
    pub fn start(self) -> Running {
        let started = Instant::now();
        let tally = Arc::new(Mutex::new(Tally::new(started)));
        let stop = CancellationToken::new();
        let pools = http2::pools(&self);
        let plan = Arc::new(self);
        let worker = |index: u32| Worker {
            client: Client::new(&plan, &pools, index),
            tally: Arc::clone(&tally),
            plan: Arc::clone(&plan),
            stop: stop.clone(),
            next: u64::from(index),
            started,
        };
        let workers = (0..plan.workers).map(|index| runtime::spawn(worker(index).run())).collect();
        Running { tally, stop, workers }
    }

    /// Keeps the load up for so long, and returns what came of it.
    pub fn run(self, duration: Duration) -> Report {
        let running = self.start();
        std::thread::sleep(duration);
        running.stop()
    }

    /// When the request of this number is due, after the start.
    fn due(&self, number: u64) -> Duration {
        Duration::from_nanos(number * 1_000_000_000 / u64::from(self.rate))
    }

    fn target_of(&self, number: u64) -> String {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        format!("{}{separator}n={number}", self.path)
    }
}

impl Running {
    /// What came of it so far.
    pub fn report(&self) -> Report {
        self.tally.lock().expect("the tally").report()
    }

    /// Sends nothing more, waits for what is under way, and returns what came of it all.
    pub fn stop(self) -> Report {
        self.stop.cancel();
        for worker in self.workers {
            runtime::run(worker).expect("a worker of the load");
        }
        self.tally.lock().expect("the tally").report()
    }
}

/// What answered, and how.
struct Reply {
    status: u16,
    body: Vec<u8>,
}

enum Client {
    Http1(http1::Client),
    Http2(http2::Client),
}

impl Client {
    fn new(plan: &Arc<Plan>, pools: &[Arc<http2::Pool>], index: u32) -> Self {
        match plan.kind {
            Kind::PerRequest | Kind::KeepAlive | Kind::PerHandshake => Self::Http1(http1::Client::new(plan)),
            Kind::Http2 => {
                let pool = &pools[index as usize % pools.len()];
                Self::Http2(http2::Client::new(pool))
            }
        }
    }
}

struct Worker {
    client: Client,
    tally: Arc<Mutex<Tally>>,
    plan: Arc<Plan>,
    stop: CancellationToken,
    next: u64,
    started: Instant,
}

impl Worker {
    async fn run(mut self) {
        loop {
            let due = self.started + self.plan.due(self.next);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = sleep_until(due.into()) => (),
            }
            let late = due.elapsed();
            self.with_tally(|tally| tally.sent(if late > LATE { Some(late) } else { None }));
            self.send().await;
            self.next += u64::from(self.plan.workers);
        }
        self.count_unsent();
    }

    async fn send(&mut self) {
        let start = Instant::now();
        let answered = match &mut self.client {
            Client::Http1(client) => timeout(self.plan.timeout, client.exchange(self.next, &self.tally)).await,
            Client::Http2(client) => timeout(self.plan.timeout, client.exchange(self.next, &self.tally)).await,
        };
        let nothing = |_| Err(Failure::new(Fault::Timeout, format!("no whole answer within {:?}", self.plan.timeout)));
        let judged = answered.unwrap_or_else(nothing).and_then(|reply| judge(&self.plan, self.next, &reply));
        self.with_tally(|tally| tally.done(start, judged));
    }

    /// Requests that were due before the stop, but that this worker had no time for.
    fn count_unsent(&self) {
        let mut missed = 0;
        let mut number = self.next;
        while self.plan.due(number) + LATE < self.started.elapsed() {
            missed += 1;
            number += u64::from(self.plan.workers);
        }
        self.with_tally(|tally| tally.unsent(missed));
    }

    fn with_tally(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().expect("the tally"));
    }
}

/// Whether this is the answer to that request, and by which upstream.
fn judge(plan: &Plan, number: u64, reply: &Reply) -> Result<String, Failure> {
    let body = String::from_utf8_lossy(&reply.body);
    let shown = || body.lines().take(5).collect::<Vec<_>>().join(" | ");
    if reply.status != 200 {
        return Err(Failure::new(Fault::WrongStatus, format!("{}: {}", reply.status, shown())));
    }
    let name = body.lines().next().unwrap_or_default();
    match &plan.expect {
        Expect::Any => Ok(name.to_owned()),
        Expect::App(start) => {
            let wanted = plan.target_of(number);
            let url = body.lines().find_map(|line| line.strip_prefix("url: "));
            // HTTP/2 has its URL whole where the balancer passes it on so.
            let right = url.is_some_and(|url| url.ends_with(&wanted));
            if right && !name.is_empty() && name.starts_with(start.as_str()) {
                Ok(name.to_owned())
            } else {
                Err(Failure::new(Fault::WrongBody, format!("to {wanted}: {}", shown())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan::new(Kind::KeepAlive, SocketAddr::from(([127, 0, 0, 1], 1)), "shop.test").from("shop")
    }

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn only_the_apps_own_answer_to_that_request_is_good() {
        assert_eq!(judge(&plan(), 7, &reply(200, "shop-1\nurl: /?n=7\n")).unwrap(), "shop-1");
        for (status, body, fault) in [
            (503, "shop-1\nurl: /?n=7\n", Fault::WrongStatus),
            (200, "shop-1\nurl: /?n=8\n", Fault::WrongBody),
            (200, "blog-1\nurl: /?n=7\n", Fault::WrongBody),
            (200, "", Fault::WrongBody),
        ] {
            assert_eq!(judge(&plan(), 7, &reply(status, body)).unwrap_err().fault, fault, "{status} {body}");
        }
    }

    #[test]
    fn the_rate_is_shared_by_numbers() {
        assert_eq!(plan().due(0), Duration::ZERO);
        assert_eq!(plan().due(2_000), Duration::from_secs(1));
    }
}
