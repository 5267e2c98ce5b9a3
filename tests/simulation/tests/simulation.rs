//! Runs the seeds, and shows that the simulation finds bugs.

use std::time::Instant;

use simulation::{Bug, generate, run, run_seeds, shrink};

/// `make simulate` runs 10,000. Other tests run beside these, on the same two cores.
const SEEDS: u64 = 5_000;
/// The steps of each seed.
const STEPS: usize = 500;
/// As many as the machines have cores that run the tests.
const THREADS: usize = 2;

#[test]
fn every_seed_keeps_all_invariants() {
    let began = Instant::now();
    let Some(found) = run_seeds(0..SEEDS, STEPS, THREADS, None) else {
        println!("{SEEDS} seeds of {STEPS} steps in {:.1?}", began.elapsed());
        return;
    };
    let (setup, steps) = generate(found.seed, STEPS);
    let (fewest, last) = shrink(setup, &steps, None, &found.failure);
    let log = run(setup, &fewest, None, true).expect_err("it fails alike").log.join("\n");
    panic!(
        "seed {} fails at step {}: {}\n{} of its steps fail alike ({}): {fewest:#?}\n{log}\nreplay it: make simulate SEED={}",
        found.seed,
        found.failure.at,
        found.failure.what,
        fewest.len(),
        last.what,
        found.seed,
    );
}

#[test]
fn every_seeded_bug_is_found() {
    for bug in Bug::ALL {
        let found = run_seeds(0..SEEDS, STEPS, THREADS, Some(bug)).unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {} at step {}: {}", found.seed, found.failure.at, found.failure.what);
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let log = |seed| {
        let (setup, steps) = generate(seed, STEPS);
        simulation::log_of(setup, &steps, None)
    };
    for seed in 0..3 {
        assert_eq!(log(seed), log(seed));
    }
    assert_ne!(log(0), log(1));
}

#[test]
fn a_failing_seed_is_shrunk() {
    let bug = Some(Bug::LoseChange);
    let found = run_seeds(0..SEEDS, STEPS, THREADS, bug).expect("it is found");
    let (setup, steps) = generate(found.seed, STEPS);
    let (fewest, last) = shrink(setup, &steps, bug, &found.failure);
    assert!(fewest.len() * 4 < found.failure.at.min(STEPS), "{} of {} steps are left", fewest.len(), found.failure.at);
    assert_eq!(last.kind(), found.failure.kind());
    assert!(run(setup, &fewest, None, false).is_ok(), "without the bug the same steps hold");
}
