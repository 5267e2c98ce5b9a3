//! `confgen once`: the daemon's actions without its waits, and without a second try of what failed.

use std::process::Command;
use std::time::Duration;

use lab::{App, Etcd, Process, Setup, light, write};

use crate::rejected_config::PROFILE;
use crate::state_dir::command_line;

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn once_restarts_haproxy_and_goes_on_without_a_rejected_service() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    let setup = Setup::new().confgen(&etcd);
    write(setup.folder().join("conf.d/mine.cfg"), PROFILE);
    let balancer = setup.start();
    balancer.wait_settled(DEADLINE);
    let mut options = command_line(balancer.pid("confgen").unwrap());
    let program = options.remove(0);
    let admin = options.iter().position(|word| word == "--admin").unwrap();
    options.drain(admin..admin + 2);
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
    let once = || {
        let mut command = Command::new(&program);
        let mut process = Process::start(balancer.folder(), "once", command.arg("once").args(&options));
        (process.wait(DEADLINE).code(), process.log())
    };

    etcd.http_service("blog", "blog.test", &[&app]);
    let (code, log) = once();
    assert!(code == Some(0) && log.contains("HAProxy was restarted and runs"), "{code:?} {log}");
    balancer.wait_status(DEADLINE, "blog.test", "/", 200);

    let worker = balancer.worker();
    let (code, log) = once();
    assert!(code == Some(0) && log.contains("HAProxy runs what the store asks for"), "{code:?} {log}");
    assert_eq!(balancer.worker(), worker, "{log}");

    etcd.put("http-services/rejected/profile", "mine");
    etcd.http_service("rejected", "rejected.test", &[&app]);
    etcd.http_service("wiki", "wiki.test", &[&app]);
    let (code, log) = once();
    assert!(code == Some(0) && log.contains("key=http-services/rejected/ "), "{code:?} {log}");
    balancer.wait_status(DEADLINE, "wiki.test", "/", 200);
    balancer.wait_status(DEADLINE, "rejected.test", "/", 404);

    write(balancer.folder().join("conf.d/mine.cfg"), "frontend mine\n    bnid :1\n");
    let (code, log) = once();
    assert!(code == Some(4) && log.contains("refuses the operator's own files"), "{code:?} {log}");
    balancer.wait_status(DEADLINE, "wiki.test", "/", 200);
}
