//! The end of a run: faults are mended, clients go, and time passes until nothing is left to do.

use crate::clock::Millis;
use crate::world::World;

/// The run lasts at least this long after the last fault: leases of 10 s end.
const AT_LEAST: Millis = 13_000;
/// After this time something hangs. The longest wait is a retry after 30 s, before it a restart's interval.
const AT_MOST: Millis = 120_000;
/// The time that passes at once while there is something to do, and while there is nothing.
const SHORT: Millis = 150;
const LONG: Millis = 1_000;
/// Messages of a watch that are delivered at once.
const MESSAGES: usize = 64;

impl World {
    /// Ends all faults, and lets time pass until all is quiet. False if that takes too long.
    pub fn settle(&mut self, at_least: Option<Millis>) -> bool {
        let began = self.clock.millis();
        let at_least = at_least.unwrap_or(AT_LEAST);
        self.mend();
        loop {
            let is_quiet = self.let_all_work();
            let passed = self.clock.millis() - began;
            if (is_quiet && passed >= at_least) || !self.violations.is_empty() {
                return true;
            }
            if passed > AT_MOST {
                return false;
            }
            self.wait(if is_quiet { LONG } else { SHORT });
        }
    }

    fn mend(&mut self) {
        self.note(|| "all faults end".to_owned());
        self.etcd.connect_all();
        let (clock, bug) = (self.clock, self.bug);
        for balancer in &mut self.balancers {
            let mut haproxy = balancer.haproxy.lock();
            haproxy.fault = None;
            haproxy.fails_start = false;
            haproxy.end_clients();
            drop(haproxy);
            if balancer.confgen.is_none() {
                balancer.start_confgen(clock, bug);
            }
        }
    }

    /// Lets each program work once. True if none has more to do.
    fn let_all_work(&mut self) -> bool {
        let mut is_quiet = true;
        self.check_servers();
        for number in 0..self.announcers.len() {
            self.run_announcer(number);
            // An app that is told to stop ends at once.
            let now = self.clock.millis();
            let bug = self.bug;
            let announcer = self.announcers.get_mut(number);
            if let Some(announcer) = announcer.filter(|it| it.is_busy()) {
                is_quiet = false;
                if announcer.is_stopping() {
                    announcer.end_app(crate::announcer::Turn { now, bug });
                }
            }
        }
        for number in 0..self.balancers.len() {
            for _ in 0..MESSAGES {
                let is_followed = |world: &Self| {
                    let confgen = world.balancers.get(number).and_then(|it| it.confgen.as_ref());
                    confgen.is_none_or(|it| it.follower.is_up_to_date(&world.etcd))
                };
                if is_followed(self) {
                    break;
                }
                self.deliver(number, MESSAGES, false);
            }
            self.run_confgen(number, 0);
            is_quiet &= self.is_quiet(number);
        }
        is_quiet
    }

    fn is_quiet(&self, number: usize) -> bool {
        let Some(balancer) = self.balancers.get(number) else { return true };
        let Some(confgen) = &balancer.confgen else { return true };
        let record = confgen.record.written();
        confgen.next_due(self.clock).is_none()
            && confgen.reconciler.is_current()
            && confgen.follower.is_up_to_date(&self.etcd)
            && record.is_some_and(|record| record.applied == confgen.replica.store_revision().revision)
            && record.is_some_and(|record| record.draining.is_empty())
    }
}
