//! The watches of one stream, and the decision which of them a message is for. Pure: no I/O, no clock.
//!
//! etcd chooses each watch's id and names it in the answer to the creation. A refusal has no id, so one creation waits for
//! its answer before the next is requested, as in etcd's own client.

use std::collections::{BTreeMap, VecDeque};

use etcd_client::proto::PbWatchResponse;

/// The number of a watch on this side. It is unique for one connection.
pub(crate) type WatchNumber = u64;

/// The recipient of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// One watch.
    One(WatchNumber),
    /// One watch, which this message ends.
    Last(WatchNumber),
    /// One watch, which etcd refuses to create.
    Refused(WatchNumber),
    /// Every created watch. The message is a sign of life, or an end that names no watch.
    All,
    /// No watch. The creation was abandoned, so etcd's watch with this id must be canceled.
    Abandoned(i64),
    /// No watch. The message is about a canceled one.
    Nowhere,
    /// No watch. The message contradicts earlier ones.
    Contradiction(&'static str),
}

/// A creation that waits for etcd's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Creation {
    number: WatchNumber,
    /// True if the watch was removed meanwhile.
    is_abandoned: bool,
}

/// The watches of one stream.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// The watches that are not requested yet, the oldest first.
    waiting: VecDeque<WatchNumber>,
    creating: Option<Creation>,
    /// The watches by the ids that etcd gave them.
    created: BTreeMap<i64, WatchNumber>,
}

impl Routes {
    /// Adds a watch, which waits for its creation.
    pub(crate) fn add(&mut self, number: WatchNumber) {
        self.waiting.push_back(number);
    }

    /// The watch to request now. `None` if there is none, or if a creation waits for its answer.
    pub(crate) fn next_creation(&mut self) -> Option<WatchNumber> {
        if self.creating.is_some() {
            return None;
        }
        let number = self.waiting.pop_front()?;
        self.creating = Some(Creation { number, is_abandoned: false });
        Some(number)
    }

    /// True while a creation waits for its answer.
    pub(crate) fn is_creating(&self) -> bool {
        self.creating.is_some()
    }

    /// The created watches.
    pub(crate) fn created(&self) -> impl Iterator<Item = WatchNumber> {
        self.created.values().copied()
    }

    /// Removes the watches that are not requested yet.
    pub(crate) fn take_waiting(&mut self) -> Vec<WatchNumber> {
        self.waiting.drain(..).collect()
    }

    /// Removes a watch. Returns the id of the watch to cancel, if etcd has created it.
    pub(crate) fn remove(&mut self, number: WatchNumber) -> Option<i64> {
        self.waiting.retain(|waiting| *waiting != number);
        // etcd tells the id of a requested watch later. The watch is canceled then.
        if let Some(creation) = self.creating.as_mut().filter(|creation| creation.number == number) {
            creation.is_abandoned = true;
        }
        let (id, _) = self.created.iter().find(|(_, created)| **created == number)?;
        let id = *id;
        self.created.remove(&id);
        Some(id)
    }

    /// Decides which watch a message is for.
    pub(crate) fn route(&mut self, message: &PbWatchResponse) -> Route {
        let is_end = message.canceled || message.compact_revision > 0;
        if message.created {
            return self.route_creation(message.watch_id, is_end);
        }
        match self.created.get(&message.watch_id).copied() {
            Some(number) if is_end => {
                self.created.remove(&message.watch_id);
                Route::Last(number)
            }
            Some(number) => Route::One(number),
            // etcd's id for "no watch" is -1. Events without a watch would reach watches of other keys.
            None if message.watch_id < 0 && message.events.is_empty() => Route::All,
            None => Route::Nowhere,
        }
    }

