//! The whole thing on one machine: etcd, HAProxy with confgen under supervisord, seven announced apps in four services, and a
//! walk-through.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(clippy::expect_used, reason = "it may die with the place and the cause")]

use std::time::Duration;

use lab::demo::Demo;
use lab::runtime;
use tokio::signal::ctrl_c;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The demo looks this often for apps that have ended.
const TENDED: Duration = Duration::from_millis(500);

fn main() {
    println!("starting etcd, HAProxy, confgen and seven announced apps …");
    let mut demo = Demo::start();
    print!("{}", demo.guide());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    runtime::spawn(async move {
        let _guard = stopped.drop_guard();
        let _ = ctrl_c().await;
    });
    let is_over = || {
        let stop = stop.clone();
        runtime::run(async move { timeout(TENDED, stop.cancelled()).await }).is_ok()
    };
    while !is_over() {
        demo.tend();
    }
    println!("\nRequests of the demo itself:\n{}", demo.finish());
}
