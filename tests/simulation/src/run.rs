//! One run: the steps in their order, the checks after each, and the quiet end.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

use confgen::decisions::{Site, default_site};

use crate::bugs::Bug;
use crate::steps::{Setup, Step};
use crate::world::World;

/// A run that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The number of steps that were taken. More than there are for the quiet end.
    pub at: usize,
    /// What went wrong first.
    pub what: String,
    /// The log, if it was kept.
    pub log: Vec<String>,
}

impl Failure {
    /// The kind of the failure: its words without names and numbers. Shrinking keeps it.
    pub fn kind(&self) -> String {
        let text: String = self.what.chars().map(|it| if it.is_ascii_digit() { '#' } else { it }).collect();
        text.split_whitespace()
            .filter(|word| !word.contains(['/', '#', '"', '.']))
            .take(12)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

thread_local! {
    static SITE: RefCell<Option<Rc<Site>>> = const { RefCell::new(None) };
    /// A run is in progress in this thread.
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
    /// The words of the last panic of a run in this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Production code's debug assertions panic. A run that fails so is a result, and its words are shown with it.
fn catch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IS_RUNNING.with(Cell::get) {
                PANIC.with(|words| *words.borrow_mut() = info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

/// Runs these steps. `log` keeps a log.
///
/// # Errors
/// The failure, if an invariant doesn't hold.
pub fn run(setup: Setup, steps: &[Step], bug: Option<Bug>, log: bool) -> Result<(), Failure> {
    let (failure, log) = run_logged(setup, steps, bug, log);
    failure.map_or(Ok(()), |(at, what)| Err(Failure { at, what, log }))
}

/// The log of these steps, if they fail or not.
pub fn log_of(setup: Setup, steps: &[Step], bug: Option<Bug>) -> Vec<String> {
    run_logged(setup, steps, bug, true).1
}

fn run_logged(setup: Setup, steps: &[Step], bug: Option<Bug>, log: bool) -> (Option<(usize, String)>, Vec<String>) {
    catch_panics();
    let site = match site_of_thread() {
        Ok(site) => site,
        Err(what) => return (Some((0, what)), Vec::new()),
    };
    let mut at = 0;
    let mut world = World::new(setup, &site, bug, log);
    IS_RUNNING.with(|it| it.set(true));
    let ended = catch_unwind(AssertUnwindSafe(|| take_steps(&mut world, steps, &mut at)));
    IS_RUNNING.with(|it| it.set(false));
    let what = match ended {
        Ok(()) => world.violations.first().cloned(),
        Err(_) => Some(PANIC.with(|words| words.borrow().clone())),
    };
    (what.map(|what| (at, what)), world.take_log())
}

fn site_of_thread() -> Result<Rc<Site>, String> {
    SITE.with(|site| {
        let mut site = site.borrow_mut();
        if let Some(site) = &*site {
            return Ok(Rc::clone(site));
        }
        let made = default_site().map(Rc::new)?;
        Ok(Rc::clone(site.insert(made)))
    })
}

fn take_steps(world: &mut World, steps: &[Step], at: &mut usize) {
    world.settle(Some(0));
    world.has_begun = true;
    for step in steps {
        *at += 1;
        world.take_step(*step);
        world.check_step();
        if !world.violations.is_empty() {
            return;
        }
    }
    *at += 1;
    if !world.settle(None) {
        world.violations.push("the world does not become quiet".to_owned());
    }
    world.check_step();
    if world.violations.is_empty() {
        world.check_end();
    }
}
