//! Makes a failing list of steps short: it drops steps while the failure stays (delta debugging).

use crate::bugs::Bug;
use crate::run::{Failure, run};
use crate::steps::{Setup, Step};

/// The most runs of one shrink. A run takes some milliseconds.
const MOST_RUNS: usize = 1_000;

/// Drops steps as long as a failure of the same kind stays. Returns the steps that are left, and their failure.
pub fn shrink(setup: Setup, steps: &[Step], bug: Option<Bug>, failure: &Failure) -> (Vec<Step>, Failure) {
    let kind = failure.kind();
    let mut steps: Vec<Step> = steps.iter().take(failure.at).copied().collect();
    let mut last = failure.clone();
    let mut runs = 0;
    let mut size = steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut has_dropped = false;
        while from < steps.len() && runs < MOST_RUNS {
            let shorter: Vec<Step> = steps.iter().take(from).chain(steps.iter().skip(from + size)).copied().collect();
            runs += 1;
            match run(setup, &shorter, bug, false) {
                Err(failure) if failure.kind() == kind => {
                    (steps, last, has_dropped) = (shorter, failure, true);
                    steps.truncate(last.at.max(1));
                }
                _ => from += size,
            }
        }
        if runs >= MOST_RUNS || (size == 1 && !has_dropped) {
            return (steps, last);
        }
        size = if size == 1 { 1 } else { size.div_ceil(2) };
    }
}
