//! Restarts: publish, restart, apply what haproxy.cfg can't say. Only the steps that need the reconciler's state run on its thread, so
//! changes over the Runtime API go on during the waits. It decides nothing about when.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;

use super::{Reconciler, RestartOutcome, Steps};
use crate::publish::{Publication, PublishOutcome};
use crate::runtime::ports::unbindable_reason;
use crate::runtime::{RestartResult, Restarter};

/// The next step of a restart whose haproxy.cfg was published.
enum Begun {
    /// HAProxy must be restarted. True if a process that is just starting doesn't count.
    Restart(Restarter, bool),
    Over(RestartOutcome),
}

/// Publishes haproxy.cfg, restarts HAProxy into it, and applies what the file can't say. Blocks for the whole time.
pub fn restart_haproxy(steps: &mut impl Steps, reason: &str) -> anyhow::Result<RestartOutcome> {
    // A restart is the time to drop the shapes that no service has.
    let publication =
        steps.run(|reconciler| Ok(Publication { kept_shapes: BTreeMap::new(), ..reconciler.publication() }))?;
    // Checked even if it is unchanged: the operator may have broken another file since.
    let published = publication.check_and_write()?;
    let written = publication.clone();
    let (restarter, afresh) = match steps.run(move |reconciler| reconciler.begin_restart(&written, published))? {
        Begun::Over(outcome) => return Ok(outcome),
        Begun::Restart(restarter, afresh) => (restarter, afresh),
    };
    tracing::info!(%reason, "restarting HAProxy");
    let result = restarter.restart_into(&publication.generation.id, afresh)?;
    steps.run(move |reconciler| reconciler.end_restart(&publication, result))
}

impl Reconciler {
    fn begin_restart(&mut self, publication: &Publication, published: PublishOutcome) -> anyhow::Result<Begun> {
        self.on_published(publication, &published)?;
        if !matches!(published, PublishOutcome::Unchanged | PublishOutcome::Written) {
            return Ok(Begun::Over(RestartOutcome::Rejected(published)));
        }
        // An operator or a crash may have restarted HAProxy meanwhile, and then no restart is needed any more.
        self.apply_with_backends(&BTreeSet::new())?;
        if self.restart_reason().is_none() {
            // No reconcile follows, and a look for manual changes compares with what was just observed.
            self.haproxy.undo_manual_changes(&self.desired, &self.fingerprints)?;
            self.desired.mark_accepted(&publication.desired);
            return Ok(Begun::Over(RestartOutcome::InSync));
        }
        self.haproxy.invalidate();
        Ok(Begun::Restart(self.haproxy.restarter(), self.files.suspect.is_some()))
    }

    fn end_restart(&mut self, publication: &Publication, result: RestartResult) -> anyhow::Result<RestartOutcome> {
        // A reconcile may have observed either process meanwhile.
        self.haproxy.invalidate();
        match result {
            RestartResult::Taken => self.clear_edit_windows(),
            RestartResult::Stopped => return Ok(RestartOutcome::Stopped),
            RestartResult::Failed(reason) => {
                // `haproxy -c` binds nothing, so a port that another program has shows only at the start.
                let unbindable = self.find_unbindable();
                if unbindable.is_empty() {
                    return Ok(RestartOutcome::NotLive(reason));
                }
                let rejected = PublishOutcome::ServicesRejected(unbindable);
                self.on_published(publication, &rejected)?;
                return Ok(RestartOutcome::Rejected(rejected));
            }
        }
        self.desired.mark_accepted(&publication.desired);
        // Not before: until the restart was taken, HAProxy ran another generation, with maps of its own.
        self.config.state_dir.remove_other_generations(&[&publication.generation.id])?;
        self.apply_with_backends(&BTreeSet::new())?;
        self.restart_reason();
        Ok(match self.haproxy.refused_change() {
            None => RestartOutcome::Restarted,
            Some(words) => RestartOutcome::NotLive(format!("HAProxy refuses a change: {words}")),
        })
    }

