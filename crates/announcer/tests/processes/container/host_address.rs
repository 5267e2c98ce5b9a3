//! The host gets another address while the agent runs.

use std::process::Command;

use lab::{Process, container_name};

use super::own_engine::ip;
use super::{SHOP, SOCKET, Scene, until_logged};

/// An interface of the test's own. Dropping it removes it.
struct Interface(String);

impl Interface {
    fn new(address: &str) -> Self {
        let interface = Self(format!("lab{:x}", fastrand::u32(..)));
        ip(&["link", "add", "name", &interface.0, "type", "bridge"]);
        ip(&["link", "set", &interface.0, "up"]);
        interface.add(address);
        interface
    }

    fn add(&self, address: &str) {
        ip(&["address", "add", &format!("{address}/24"), "dev", &self.0]);
    }

    fn remove(&self, address: &str) {
        ip(&["address", "delete", &format!("{address}/24"), "dev", &self.0]);
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.0]).output();
    }
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn records_follow_the_hosts_address() {
    let scene = Scene::new();
    let net = format!("10.216.{}", fastrand::u8(..));
    let [before, after] = [format!("{net}.1"), format!("{net}.2")];
    let interface = Interface::new(&before);
    let mut command = Command::new(env!("CARGO_BIN_EXE_announcer"));
    command.args(["containers", "--endpoints", &scene.site.etcd.endpoints(), "--label-prefix", &scene.prefix]);
    command.args(["--host-name", "h1", "--interface", &interface.0, "--engine", &format!("unix://{}", *SOCKET)]);
    command.arg("--state-dir").arg(scene.site.folder.join("state"));
    let agent = Process::start(&scene.site.folder, "agent", &mut command);
    let name = container_name();
    let app = scene.app(&name, SHOP);
    let value = |ip: &str| format!(r#"{{"address":"{ip}:{}","host":"h1"}}"#, app.published(8000));
    scene.until_value(&name, Some(&value(&before)));
    // As DHCP does it. For a moment there is no address, and the record stays.
    interface.remove(&before);
    interface.add(&after);
    scene.until_value(&name, Some(&value(&after)));
    until_logged(&agent, "the host has another address");
}
