//! Bugs that a test switches on, to see that the simulation finds them. Each is a wrong use of production code.

/// A seeded bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A watch resumes without a look at the store's cluster and term.
    ResumeAnyStore,
    /// The last change of a message is dropped.
    LoseChange,
    /// Counts of sessions leave the old processes out.
    ForgetOldProcesses,
    /// The removal guard isn't told of graceful removals.
    ForgetGracefulRemovals,
    /// A restart leaves the observed state as it was.
    KeepObservedState,
    /// A HAProxy that is another process is not noticed.
    IgnoreOtherProcess,
    /// Manual changes are not looked for.
    IgnoreManualChanges,
    /// Commands are sent in reverse order.
    ReverseCommands,
    /// HAProxy's complaints are not read.
    IgnoreComplaints,
    /// An announcer does not notice that its lease has ended.
    IgnoreLostLease,
    /// An acknowledgement counts for every revision.
    AcceptEarlierAcknowledgement,
    /// Services that wait for a restart are not named.
    ForgetPending,
    /// A confgen that starts knows neither owners nor last good values.
    ForgetLastKnownGood,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::ResumeAnyStore,
        Self::LoseChange,
        Self::ForgetOldProcesses,
        Self::ForgetGracefulRemovals,
        Self::KeepObservedState,
        Self::IgnoreOtherProcess,
        Self::IgnoreManualChanges,
        Self::ReverseCommands,
        Self::IgnoreComplaints,
        Self::IgnoreLostLease,
        Self::AcceptEarlierAcknowledgement,
        Self::ForgetPending,
        Self::ForgetLastKnownGood,
    ];
}
