//! The same configuration on a HAProxy of its own, changed by nothing but the floor: the least that could follow the store.

use std::process::Command;
use std::time::Duration;

use lab::{Balancer, Etcd, Process, Scratch, Setup, bin, until, write};

const PATIENCE: Duration = Duration::from_secs(60);

/// A HAProxy with the generated file, and the program `floor` that watches `/floor/`.
pub struct Floor {
    pub balancer: Balancer,
    _process: Process,
    _folder: Scratch,
}

impl Floor {
    pub fn start_beside(ours: &Balancer, etcd: &Etcd) -> Self {
        let balancer = start_copy(ours);
        let folder = Scratch::new();
        let mut command = Command::new(bin("floor"));
        command.args(["--endpoint", &etcd.endpoints()]);
        command.arg("--socket").arg(balancer.socket());
        let process = Process::start(&folder, "floor", &mut command);
        let log = folder.join("floor.log");
        until(PATIENCE, "the floor to watch", || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("watching"))
        });
        Self { balancer, _process: process, _folder: folder }
    }
}

/// A HAProxy with the generated file, on ports of its own.
fn start_copy(ours: &Balancer) -> Balancer {
    let setup = Setup::new().plain();
    let ports = [(ours.http(), setup.http()), (ours.https(), setup.https()), (ours.stats(), setup.stats())];
    let text = ports.iter().fold(ours.file(), |text, (from, to)| text.replace(&from.to_string(), &to.to_string()));
    // The maps and certificates stay where they are; the socket is the floor's own.
    let text = text.replace(&ours.socket().display().to_string(), &setup.socket().display().to_string());
    write(setup.haproxy_cfg(), text);
    setup.start()
}
