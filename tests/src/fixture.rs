//! The usual scene: a store, a balancer, and one service with three announced apps.

use std::time::Duration;

use crate::load::{Kind, Plan, Report, Running};
use crate::{App, Balancer, Certificate, Etcd, Setup};

/// Longer than any change may take to be served: a restart waits for the one before, and checks must rise.
pub(crate) const SERVED: Duration = Duration::from_secs(30);

/// etcd, supervisord with HAProxy under handover and confgen, and `shop.test` served by three announced apps.
pub struct Ground {
    /// The apps, announced as `shop-1`, `shop-2`, `shop-3`.
    pub apps: Vec<App>,
    /// The balancer.
    pub balancer: Balancer,
    /// The store; the last to go.
    pub etcd: Etcd,
}

impl Ground {
    /// The host that is served.
    pub const HOST: &str = "shop.test";

    /// Sets the scene, and waits until all three apps are served over HTTP and HTTPS.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with more flags for confgen.
    pub fn with(flags: &[&str]) -> Self {
        let etcd = Etcd::start();
        let setup = Setup::new();
        Certificate::of(&[Self::HOST]).write(setup.folder().join("certs/shop.pem"));
        let apps = (1..=3).map(|number| announced(&etcd, number)).collect();
        let balancer = setup.confgen(&etcd).flags(flags).start();
        let ground = Self { apps, balancer, etcd };
        ground.wait_served(3);
        ground
    }

    /// Waits until HAProxy runs what the file says and finds so many upstreams of the service up.
    #[track_caller]
    pub fn wait_served(&self, upstreams: usize) {
        self.balancer.wait_servers(SERVED, "http-shop", upstreams);
        self.balancer.wait_in_sync(SERVED);
    }

    /// Starts one more announced app, `shop-<number>`, and waits until it answers by itself.
    pub fn arrive(&mut self, number: usize) {
        self.apps.push(announced(&self.etcd, number));
    }

    /// Starts a load on the service.
    pub fn load(&self, kind: Kind, rate: u32) -> Running {
        let secure = matches!(kind, Kind::Http2 | Kind::PerHandshake);
        let target = if secure { self.balancer.https() } else { self.balancer.http() };
        Plan::new(kind, target, Self::HOST).rate(rate).from("shop-").start()
    }

    /// Keeps loads of these kinds up while `act` runs, and returns what came of each.
    pub fn under_load(&mut self, kinds: &[Kind], rate: u32, act: impl FnOnce(&mut Self)) -> Vec<(Kind, Report)> {
        let loads: Vec<(Kind, Running)> = kinds.iter().map(|kind| (*kind, self.load(*kind, rate))).collect();
        act(self);
        let reports: Vec<_> = loads.into_iter().map(|(kind, load)| (kind, load.stop())).collect();
        for (kind, report) in &reports {
            println!("{kind:?}: {report}");
        }
        reports
    }

    /// Waits until one HAProxy is left: old ones end after their last request.
    #[track_caller]
    pub fn wait_one_haproxy(&self, deadline: Duration) {
        self.balancer.wait_one_haproxy(deadline);
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

fn announced(etcd: &Etcd, number: usize) -> App {
    App::announced(&format!("shop-{number}"), etcd, &["--service", "shop", "--domain", Ground::HOST])
}
