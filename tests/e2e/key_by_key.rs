//! A service that is written key by key, as etcdctl and other tools do: how long its clients are refused meanwhile.

use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{Etcd, Front, PATIENCE, Setup, light, until};

/// Longer than a wait for [`INTERVAL`], which has to show.
const DEADLINE: Duration = PATIENCE.saturating_mul(2);

/// So long that a restart which had to wait for it would show on a busy machine, too.
const INTERVAL: Duration = Duration::from_secs(30);

#[test]
fn a_service_that_is_written_anew_key_by_key_waits_for_no_interval() {
    let _turn = light();
    let etcd = Etcd::start();
    let (vault, other) = (Front::new("vault", "vault.test"), Front::new("other", "other.test"));
    // Another service passes TLS through: the port's frontend is the same throughout.
    for (name, address) in [("vault", vault.address), ("other", other.address)] {
        let key = |key: &str| format!("http-services/{name}/{key}");
        let keys =
            [("domain", format!("{name}.test")), ("tls", "passthrough".into()), ("upstreams/1", address.to_string())];
        etcd.put_all(keys.map(|(name, value)| (key(name), value.into_bytes())));
    }
    let interval = format!("{}s", INTERVAL.as_secs());
    let balancer = Setup::new().confgen(&etcd).flags(&["--restart-interval", &interval]).start();
    let ask = || {
        let request = Request::get("vault.test", "/").tls("vault.test");
        request.send(balancer.https()).is_ok_and(|answer| answer.app() == "vault")
    };
    until(DEADLINE, "the vault", ask);
    balancer.wait_settled(DEADLINE);

    etcd.delete_all("http-services/vault/");
    until(DEADLINE, "it to be gone", || !ask());
    let (began, restarts) = (Instant::now(), balancer.restarts());
    etcd.put("http-services/vault/domain", "vault.test");
    // Without `tls` it is another kind of service, which takes a restart: the slowest of scripts.
    until(DEADLINE, "the restart for the first key", || balancer.restarts() > restarts);
    etcd.put("http-services/vault/tls", "passthrough");
    etcd.put("http-services/vault/upstreams/1", vault.address.to_string());
    until(DEADLINE, "the vault again", ask);
    assert!(
        began.elapsed() < INTERVAL,
        "it waited for a restart's turn: {:?}\n{}",
        began.elapsed(),
        balancer.log("confgen")
    );
}
