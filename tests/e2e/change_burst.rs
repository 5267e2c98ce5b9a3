//! Changes that pour in faster than HAProxy restarts: none is lost, the last one wins.

use std::thread::sleep;
use std::time::Duration;

use lab::{App, Ground, PATIENCE, light, until};

const BURSTS: usize = 10;
const CHANGES: usize = 20;
const APART: Duration = Duration::from_millis(10);

#[test]
fn haproxy_runs_what_the_file_says_after_every_burst() {
    let _turn = light();
    let Ground { etcd, balancer, mut apps, .. } = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    apps.push(App::alone("shop-2"));

    for burst in 0..BURSTS {
        let mut last_change = 0;
        for change in 0..CHANGES {
            // Changes that a restart alone can bring: a new domain each, and at the end the other app.
            etcd.put("http-services/shop/domain", format!("shop.test b{burst}-{change}.test"));
            last_change =
                etcd.put("http-services/shop/upstreams/shop-1", apps[(burst + change) % 2].address.to_string());
            sleep(APART);
        }
        let wanted = &apps[(burst + CHANGES - 1) % 2];
        // Every second change wants the same app. The file could have the one before last.
        balancer.wait_applied(PATIENCE, last_change);
        until(PATIENCE, &format!("burst {burst} to be in the file"), || {
            balancer.file().contains(&format!("server shop-1 {}", wanted.address))
        });
        balancer.wait_in_sync(PATIENCE);
        let last = format!("b{burst}-{}.test", CHANGES - 1);
        let answer = balancer.wait_status(PATIENCE, &last, "/", 200);
        assert_eq!(answer.app(), wanted.name, "burst {burst}: HAProxy sends to an upstream of before");
        let gone = format!("b{burst}-{}.test", CHANGES - 2);
        balancer.wait_status(PATIENCE, &gone, "/", 404);
    }
}
