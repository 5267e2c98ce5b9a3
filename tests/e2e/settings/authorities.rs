//! `--ca-dir`: its files change, break, go and come, and touch nobody but those that name them.

use std::fs::{read_to_string, remove_file};

use lab::http::Request;
use lab::{Authority, Balancer, Etcd, PATIENCE, Setup, Speaker, Speakers, light, until, write};

#[test]
fn a_changed_ca_file_is_followed_and_a_broken_one_stops_no_service() {
    let _turn = light();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (of_old, of_new) = (old.issue(&["old.test", "late.test"]), new.issue(&["old.test"]));
    let speakers = Speakers::start(&[Speaker::new("old", "").tls(&of_old), Speaker::new("new", "").tls(&of_new)]);
    let etcd = Etcd::start();
    for (service, file) in [("old", "changing.pem"), ("late", "late.pem")] {
        etcd.put(&format!("http-services/{service}/domain"), format!("{service}.test"));
        etcd.put(&format!("http-services/{service}/tls"), "reencrypt");
        etcd.put(&format!("http-services/{service}/verify"), file);
        etcd.put(&format!("http-services/{service}/check"), "off");
        etcd.put(&format!("http-services/{service}/upstreams/1"), speakers.at("old").to_string());
    }
    let setup = Setup::new();
    let ca = setup.folder().join("ca/changing.pem");
    write(&ca, old.pem());
    let balancer = setup.confgen(&etcd).start();
    let answered = |service: &str, wanted: Result<&str, u16>| {
        until(PATIENCE, &format!("{service}: {wanted:?}"), || {
            let host = format!("{service}.test");
            let response = Request::get(&host, "/").tls(&host).send(balancer.https()).map_err(|e| e.to_string())?;
            let seen = if response.status == 200 { Ok(response.app()) } else { Err(response.status) };
            if seen == wanted { Ok(()) } else { Err(format!("{response:?}")) }
        });
    };
    answered("old", Ok("old"));
    answered("late", Err(503));
    balancer.wait_in_sync(PATIENCE);

    // A file that comes: its service, and no other, was held back for it.
    write(balancer.folder().join("ca/late.pem"), old.pem());
    answered("late", Ok("old"));
    answered("old", Ok("old"));

    // Another content is taken in, by a restart.
    write(&ca, new.pem());
    answered("old", Err(503));
    etcd.put("http-services/old/upstreams/1", speakers.at("new").to_string());
    answered("old", Ok("new"));

    // A broken file, and none: the last good content serves, over a restart too.
    for broken in [true, false] {
        if broken {
            write(&ca, "no certificate\n");
        } else {
            remove_file(&ca).unwrap();
        }
        until(PATIENCE, "the file to be refused", || {
            let list = quarantined(&balancer);
            let reason = if broken { "no certificate or crl found" } else { "the file is gone" };
            if list.contains(reason) && list.contains("last good content") { Ok(()) } else { Err(list) }
        });
        balancer.wait_in_sync(PATIENCE);
        balancer.restart();
        answered("old", Ok("new"));
        answered("late", Ok("old"));
    }
    assert!(!quarantined(&balancer).contains("late"));

    // Nobody names it any more: the copy goes.
    let copy = balancer.folder().join("state/ca/changing.pem");
    assert_eq!(read_to_string(&copy).unwrap(), new.pem());
    etcd.put("http-services/old/verify", "late.pem");
    answered("old", Err(503));
    balancer.wait_in_sync(PATIENCE);
    write(balancer.folder().join("ca/another.pem"), new.pem());
    until(PATIENCE, "the copy to go", || !copy.exists());
}

fn quarantined(balancer: &Balancer) -> String {
    balancer.asked("/api/v1/quarantine").map(|response| response.body).unwrap_or_default()
}
