//! The sample web app, alone or under the announcer.

use std::net::SocketAddr;
use std::process::{Command, ExitStatus};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::http::Request;
use crate::{Etcd, Host, PATIENCE, Process, Scratch, bin, free_address, free_port, until};

/// A running web app. Dropping it kills it.
pub struct App {
    /// What its answers say.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
    _folder: Scratch,
}

/// How an app makes itself known.
#[derive(Clone, Copy)]
pub struct Announce<'a> {
    /// Where to.
    pub etcd: &'a Etcd,
    /// The announcer's flags, but for the endpoints, the id and the address.
    pub flags: &'a [&'a str],
}

impl App {
    /// Starts the app by itself and waits until it answers.
    pub fn alone(name: &str) -> Self {
        Self::start(name, None, &[])
    }

    /// Starts `announcer flags… -- webapp`, with the app's name as the upstream's id, and waits until the app answers.
    pub fn announced(name: &str, etcd: &Etcd, flags: &[&str]) -> Self {
        Self::start(name, Some(Announce { etcd, flags }), &[])
    }

    /// Starts the app, announced or not, with more flags of its own, and waits until it answers.
    pub fn start(name: &str, announce: Option<Announce<'_>>, flags: &[&str]) -> Self {
        let app = Self::launch(name, announce, flags);
        until(PATIENCE, &format!("{name} at {}", app.address), || {
            Request::get(name, "/health").send(app.address).is_ok_and(|response| response.status == 200)
        });
        app
    }

    /// Starts the app and doesn't wait for it.
    pub fn launch(name: &str, announce: Option<Announce<'_>>, flags: &[&str]) -> Self {
        Self::launch_at(free_address(), name, announce, flags)
    }

    /// The same at this address.
    pub fn launch_at(address: SocketAddr, name: &str, announce: Option<Announce<'_>>, flags: &[&str]) -> Self {
        let mut command = match announce {
            None => Command::new(bin("webapp")),
            Some(Announce { etcd, flags }) => {
                let mut command = Command::new(bin("announcer"));
                announcing(&mut command, name, address, &etcd.endpoints(), flags);
                command
            }
        };
        command.args(flags);
        Self::run(name, address, command, announce.map(|announce| announce.etcd))
    }

    /// Starts `announcer flags… -- webapp` on another host, and doesn't wait for it.
    ///
    /// # Panics
    /// When the store can't be reached from there: see [`Etcd::at`].
    pub fn announced_on(host: &Host, name: &str, etcd: &Etcd, flags: &[&str]) -> Self {
        let address = SocketAddr::from((host.address(), free_port()));
        let mut command = host.command(bin("announcer"));
        announcing(&mut command, name, address, &etcd.endpoint_outside().expect("an address of etcd"), flags);
        Self::run(name, address, command, Some(etcd))
    }

    /// Starts a program with the app's flags. `etcd` is the store of its announcer.
    fn run(name: &str, address: SocketAddr, mut command: Command, etcd: Option<&Etcd>) -> Self {
        command.args(["--listen", &address.to_string(), "--name", name]);
        let folder = Scratch::new();
        if let Some(etcd) = etcd {
            etcd.follow_stops(&mut command, &folder.join(format!("{name}.log")));
        }
        let process = Process::start(&folder, name, &mut command);
        Self { name: name.to_owned(), address, process, _folder: folder }
    }

    /// Asks it to stop, the announcer first where there is one, and waits for the end.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// Waits for the end of one that was asked to stop: a second signal would cut its drain short.
    #[track_caller]
    pub fn wait(mut self) -> ExitStatus {
        self.process.wait(PATIENCE)
    }

    /// Asks it to stop and doesn't wait.
    pub fn terminate(&mut self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Kills announcer and app at once with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The living processes of announcer and app.
    pub fn family(&self) -> Vec<Pid> {
        self.process.family()
    }

    /// The process that was started: the announcer where there is one, else the app.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// What follows the announcer's name on its command line, up to the app's own.
fn announcing(command: &mut Command, name: &str, address: SocketAddr, endpoints: &str, flags: &[&str]) {
    command.args(["--endpoints", endpoints, "--id", name, "--upstream", &address.to_string()]);
    command.args(flags).arg("--").arg(bin("webapp"));
}
