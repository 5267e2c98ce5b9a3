//! The terminal on stdin, if there is one. The app's process group gets it, as a shell gives it to a job.

use std::io::{self, IsTerminal};

use nix::{
    sys::signal::{SigSet, Signal, killpg},
    unistd::{Pid, getpgrp, getpid, getsid, tcgetpgrp, tcsetpgrp},
};

/// A terminal that had our group in its foreground at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    our_group: Pid,
}

impl Terminal {
    /// The terminal on stdin. `None` unless this process is in its foreground.
    pub(crate) fn of_stdin() -> Option<Self> {
        let our_group = getpgrp();
        let is_ours = io::stdin().is_terminal() && tcgetpgrp(io::stdin()) == Ok(our_group);
        is_ours.then_some(Self { our_group })
    }

    /// Puts the app's group into the foreground.
    pub(crate) fn give_to(&self, app: Pid) {
        self.set_foreground(app);
        // The app may have read from the terminal before it was in the foreground. The kernel stops it for that.
        let _ = killpg(app, Signal::SIGCONT);
    }

    /// Puts our own group into the foreground.
    pub(crate) fn take_back(&self) {
        self.set_foreground(self.our_group);
    }

    /// Stops the whole job after Ctrl-Z, so that the shell gets its terminal back. It continues when the shell says so.
    /// A long stop lets the lease end, which is right: a stopped app answers no request.
    pub(crate) fn suspend_job(&self, app: Pid) {
        // No shell would continue a session leader.
        if getsid(None) != Ok(getpid()) {
            self.take_back();
            let _ = killpg(self.our_group, Signal::SIGSTOP);
        }
        self.give_to(app);
    }

    fn set_foreground(&self, group: Pid) {
        // A background process gets SIGTTOU for this call, which would stop it unless it is blocked.
        let mut ttou = SigSet::empty();
        ttou.add(Signal::SIGTTOU);
        let _ = ttou.thread_block();
        if let Err(error) = tcsetpgrp(io::stdin(), group) {
            tracing::debug!(%error, %group, "can't change the terminal's foreground group");
        }
        let _ = ttou.thread_unblock();
    }
}
