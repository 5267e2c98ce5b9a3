//! `confgen once`: the daemon's actions without its waits, and without a second try of what failed.

use std::process::Command;

use lab::{Ground, PATIENCE, Process, light, write};

use crate::rejected_config::PROFILE;
use crate::state_dir::command_line;

#[test]
fn once_restarts_haproxy_and_goes_on_without_a_rejected_service() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]).file("conf.d/mine.cfg", PROFILE);
    let Ground { etcd, balancer, apps, .. } = build.start();
    let mut options = command_line(balancer.pid("confgen").unwrap());
    let program = options.remove(0);
    let admin = options.iter().position(|word| word == "--admin").unwrap();
    options.drain(admin..admin + 2);
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
    let once = || {
        let mut command = Command::new(&program);
        let mut process = Process::start(balancer.folder(), "once", command.arg("once").args(&options));
        (process.wait(PATIENCE).code(), process.log())
    };

    etcd.http_service("blog", "blog.test", &[&apps[0]]);
    let (code, log) = once();
    assert!(code == Some(0) && log.contains("HAProxy was restarted and runs"), "{code:?} {log}");
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);

    let worker = balancer.worker();
    let (code, log) = once();
    assert!(code == Some(0) && log.contains("HAProxy runs what the store asks for"), "{code:?} {log}");
    assert_eq!(balancer.worker(), worker, "{log}");

    etcd.put("http-services/rejected/profile", "mine");
    etcd.http_service("rejected", "rejected.test", &[&apps[0]]);
    etcd.http_service("wiki", "wiki.test", &[&apps[0]]);
    let (code, log) = once();
    assert!(code == Some(0) && log.contains("key=http-services/rejected/ "), "{code:?} {log}");
    balancer.wait_status(PATIENCE, "wiki.test", "/", 200);
    balancer.wait_status(PATIENCE, "rejected.test", "/", 404);

    write(balancer.folder().join("conf.d/mine.cfg"), "frontend mine\n    bnid :1\n");
    let (code, log) = once();
    assert!(code == Some(4) && log.contains("refuses the operator's own files"), "{code:?} {log}");
    balancer.wait_status(PATIENCE, "wiki.test", "/", 200);
}
