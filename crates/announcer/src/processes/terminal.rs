//! The terminal, where there is one: the app's process group gets it, as a shell gives it to its jobs.

use std::io::{self, IsTerminal};

use nix::{
    sys::signal::{SigSet, Signal, killpg},
    unistd::{Pid, getpgrp, getpid, getsid, tcgetpgrp, tcsetpgrp},
};

/// A terminal that we have, and lend to the app.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    our_group: Pid,
}

impl Terminal {
    /// The terminal on stdin, if it is ours to give.
    pub(crate) fn of_stdin() -> Option<Self> {
        let our_group = getpgrp();
        let is_ours = io::stdin().is_terminal() && tcgetpgrp(io::stdin()) == Ok(our_group);
        is_ours.then_some(Self { our_group })
    }

    /// Puts the app into the foreground.
    pub(crate) fn give_to(&self, app: Pid) {
        self.set_foreground(app);
        // It may have read from the terminal before it was its own, and been stopped for that.
        let _ = killpg(app, Signal::SIGCONT);
    }

    /// Puts us into the foreground.
    pub(crate) fn take_back(&self) {
        self.set_foreground(self.our_group);
    }

    /// Ctrl-Z: the whole job stops, so that the shell gets its terminal back, and goes on when the shell says so.
    /// The lease ends meanwhile, if it takes that long: a stopped app answers nobody.
    pub(crate) fn suspend_job(&self, app: Pid) {
        // Where we are the session's leader, no shell would ever continue us.
        if getsid(None) != Ok(getpid()) {
            self.take_back();
            let _ = killpg(self.our_group, Signal::SIGSTOP);
        }
        self.give_to(app);
    }

    fn set_foreground(&self, group: Pid) {
        // From the background, the call is answered with a SIGTTOU that would stop us, unless it is blocked.
        let mut ttou = SigSet::empty();
        ttou.add(Signal::SIGTTOU);
        let _ = ttou.thread_block();
        if let Err(error) = tcsetpgrp(io::stdin(), group) {
            tracing::debug!(%error, %group, "the terminal can't be passed on");
        }
        let _ = ttou.thread_unblock();
    }
}