    fn route_creation(&mut self, id: i64, is_refused: bool) -> Route {
        let Some(Creation { number, is_abandoned }) = self.creating.take() else { return Route::Nowhere };
        match (is_refused, is_abandoned) {
            (true, true) => Route::Nowhere,
            (true, false) => Route::Refused(number),
            (false, _) if id < 0 => Route::Contradiction("a watch was created without an id"),
            (false, _) if self.created.contains_key(&id) => Route::Contradiction("two watches have one id"),
            (false, true) => Route::Abandoned(id),
            (false, false) => {
                self.created.insert(id, number);
                Route::One(number)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbEvent;

    use super::*;

    fn message(watch_id: i64) -> PbWatchResponse {
        PbWatchResponse { watch_id, ..Default::default() }
    }

    fn created(watch_id: i64) -> PbWatchResponse {
        PbWatchResponse { created: true, ..message(watch_id) }
    }

    fn canceled(watch_id: i64) -> PbWatchResponse {
        PbWatchResponse { canceled: true, ..message(watch_id) }
    }

    /// The watches 10, 11, …, which etcd created with the ids 0, 1, ….
    fn with_watches(count: i64) -> Routes {
        let mut routes = Routes::default();
        for (number, id) in (10..).zip(0..count) {
            routes.add(number);
            assert_eq!(routes.next_creation(), Some(number));
            assert_eq!(routes.route(&created(id)), Route::One(number));
        }
        routes
    }

    #[test]
    fn each_watch_gets_its_own_messages() {
        let mut routes = with_watches(3);
        for (id, number) in [(1, 11), (0, 10), (2, 12), (1, 11)] {
            assert_eq!(routes.route(&message(id)), Route::One(number));
        }
        assert_eq!(routes.route(&message(7)), Route::Nowhere);
    }

    #[test]
    fn one_creation_waits_for_the_answer_to_the_one_before() {
        let mut routes = Routes::default();
        routes.add(10);
        routes.add(11);
        assert_eq!((routes.next_creation(), routes.is_creating()), (Some(10), true));
        assert_eq!(routes.next_creation(), None);
        assert_eq!(routes.route(&message(-1)), Route::All, "a sign of life is no answer");
        assert_eq!(routes.next_creation(), None);
        assert_eq!(routes.route(&created(0)), Route::One(10));
        assert_eq!((routes.next_creation(), routes.next_creation()), (Some(11), None));
    }

    #[test]
    fn a_refusal_without_an_id_is_for_the_watch_that_is_being_created() {
        let mut routes = with_watches(1);
        routes.add(11);
        routes.add(12);
        assert_eq!(routes.next_creation(), Some(11));
        let refused = PbWatchResponse { created: true, ..canceled(-1) };
        assert_eq!(routes.route(&refused), Route::Refused(11));
        assert_eq!(routes.next_creation(), Some(12));
        assert_eq!(routes.route(&created(1)), Route::One(12));
        assert_eq!(routes.route(&message(0)), Route::One(10), "the others go on");
    }

    #[test]
    fn a_cancel_or_a_compaction_ends_one_watch() {
        let mut routes = with_watches(3);
        assert_eq!(routes.route(&canceled(1)), Route::Last(11));
        let compacted = PbWatchResponse { compact_revision: 50, ..message(2) };
        assert_eq!(routes.route(&compacted), Route::Last(12));
        assert_eq!(routes.route(&message(1)), Route::Nowhere, "a late message");
        assert_eq!(routes.created().collect::<Vec<_>>(), [10]);
    }

    #[test]
    fn a_message_without_a_watch_is_for_all_unless_it_has_events() {
        let mut routes = with_watches(2);
        assert_eq!(routes.route(&message(-1)), Route::All);
        assert_eq!(routes.route(&canceled(-1)), Route::All);
        let foreign = PbWatchResponse { events: vec![PbEvent::default()], ..message(-1) };
        assert_eq!(routes.route(&foreign), Route::Nowhere);
    }

    #[test]
    fn a_removed_watch_is_canceled_once_etcd_has_it() {
        let mut routes = with_watches(2);
        assert_eq!(routes.remove(11), Some(1));
        assert_eq!(routes.remove(11), None);
        assert_eq!(routes.route(&canceled(1)), Route::Nowhere, "etcd's answer to the cancel");
        routes.add(12);
        routes.add(13);
        assert_eq!(routes.next_creation(), Some(12));
        assert_eq!((routes.remove(12), routes.remove(13)), (None, None));
        assert_eq!(routes.route(&created(2)), Route::Abandoned(2));
        assert_eq!(routes.next_creation(), None, "the waiting one is gone");
        routes.add(14);
        assert_eq!((routes.take_waiting(), routes.next_creation()), (vec![14], None));
        assert_eq!(routes.created().collect::<Vec<_>>(), [10]);
    }

    #[test]
    fn contradictions_are_found() {
        let mut routes = with_watches(1);
        assert_eq!(routes.route(&created(5)), Route::Nowhere, "no watch was requested");
        for id in [0, -1] {
            routes.add(11);
            assert_eq!(routes.next_creation(), Some(11));
            assert!(matches!(routes.route(&created(id)), Route::Contradiction(_)), "{id}");
        }
    }
}