    /// The services with a port that can't be bound, each with the reason. HAProxy doesn't start with them.
    fn find_unbindable(&self) -> BTreeMap<ServiceId, String> {
        let mut services = BTreeMap::new();
        for (id, desired) in self.desired.services() {
            if let Some(reason) = desired.binds.iter().find_map(|bind| unbindable_reason(*bind)) {
                services.insert(id.clone(), reason);
            }
        }
        services
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use clap::Parser;
    use discovery::{Entry, Snapshot};
    use haproxy::runtime::{Answer, Socket};
    use haproxy::supervisor::Control;

    use super::*;
    use crate::cli::Cli;
    use crate::runtime::HaproxyControl;
    use crate::store::StoreUpdate;
    use crate::test_support::TempFiles;

    /// A HAProxy of this generation, whose only server a command has left unchecked. It notes the changes that it gets.
    #[derive(Debug)]
    struct Unchecked {
        generation: String,
        changes: Mutex<Vec<String>>,
    }

    impl Answer for Unchecked {
        fn answer(&self, line: &str) -> io::Result<Vec<u8>> {
            let path = |name: &str| format!("/s/{}/{name}.map", self.generation);
            let answer = match line {
                "show env CONFGEN_GEN" => format!("CONFGEN_GEN={}\n", self.generation),
                "show info" => {
                    "Version: 2.6.12\nPid: 7\nUptime_sec: 1\nHard_maxconn: 500\nCurrConns: 0\nListeners: 1\n\
                                Stopping: 0\n"
                        .to_owned()
                }
                "show map" => ["hosts", "paths"].map(|name| format!("1 ({}) pattern\n", path(name))).concat(),
                "show servers state" => {
                    "1\n# be_id …\n5 http-a 1 1 10.0.0.1 2 0 100 100 16 8 2 0 2 0 0 0 - 80 - 0 0 - - 0\n".to_owned()
                }
                "show stat -1 7 -1" => "# pxname,svname,type\n".to_owned(),
                _ if line == format!("show map {}", path("hosts")) => "0x1 a.com a.com\n".to_owned(),
                _ if line == format!("show map {}", path("paths")) => "0x1 a.com/ http-a\n".to_owned(),
                change => {
                    self.changes.lock().unwrap().push(change.to_owned());
                    String::new()
                }
            };
            Ok(format!("{answer}\n").into_bytes())
        }
    }

    #[test]
    fn a_restart_that_is_not_needed_leaves_no_check_turned_off() {
        let place = TempFiles::with_folders(&["state"]);
        let mut options = Cli::parse_from(["confgen"]).common.options;
        (options.state_dir, options.haproxy_cfg) = (place.path("state"), place.path("haproxy.cfg"));
        let mut reconciler = Reconciler::open_read_only(options).unwrap();
        let entry = |key: &str, value: &str| Entry {
            key: key.to_owned(),
            value: value.into(),
            create_revision: 2,
            mod_revision: 2,
            lease: 0,
        };
        let entries =
            vec![entry("http-services/a/domain", "a.com"), entry("http-services/a/upstreams/1", "10.0.0.1:80")];
        let snapshot = Snapshot { cluster: 1, revision: 2, raft_term: 2, entries };
        reconciler.update_desired(&StoreUpdate::from_snapshot(&snapshot)).unwrap();
        let publication = reconciler.publication();
        publication.state_dir.write_maps(&publication.render_config().unwrap()).unwrap();
        let generation = publication.generation.id.clone();
        let haproxy = Arc::new(Unchecked { generation, changes: Mutex::default() });
        let (socket, control) = (Socket::of_model(haproxy.clone()), Control::new("true".parse().unwrap(), None));
        reconciler.haproxy = HaproxyControl::new(socket, control, place.path("restarting"));
        let begun = reconciler.begin_restart(&publication, PublishOutcome::Unchanged).unwrap();
        assert!(matches!(begun, Begun::Over(RestartOutcome::InSync)));
        assert_eq!(*haproxy.changes.lock().unwrap(), ["enable health http-a/1"]);
    }
}
