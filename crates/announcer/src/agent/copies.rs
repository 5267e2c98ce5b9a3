//! The containers that are copies of a service with a limit: one keeper of `slots` for each, and the starts and stops that
//! it asks for. It decides nothing about slots.

mod ends;
mod keepers;

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::shutdown::Shutdown;
use discovery::{ServiceId, UpstreamId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::agent::members::ContainerKey;
use crate::slots::app::{App, AppEvent, AppEventKind};
use crate::status::SlotStatus;

/// A copy: its service, and the id that its record has.
pub(crate) type CopyKey = (ServiceId, UpstreamId);

/// Copies with their containers.
pub(crate) type Copies = BTreeMap<CopyKey, CopySlot>;

/// Options of the agent's copies. Labels say the rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyOptions {
    pub(crate) max_restarts: u32,
    pub(crate) handover: Duration,
    pub(crate) drain: Duration,
}

/// Request of a keeper.
pub(crate) struct Order {
    name: CopyKey,
    /// Number of the keeper, which tells it from an earlier one of this copy.
    keeper: usize,
    kind: OrderKind,
}

enum OrderKind {
    Start(u64),
    Stop {
        run: u64,
        is_awaited: bool,
    },
    /// The keeper has ended, and its keys are gone.
    Done,
}

/// A copy, its container and its keeper.
pub(crate) struct CopySlot {
    keeper: usize,
    pub(crate) container: ContainerKey,
    /// Ends the keeper at once. Its keys stay.
    task: AbortHandle,
    /// Asks the keeper to give its keys up.
    shutdown: Shutdown,
    events: mpsc::Sender<AppEvent>,
    shown: watch::Receiver<SlotStatus>,
    /// Number of the keeper's run. `None` while it has ordered no start.
    run: Option<u64>,
    /// True between the order of a start and the engine's answer.
    is_starting: bool,
    is_announced: bool,
    /// True once the keeper has ordered a stop.
    is_stopping: bool,
    /// The task that stops the container. It must not outlive the container's run.
    stop: Option<AbortHandle>,
    /// True once another client of the engine has told the container to stop.
    is_told: bool,
    /// True once the keeper gives its keys up. The container is none of its any more.
    is_leaving: bool,
}

/// The app of a keeper: the container, which the agent's loop starts and stops.
struct ContainerApp {
    name: CopyKey,
    keeper: usize,
    /// The last run.
    run: u64,
    orders: mpsc::Sender<Order>,
}

impl ContainerApp {
    fn order(&self, kind: OrderKind) {
        send_soon(&self.orders, Order { name: self.name.clone(), keeper: self.keeper, kind });
    }
}

impl App for ContainerApp {
    fn start(&mut self, run: u64) {
        self.run = run;
        self.order(OrderKind::Start(run));
    }

    fn stop(&mut self, is_awaited: bool) {
        self.order(OrderKind::Stop { run: self.run, is_awaited });
    }

    fn kill(&mut self) {
        // Without a fence there is no kill that can't wait for a polite stop.
        self.order(OrderKind::Stop { run: self.run, is_awaited: false });
    }

    fn is_start_waiting(&self) -> bool {
        false
    }
}

impl CopySlot {
    /// True if the container holds a slot. False if it stands by, or gives its slot up.
    pub(crate) fn holds_slot(&self) -> bool {
        self.shown.borrow().slot.is_some()
    }

    fn report(&self, run: u64, kind: AppEventKind) {
        send_soon(&self.events, AppEvent { run, kind });
    }

    fn end_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.abort();
        }
    }

    /// Has the keeper give its keys up. The container is left alone.
    fn leave(&mut self) {
        self.end_stop();
        if std::mem::replace(&mut self.is_leaving, true) {
            return;
        }
        match self.run.take() {
            Some(run) => self.report(run, AppEventKind::TakenAway),
            None => self.shutdown.drain.cancel(),
        }
    }
}

/// Sends without waiting. A receiver that has ended needs nothing any more.
fn send_soon<T: Send + 'static>(to: &mpsc::Sender<T>, message: T) {
    // A full channel is rare: both ends take their messages at once. Nothing may be lost all the same.
    if let Err(TrySendError::Full(message)) = to.try_send(message) {
        let to = to.clone();
        tokio::spawn(async move { to.send(message).await });
    }
}

/// Why a service with a limit is refused at an engine of which only reads are allowed.
pub(crate) fn explain_no_rights(engine: &str) -> String {
    format!(
        "the engine at {engine} lets no container be started from here, so none can wait for its turn: give --engine its \
         socket"
    )
}
