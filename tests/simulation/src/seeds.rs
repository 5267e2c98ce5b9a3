//! Runs many seeds on several threads, up to the first that fails.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bugs::Bug;
use crate::run::{Failure, run};
use crate::steps::generate;

/// A seed that fails.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// Its failure.
    pub failure: Failure,
}

/// Runs the seeds with so many steps each. Returns the lowest one that was found to fail. `None` if all hold.
pub fn run_seeds(seeds: Range<u64>, steps: usize, threads: usize, bug: Option<Bug>) -> Option<Found> {
    let (next, is_over) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let found: Mutex<Option<Found>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let (setup, list) = generate(seed, steps);
                    if let Err(failure) = run(setup, &list, bug, false) {
                        is_over.store(true, Ordering::Relaxed);
                        let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        if found.as_ref().is_none_or(|it| seed < it.seed) {
                            *found = Some(Found { seed, failure });
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
