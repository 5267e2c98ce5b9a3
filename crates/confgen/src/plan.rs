//! What to do about the difference between what HAProxy runs, what stands on disk and what is wanted. Pure.

/// What is known of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present<'a> {
    /// The generation that HAProxy says it runs; none when it doesn't answer, or runs a file of somebody else.
    pub running: Option<&'a str>,
    /// haproxy.cfg as it stands.
    pub on_disk: Option<&'a str>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal<'a> {
    /// Its name.
    pub stamp: &'a str,
    /// haproxy.cfg's content.
    pub cfg: &'a str,
}

/// What to do, in this order: the file, then HAProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The file has to be checked and written.
    pub write: bool,
    /// How HAProxy gets there.
    pub step: Step,
}

/// How HAProxy gets from what it runs to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It runs it.
    Nothing,
    /// By a restart, for this reason.
    Restart(String),
}

/// Decides.
pub fn plan(present: &Present, goal: Goal) -> Plan {
    let step = match present.running {
        Some(running) if running == goal.stamp => Step::Nothing,
        Some(running) => Step::Restart(format!("HAProxy runs generation {running}, wanted is {}", goal.stamp)),
        None => {
            Step::Restart(format!("HAProxy doesn't answer or runs no generation of ours, wanted is {}", goal.stamp))
        }
    };
    Plan { write: present.on_disk != Some(goal.cfg), step }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_and_haproxy_are_looked_at_apart() {
        let goal = Goal { stamp: "b", cfg: "B" };
        let plan_of = |running, on_disk| {
            let Plan { write, step } = plan(&Present { running, on_disk }, goal);
            (write, step != Step::Nothing)
        };
        assert_eq!(plan_of(Some("b"), Some("B")), (false, false));
        assert_eq!(plan_of(Some("b"), Some("garbage")), (true, false), "a broken file is mended without a restart");
        assert_eq!(plan_of(Some("a"), Some("B")), (false, true), "a restart that did not take is repeated");
        assert_eq!(plan_of(Some("a"), Some("A")), (true, true));
        assert_eq!(plan_of(None, None), (true, true));
    }
}
