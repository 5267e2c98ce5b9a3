//! What most tests stand on: a store, apps, and a balancer that serves them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::load::{Kind, Plan, Report, Running};
use crate::{App, Balancer, Certificate, Etcd, PATIENCE, Setup, free_address, write};

/// etcd, supervisord with HAProxy under handover and confgen, and apps.
pub struct Ground {
    /// The apps, in the order in which they were named.
    pub apps: Vec<App>,
    /// The balancer.
    pub balancer: Balancer,
    /// Where the TCP services are, by their names.
    pub tcp: BTreeMap<String, SocketAddr>,
    /// The store; the last to go.
    pub etcd: Etcd,
}

/// A [`Ground`] in the making. The store and the apps run already, and the balancer doesn't.
pub struct Builder {
    /// The store, for what the builder has no word for.
    pub etcd: Etcd,
    /// The balancer's folder and ports, for what the builder has no word for.
    pub setup: Setup,
    /// The apps so far, in the order in which they were named.
    pub apps: Vec<App>,
    tcp: BTreeMap<String, SocketAddr>,
    /// How many servers each section has once all is served.
    served: BTreeMap<String, usize>,
}

impl Builder {
    /// An HTTP service with these apps, whose keys are written by hand. An app that isn't there yet is started.
    #[must_use]
    pub fn http(mut self, service: &str, domain: &str, apps: &[&str]) -> Self {
        self.start_apps(apps);
        let apps: Vec<&App> = apps.iter().map(|name| self.app(name)).collect();
        self.etcd.http_service(service, domain, &apps);
        self.served.insert(format!("http-{service}"), apps.len());
        self
    }

    /// A TCP service with these apps on a port of its own, whose keys are written by hand.
    #[must_use]
    pub fn tcp(mut self, service: &str, apps: &[&str]) -> Self {
        self.start_apps(apps);
        let address = free_address();
        self.etcd.put(&format!("tcp-services/{service}/ports"), address.to_string());
        for app in apps.iter().map(|name| self.app(name)) {
            self.etcd.put(&format!("tcp-services/{service}/upstreams/{}", app.name), app.address.to_string());
        }
        self.tcp.insert(service.to_owned(), address);
        self.served.insert(format!("tcp-{service}"), apps.len());
        self
    }

    /// An HTTP service with these apps, each under an announcer with these flags.
    #[must_use]
    pub fn announced(mut self, service: &str, domain: &str, apps: &[&str], flags: &[&str]) -> Self {
        let flags = [&["--service", service, "--domain", domain], flags].concat();
        self.apps.extend(apps.iter().map(|name| App::announced(name, &self.etcd, &flags)));
        *self.served.entry(format!("http-{service}")).or_default() += apps.len();
        self
    }

    /// Settings of a service: `http-services/shop`.
    #[must_use]
    pub fn set(self, service: &str, settings: &[(&str, &str)]) -> Self {
        settings.iter().for_each(|(name, value)| _ = self.etcd.put(&format!("{service}/{name}"), *value));
        self
    }

    /// A certificate for these names, in a file that is called like the first one.
    #[must_use]
    pub fn certificate(self, names: &[&str]) -> Self {
        Certificate::of(names).write(self.setup.folder().join(format!("certs/{}.pem", names[0])));
        self
    }

    /// A file in the balancer's folder.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        write(self.setup.folder().join(name), content);
        self
    }

    /// More flags for confgen.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.setup = self.setup.flags(flags);
        self
    }

    /// Changes what the balancer is made of.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(Setup) -> Setup) -> Self {
        self.setup = change(self.setup);
        self
    }

    /// Starts the balancer, and waits until every app is served and nothing of the start is left to come.
    #[track_caller]
    pub fn start(self) -> Ground {
        let served = self.served.clone();
        let ground = self.launch();
        for (section, count) in served.iter().filter(|(_, count)| **count > 0) {
            ground.balancer.wait_servers(PATIENCE, section, *count);
        }
        ground.balancer.wait_settled(PATIENCE);
        ground
    }

    /// Starts the balancer, and waits for HAProxy's Runtime API only.
    pub fn launch(self) -> Ground {
        let Self { etcd, setup, apps, tcp, .. } = self;
        Ground { apps, balancer: setup.start(), tcp, etcd }
    }

    /// One of the apps.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn app(&self, name: &str) -> &App {
        find(&self.apps, name)
    }

    fn start_apps(&mut self, names: &[&str]) {
        for name in names {
            if !self.apps.iter().any(|app| app.name == *name) {
                self.apps.push(App::alone(name));
            }
        }
    }
}

fn find<'a>(apps: &'a [App], name: &str) -> &'a App {
    apps.iter().find(|app| app.name == name).unwrap_or_else(|| panic!("no app {name}"))
}

impl Ground {
    /// The host that is served by [`Ground::new`].
    pub const HOST: &str = "shop.test";

    /// A store without keys and a balancer that isn't started.
    pub fn build() -> Builder {
        let etcd = Etcd::start();
        let setup = Setup::new().confgen(&etcd);
        Builder { etcd, setup, apps: Vec::new(), tcp: BTreeMap::new(), served: BTreeMap::new() }
    }

    /// The usual ground: `shop.test` with three announced apps, `shop-1`, `shop-2` and `shop-3`, over HTTP and HTTPS.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with more flags for confgen.
    pub fn with(flags: &[&str]) -> Self {
        let apps = ["shop-1", "shop-2", "shop-3"];
        Self::build().certificate(&[Self::HOST]).announced("shop", Self::HOST, &apps, &[]).flags(flags).start()
    }

    /// One of the apps.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn app(&self, name: &str) -> &App {
        find(&self.apps, name)
    }

    /// Waits until HAProxy runs what the file says and finds so many upstreams of the service up.
    #[track_caller]
    pub fn wait_served(&self, upstreams: usize) {
        self.balancer.wait_servers(PATIENCE, "http-shop", upstreams);
        self.balancer.wait_in_sync(PATIENCE);
    }

    /// Starts one more announced app, `shop-<number>`, and waits until it answers by itself.
    pub fn arrive(&mut self, number: usize) {
        let flags = ["--service", "shop", "--domain", Self::HOST];
        self.apps.push(App::announced(&format!("shop-{number}"), &self.etcd, &flags));
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
