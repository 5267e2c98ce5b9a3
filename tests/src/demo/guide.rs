//! The demo's walk-through. `tests/e2e/demo.rs` pastes each of its commands.

use std::fmt::Write as _;

use super::Demo;
use crate::bins;

impl Demo {
    /// The addresses, and the steps to try. A line that begins with four blanks is a command.
    pub fn guide(&self) -> String {
        let mut text = format!("\nThe console   {}\n", self.console());
        if !self.taken.is_empty() {
            let taken: Vec<String> = self.taken.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "Taken ports   {}. The demo uses other ports instead", taken.join(", "));
        }
        text += &self.addresses();
        text += &self.first_step();
        text += &explain(&self.console());
        text += &self.switch();
        text += &self.crash();
        text += &self.restart();
        text += &self.mistake();
        text + "\nCtrl-C ends all of it, says how many requests were lost, and leaves nothing behind.\n"
    }

    fn addresses(&self) -> String {
        let (http, https) = (self.balancer.http().port(), self.balancer.https().port());
        let password = std::fs::read_to_string(self.folder().join("state/stats-password")).unwrap_or_default();
        format!(
            "The shop      http://shop.localhost:{http}/ and https://shop.localhost:{https}/: two blue copies and two green \
             ones, of which blue ones serve
The blog      http://blog.localhost:{http}/
Payments      https://pay.localhost:{https}/: TLS only
A TCP service {db}
HAProxy's own http://{stats}/admin?stats: user admin, password {password}
haproxy.cfg   {folder}/haproxy.cfg
The demo asks the four services for some 40 answers a second, so the console has something to show.
",
            db = self.db,
            stats = self.balancer.stats(),
            password = password.trim(),
            folder = self.folder().display(),
        )
    }

    fn first_step(&self) -> String {
        let folder = self.folder().display();
        format!(
            "
Open the console, and paste this into a second terminal first:

    export PATH='{bins}':\"$PATH\" DISCOVERCTL_CONFIG='{folder}/discoverctl.toml' ETCDCTL_ENDPOINTS={endpoints} ETCDCTL_API=3
",
            bins = bins::folder().display(),
            endpoints = self.etcd.endpoints(),
        )
    }

    fn switch(&self) -> String {
        let port = self.balancer.http().port();
        format!(
            "
# 2. Green is ready

Clients of these networks may look at green, while all others get blue:

    curl -s -H 'X-Discover-Color: green' http://shop.localhost:{port}/

Switch in three steps. With more than 1% of errors it would go back by itself:

    discoverctl switch shop green --steps 25,50,100 --every 3s --max-errors 1%

In the console, {console}services/http-shop has the shares, the requests of each copy, and the changes with their author. Go back, and
see both in the history:

    discoverctl color shop blue --reason 'the old one was nicer'
    discoverctl history shop
",
            console = self.console(),
        )
    }

    fn crash(&self) -> String {
        let crashed = self.apps.iter().find(|it| it.app.name == "blue-2");
        let pids: Vec<String> =
            crashed.map(|it| it.app.family()).unwrap_or_default().iter().map(ToString::to_string).collect();
        format!(
            "
# 3. An app crashes

Kill a copy of the shop and its announcer. No announcer can drain it:

    kill -KILL {}

The console names it within some seconds, when HAProxy's check has failed, and the shop goes on without it. The copy's lease ends after
15 s, and its key with it. 20 s after the crash the demo starts the copy again, and it serves.
",
            pids.join(" "),
        )
    }

    fn restart(&self) -> String {
        format!(
            "
# 4. HAProxy restarts

    supervisorctl -c {folder}/supervisord.conf restart haproxy

In the console, {console}haproxy has the new process, and the old one while it finishes its requests. No request is lost.
",
            folder = self.folder().display(),
            console = self.console(),
        )
    }

    fn mistake(&self) -> String {
        format!(
            "
# 5. A value that means nothing

    etcdctl put /haproxy-discover/http-services/shop/balance quickly

The shop goes on with the last good value. The console says so at once, and {console}store has the key and the reason. Take it back:

    discoverctl unset shop balance
",
            console = self.console(),
        )
    }
}

fn explain(console: &str) -> String {
    format!(
        "
# 1. Why does an upstream get no requests?

The console names blog/blog-2 first, with this command:

    discoverctl explain blog/blog-2

No program listens there. Take it out, and see it go from {console} without a reload:

    discoverctl deregister blog blog-2
"
    )
}
