//! More upstreams than HAProxy can open files for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use lab::{App, Balancer, Etcd, PATIENCE, Scratch, Setup, bin, light, until, write};

/// HAProxy starts to check 900 upstreams.
const SERVED: Duration = PATIENCE.saturating_mul(2);

/// The most files that HAProxy can have open here. A quarter is for connections, 256 are for everything else.
const FILES: usize = 1_024;
/// Of the 512 that are left, smaller services have one or two, and the bound goes in steps.
const EACH: usize = 510;

/// HAProxy without room for 900 checks ends at its start: `Cannot raise FD limit`.
const MANY: usize = 900;

/// The servers of the large service, up or down.
fn wait_count(balancer: &Balancer, count: usize) {
    until(SERVED, &format!("{count} servers"), || {
        let answer = balancer.ask("show servers state http-huge");
        let there = answer.lines().filter(|line| line.contains(" http-huge ")).count();
        if there == count { Ok(()) } else { Err(there.to_string()) }
    });
}

#[test]
fn the_largest_service_is_cut_to_what_haproxy_has_room_for() {
    let _turn = light();
    let scratch = Scratch::new();
    let program = scratch.path().join("haproxy");
    let script = "#!/bin/sh\nexec setpriv --bounding-set=-sys_resource prlimit";
    write(&program, format!("{script} --nofile={FILES}:{FILES} haproxy \"$@\"\n"));
    assert!(Command::new("chmod").arg("+x").arg(&program).status().unwrap().success());

    let (etcd, shop) = (Etcd::start(), App::alone("shop-1"));
    etcd.http_service("shop", "shop.test", &[&shop]);
    let balancer = Setup::new().haproxy(&program).confgen(&etcd).start();
    balancer.wait_status(SERVED, "shop.test", "/", 200);

    let record = |number: usize| {
        let address = format!("{}:{}", shop.address.ip(), 20_000 + number);
        (format!("http-services/huge/upstreams/u{number:04}"), address.into_bytes())
    };
    etcd.put("http-services/huge/domain", "huge.test");
    etcd.put_all((0..MANY).map(record));
    wait_count(&balancer, EACH);
    let missing = MANY - EACH;
    until(SERVED, "the quarantine to name what has no room", || {
        let body = balancer.asked("/api/v1/quarantine").unwrap().body;
        let count = body.matches("this service has more than the 510 that smaller").count();
        if count == missing && !body.contains("services/shop") { Ok(()) } else { Err(format!("{count} of {missing}")) }
    });

    // A restart takes place in spite of that, and brings a new service.
    let restarts = balancer.restarts();
    etcd.http_service("new", "new.test", &[&shop]);
    balancer.wait_status(SERVED, "new.test", "/", 200);
    assert!(balancer.restarts() > restarts);
    wait_count(&balancer, EACH);

    let explained = Command::new(bin("discoverctl"))
        .args(["explain", "huge/u0899", "--endpoints", &etcd.endpoints()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(said.contains("raise LimitNOFILE"), "{said}");

    // With fewer upstreams all have room.
    (EACH - 5..MANY).for_each(|number| etcd.delete(&record(number).0));
    until(SERVED, "an empty quarantine", || {
        let body = balancer.asked("/api/v1/quarantine").unwrap().body;
        if body.contains("huge") { Err(body.chars().take(300).collect::<String>()) } else { Ok(()) }
    });
    balancer.wait_in_sync(SERVED);
}
