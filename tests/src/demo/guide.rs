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
        text += &self.own_app();
        text + "\nCtrl-C ends all of it, says how many requests were lost, and leaves nothing\nbehind.\n"
    }

    fn addresses(&self) -> String {
        let (http, https) = (self.balancer.http().port(), self.balancer.https().port());
        let password = std::fs::read_to_string(self.folder().join("state/stats-password")).unwrap_or_default();
        format!(
            "The shop      http://shop.localhost:{http}/ and https://shop.localhost:{https}/
The blog      http://blog.localhost:{http}/
Payments      https://pay.localhost:{https}/, TLS only
A TCP service {db}
Stats page    http://{stats}/admin?stats, user admin, password {password}
haproxy.cfg   {folder}/haproxy.cfg

The shop has two blue copies and two green ones. Only the blue ones serve.
The certificate is self-signed. Use `curl -k`, or accept it in the browser.
The demo sends about 40 requests a second to the four services, so that the
console has something to show.
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
Open the console. Paste this into a second terminal before you try the steps:

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

Only clients of some networks may preview green. All other clients get blue.
This host may preview it:

    curl -s -H 'X-Discover-Color: green' http://shop.localhost:{port}/

Switch in three steps. If more than 1% of the requests fail, the switch goes
back by itself:

    discoverctl switch shop green --steps 25,50,100 --every 3s --max-errors 1%

{console}services/http-shop shows the shares, the requests of each
copy, and the changes with their author. Go back, and see both in the history:

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

Kill a copy of the shop together with its announcer, so that nothing drains it:

    kill -KILL {}

HAProxy's check fails within some seconds. Then the console names the copy, and
the shop goes on without it. The copy's lease ends after 15 s, and etcd deletes
its key. The demo starts the copy again 20 s after the crash, and it serves.
",
            pids.join(" "),
        )
    }

    fn restart(&self) -> String {
        format!(
            "
# 4. HAProxy restarts

    supervisorctl -c {folder}/supervisord.conf restart haproxy

{console}haproxy shows the new process, and the old one while it
finishes its requests. No request is lost.
",
            folder = self.folder().display(),
            console = self.console(),
        )
    }

    fn mistake(&self) -> String {
        format!(
            "
# 5. A mistyped value

    etcdctl put /haproxy-discover/http-services/shop/balance quickly

The shop goes on as before. The console names the key at once, and
{console}store shows the reason. Delete the value:

    discoverctl unset shop balance
",
            console = self.console(),
        )
    }

    fn own_app(&self) -> String {
        let (port, http) = (self.own_port, self.balancer.http().port());
        format!(
            "
# 6. An app of your own

The announcer runs the app, waits until its port accepts connections, and
announces it:

    announcer --service mine --domain mine.localhost --upstream 127.0.0.1:{port} -- python3 -m http.server {port} &

Ask for it through HAProxy, and see its keys:

    curl -s http://mine.localhost:{http}/
    etcdctl get --prefix /haproxy-discover/http-services/mine/

End it. The announcer drains the app before it stops it:

    kill %1; wait

The service keeps its settings for the next start. Delete them:

    discoverctl delete mine --yes
"
        )
    }
}

fn explain(console: &str) -> String {
    format!(
        "
# 1. Why does an upstream get no requests?

The console, {console}, names blog/blog-2 with this command:

    discoverctl explain blog/blog-2

No program listens there. Delete its key, and see the problem go from the
console without a reload:

    discoverctl deregister blog blog-2
"
    )
}
