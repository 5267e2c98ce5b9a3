//! Passwords of the stats page that are guessed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::read_to_string;
use std::process::Command;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{Balancer, Ground, cpu_seconds, light, long, until};

/// HAProxy counts wrong passwords of the last minute.
const FORGOTTEN: Duration = Duration::from_secs(150);

/// Wrong passwords that HAProxy looks at.
const ALLOWED: usize = 10;

/// HAProxy hashes two wrong passwords of `--stats-password-file` in 200 ms.
const PACE: Duration = Duration::from_millis(250);

/// `admin:wrong`.
const WRONG: &str = "Basic YWRtaW46d3Jvbmc=";

/// All of 127.0.0.0/8 is this machine's.
const GUESSER: &str = "127.0.0.5";
const PROMETHEUS: &str = "127.0.0.6";
const NEWCOMER: &str = "127.0.0.7";

/// The status of an answer of the stats port, and the time that it took.
fn asked(balancer: &Balancer, from: &str, password: Option<&str>) -> (u16, Duration) {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30", "--interface", from]);
    if let Some(password) = password {
        curl.args(["--user", &format!("admin:{password}")]);
    }
    let start = Instant::now();
    let output = curl.arg(format!("http://{}/metrics", balancer.stats())).output().unwrap();
    (String::from_utf8_lossy(&output.stdout).parse().unwrap_or_default(), start.elapsed())
}

/// One wrong password more than allowed: HAProxy answers the last one late, and doesn't look at it.
fn guess(balancer: &Balancer, pause: Duration) {
    for number in 1..=ALLOWED {
        sleep(pause);
        assert_eq!(asked(balancer, GUESSER, Some(&format!("wrong{number}"))).0, 401, "wrong password {number}");
    }
    let (status, took) = asked(balancer, GUESSER, Some("wrong"));
    assert!(status == 429 && took > Duration::from_secs(5), "{status} after {took:?}");
    assert_eq!(asked(balancer, GUESSER, None).0, 401, "a browser that hasn't asked for the password yet");
}

#[test]
fn guesses_are_few_and_the_right_password_is_let_in() {
    let _turn = long();
    let ground = Ground::build().http("shop", "shop.test", &["shop"]).start();
    let made = &ground.balancer;
    let password = read_to_string(made.folder().join("state/stats-password")).unwrap();
    guess(made, Duration::ZERO);
    for from in [PROMETHEUS, GUESSER] {
        assert_eq!(asked(made, from, Some(password.trim())).0, 200, "the right one, from {from}");
    }
    assert!(!made.file().contains("$6$") && !made.file().contains(password.trim()), "{}", made.file());

    let build = Ground::build().http("shop", "shop.test", &["shop"]).file("password", "secret\n");
    let file = build.setup.folder().join("password").display().to_string();
    let ground = build.flags(&["--stats-password-file", &file]).start();
    let given = &ground.balancer;
    assert!(given.file().contains("user admin password $6$"), "{}", given.file());
    let worker = given.worker();
    let before = cpu_seconds(worker);
    guess(given, PACE);
    let hashed = cpu_seconds(worker) - before;
    assert_eq!(asked(given, PROMETHEUS, Some("secret")).0, 200, "the right one, from elsewhere");

    // Several times as many, none of which HAProxy looks at, right or wrong.
    let before = cpu_seconds(worker);
    scope(|threads| {
        let guesses = (0..4 * ALLOWED).map(|_| threads.spawn(|| asked(given, GUESSER, Some("secret")).0));
        for guess in guesses.collect::<Vec<_>>() {
            assert_eq!(guess.join().unwrap(), 429);
        }
    });
    let refused = cpu_seconds(worker) - before;
    println!("{ALLOWED} wrong passwords took HAProxy {hashed:.4} s, {} more {refused:.4} s", 4 * ALLOWED);
    assert!(refused < 2.0 * hashed, "{refused} s for four times what took {hashed} s");

    let start = Instant::now();
    until(FORGOTTEN, "the address to be let in again", || {
        let (status, _) = asked(given, GUESSER, Some("secret"));
        if status == 200 { Ok(()) } else { Err(format!("{status} after {:?}", start.elapsed())) }
    });
}

#[test]
fn wrong_passwords_of_many_addresses_are_hashed_at_a_bounded_pace() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop"]).file("password", "secret\n");
    let file = build.setup.folder().join("password").display().to_string();
    let ground = build.flags(&["--stats-password-file", &file]).start();
    let balancer = &ground.balancer;
    assert_eq!(asked(balancer, PROMETHEUS, Some("secret")).0, 200);

    let start = Instant::now();
    let hashed: Vec<Duration> = scope(|threads| {
        let guesses = (1..=250).map(|number| {
            let request = Request::get("stats.test", "/metrics").header("Authorization", WRONG);
            let request = request.from(&format!("127.0.1.{number}"));
            // The answer to the others is late, and some come after the time limit of `send`.
            threads.spawn(move || {
                let answer = request.send(balancer.stats()).ok().filter(|answer| answer.status != 429)?;
                assert_eq!(answer.status, 401);
                Some(start.elapsed())
            })
        });
        let guesses: Vec<_> = guesses.collect();
        assert_eq!(asked(balancer, PROMETHEUS, Some("secret")).0, 200, "an address that has had the right one");
        guesses.into_iter().filter_map(|guess| guess.join().unwrap()).collect()
    });
    let last = hashed.iter().max().copied().unwrap_or_default().as_secs_f64();
    println!("{} of 250 wrong passwords were hashed, the last one after {last:.2} s", hashed.len());
    // HAProxy hashes two within 200 ms. Each further thread may begin one before the first two are counted.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let most = (1 + threads) as f64 * (last / 0.2 + 2.0);
    assert!(hashed.len() >= 2 && hashed.len() as f64 <= most, "{} hashed within {last:.2} s", hashed.len());

    let (status, took) = asked(balancer, NEWCOMER, Some("secret"));
    assert!(
        status == 200 && took < Duration::from_secs(5),
        "the next one, once the flood is over: {status} after {took:?}"
    );
}
