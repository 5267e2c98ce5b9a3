//! What the compose file brings up.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::container::{Container, checked, name};
use crate::{Images, free_port};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../units/images/compose.yaml");

/// A port of this host's for each variable of the compose file that wants one.
const PORTS: [&str; 4] = ["HTTP_1", "HTTPS_1", "HTTP_2", "HTTPS_2"];

/// etcd, two balancers and two apps. Dropping it removes them, with their network and volumes.
pub struct Cluster {
    project: String,
    variables: BTreeMap<&'static str, String>,
    containers: BTreeMap<String, Container>,
}

impl Cluster {
    /// `docker-compose up`.
    ///
    /// # Panics
    /// When it fails.
    pub fn up(images: &Images) -> Self {
        let ports = PORTS.map(|port| (port, free_port().to_string()));
        let variables = ports.into_iter().chain([("TAG", images.tag().to_owned())]).collect();
        let mut cluster = Self { project: name(), variables, containers: BTreeMap::new() };
        cluster.compose(&["up", "--detach"]);
        for service in cluster.compose(&["ps", "--services"]).lines() {
            let container = Container::of(&cluster.compose(&["ps", "--quiet", service]));
            cluster.containers.insert(service.to_owned(), container);
        }
        cluster
    }

    /// Its containers, by the services' names.
    pub fn containers(&self) -> &BTreeMap<String, Container> {
        &self.containers
    }

    /// Where this host reaches a port of the compose file: `HTTP_1`.
    pub fn published(&self, port: &str) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.variables[port].parse().expect("a port's number")))
    }

    /// Another app with `announcer` beside it, from images of their own: both containers, the announcer's second.
    pub fn app_and_sidecar(&self, images: &Images, id: &str, domain: &str) -> [Container; 2] {
        let network = format!("{}_default", self.project);
        let app = Container::start(
            &["--network", &network, "--entrypoint", "webapp", "--no-healthcheck", &images.name("app")],
            &["--listen", "0.0.0.0:8000", "--name", id],
        );
        let sidecar = Container::start(
            &["--network", &format!("container:{}", app.name()), "--stop-timeout", "40", &images.name("announcer")],
            &["--endpoints", "http://etcd:2379", "--domain", domain, "--id", id, "--port", "8000", "--check", "tcp"],
        );
        [app, sidecar]
    }

    #[track_caller]
    fn compose(&self, arguments: &[&str]) -> String {
        checked(&self.command(arguments).output().expect("docker-compose"), &format!("docker-compose {arguments:?}"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker-compose");
        command.args(["--file", FILE, "--project-name", &self.project]).args(arguments).envs(&self.variables);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // First: after a failure they print their logs.
        self.containers.clear();
        let _ = self.command(&["down", "--volumes"]).output();
    }
}
