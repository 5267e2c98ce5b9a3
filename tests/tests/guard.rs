//! The removal guard: a store that loses its keys takes nobody down; whoever is asked to go, goes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{App, Balancer, Etcd, Process, Scratch, bin, heavy, until};

/// What is kept wrongly is kept for five minutes: whatever goes within this was let go.
const DEADLINE: Duration = Duration::from_secs(30);
/// The smallest that etcd grants is 2 s.
const TTL: Duration = Duration::from_secs(2);
/// HAProxy finds a dead server down by then: three checks, 2 s apart, each with 1 s.
const CHECKED: Duration = Duration::from_secs(15);

/// Three apps, each with an announcer beside it, and a balancer that serves them.
struct Crowd {
    etcd: Etcd,
    balancer: Balancer,
    apps: Vec<App>,
    announcers: Vec<Process>,
    _folder: Scratch,
}

fn crowd() -> Crowd {
    let (etcd, folder) = (Etcd::start(), Scratch::new());
    let apps: Vec<App> = ["shop-1", "shop-2", "shop-3"].map(App::alone).into();
    let announce = |app: &App| {
        let mut command = Command::new(bin("announcer"));
        command.args(["--endpoints", &etcd.endpoints(), "--service", "shop", "--domain", "shop.test", "--ttl", "2s"]);
        command.args(["--drain", "0s", "--id", &app.name, "--upstream", &app.address.to_string()]);
        Process::start(&folder, &format!("announcer-{}", app.name), &mut command)
    };
    let announcers = apps.iter().map(announce).collect();
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(DEADLINE, "http-shop", 3);
    Crowd { etcd, balancer, apps, announcers, _folder: folder }
}

impl Crowd {
    fn keys(&self) -> usize {
        self.etcd.keys("http-services/shop/upstreams/").len()
    }

    /// The three have lost their keys, and are served for long after. Their leases end moments apart: the first may go,
    /// and come back when the others show that it is a crowd.
    fn assert_kept(&self) {
        until(DEADLINE, "the keys to go", || self.keys() == 0);
        let kept = || self.balancer.log("confgen").contains("kept until their checks fail");
        until(TTL, "the crowd to be seen", kept);
        self.balancer.wait_servers(TTL, "http-shop", 3);
        let until = Instant::now() + 2 * TTL;
        while Instant::now() < until {
            assert_eq!(self.balancer.servers_up("http-shop").len(), 3);
            sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn announcers_that_die_together_take_no_app_with_them() {
    let _turn = heavy();
    let mut crowd = crowd();
    crowd.announcers.iter_mut().for_each(Process::kill);
    crowd.assert_kept();
    // One that really dies goes; one that is announced again is no longer kept, and may go politely.
    crowd.apps[0].kill();
    crowd.balancer.wait_servers(CHECKED, "http-shop", 2);
    until(CHECKED, "the dead one to leave the file", || !crowd.balancer.file().contains("server shop-1 "));
    let key = "http-services/shop/upstreams/shop-2";
    crowd.etcd.put(key, crowd.apps[1].address.to_string());
    crowd.etcd.delete(key);
    crowd.balancer.wait_servers(DEADLINE, "http-shop", 1);
}

#[test]
fn whoever_is_asked_to_go_goes_at_once() {
    let _turn = heavy();
    // All of them politely.
    let mut crowd = crowd();
    for announcer in &mut crowd.announcers {
        announcer.signal(lab::Signal::SIGTERM);
    }
    crowd.balancer.wait_servers(DEADLINE, "http-shop", 0);
    drop(crowd);
    // All of them by somebody's hand, while their leases live.
    let crowd = self::crowd();
    for app in &crowd.apps {
        crowd.etcd.delete(&format!("http-services/shop/upstreams/{}", app.name));
    }
    crowd.balancer.wait_servers(DEADLINE, "http-shop", 0);
    assert!(!crowd.balancer.log("confgen").contains("kept until"), "{}", crowd.balancer.log("confgen"));
}
