//! The judgement on a service's limited number of copies: how many are wanted, run and stand by, and why one doesn't
//! run.
//!
//! It judges what the slots and stand-bys say, and gives no slot to any copy. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use serde::Serialize;

use crate::{
    Cause, Copies, HostName, ParsedEntry, Reason, Slot, SlotNumber, Standby, StandbyReason, Timestamp, UpstreamId,
};

/// The most hosts that a sentence names.
const MAX_NAMED_HOSTS: usize = 5;

/// A service's copies, for programs and people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// The number of copies that the newest of the keys asks for. `None` if no key says it.
    pub wanted: Option<u16>,
    /// The number of slots that are taken.
    pub running: usize,
    /// The number of copies that wait for a slot.
    pub standing_by: usize,
    /// The slots that are taken, by number.
    pub slots: Vec<SlotReport>,
    /// The copies that wait for a slot, by id.
    pub standby: Vec<StandbyReport>,
    /// The reason why fewer copies run than are wanted, or more. `None` if as many run, or if no key says how many are wanted.
    pub remark: Option<String>,
}

/// A slot that is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotReport {
    /// The slot's number.
    pub number: u16,
    /// The copy that holds it. `None` if the key's value can't be read.
    pub id: Option<String>,
    /// The host that the copy runs on.
    pub host: Option<String>,
    /// The time when the copy took the slot, RFC 3339 in UTC.
    pub since: Option<String>,
    /// True if the copy is about to stop, and hands the slot over.
    pub leaving: bool,
    /// The copy that starts to take the slot over.
    pub successor: Option<String>,
    /// The reason why the key's value can't be read. The slot is taken all the same.
    pub refused: Option<String>,
}

/// A copy that waits for a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StandbyReport {
    /// The id that the copy's upstream has once it runs.
    pub id: String,
    /// The host that it would run on.
    pub host: Option<String>,
    /// Its `--prefer`.
    pub prefer: u16,
    /// The time since when it stands by, RFC 3339 in UTC.
    pub since: Option<String>,
    /// The time until when it takes no slot, RFC 3339 in UTC. `None` if it takes the next one that is free.
    pub until: Option<String>,
    /// The reason why it doesn't run.
    pub why: String,
}

impl CopyReport {
    /// Judges the copies of one service.
    pub fn new(copies: &Copies) -> Self {
        let judged = JudgedCopies::new(copies);
        Self {
            wanted: judged.wanted.map(NonZeroU16::get),
            running: judged.running,
            standing_by: copies.standby().count(),
            slots: copies.slots().map(|(number, parsed)| SlotReport::new(number, parsed)).collect(),
            standby: copies.standby().map(|(id, parsed)| StandbyReport::new(id, parsed, &judged)).collect(),
            remark: judged.remark(copies),
        }
    }

    /// True if fewer copies run than are wanted.
    pub fn lacks_copies(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.running < usize::from(wanted))
    }

    /// The counts in one cell: `2 of 3, 1 standing by`.
    pub fn summary(&self) -> String {
        let running = match self.wanted {
            Some(wanted) => format!("{} of {wanted}", self.running),
            None => self.running.to_string(),
        };
        if self.standing_by == 0 { running } else { format!("{running}, {} standing by", self.standing_by) }
    }
}

impl SlotReport {
    fn new(number: SlotNumber, parsed: &ParsedEntry<Slot>) -> Self {
        let slot = parsed.value.as_ref().ok();
        Self {
            number: number.get(),
            id: slot.map(|slot| slot.id.to_string()),
            host: slot.and_then(|slot| slot.host.as_ref()).map(ToString::to_string),
            since: slot.and_then(|slot| slot.since).map(|since| since.to_string()),
            leaving: slot.is_some_and(|slot| slot.leaving),
            successor: slot.and_then(|slot| slot.successor.as_ref()).map(ToString::to_string),
            refused: parsed.refusal_text(),
        }
    }
}

impl StandbyReport {
    fn new(id: &UpstreamId, parsed: &ParsedEntry<Standby>, judged: &JudgedCopies) -> Self {
        let standby = parsed.value.as_ref().ok();
        Self {
            id: id.to_string(),
            host: standby.and_then(|standby| standby.host.as_ref()).map(ToString::to_string),
            prefer: standby.map(|standby| standby.prefer).unwrap_or_default(),
            since: standby.and_then(|standby| standby.since).map(|since| since.to_string()),
            until: standby.and_then(|standby| standby.until).map(|until| until.to_string()),
            why: judged.explain_standby(id, parsed),
        }
    }
}

/// The reason why a copy without a record gets no requests: it stands by, or its app doesn't work yet. `None` if no slot and no
/// stand-by names the copy.
pub fn explain_missing_copy(copies: &Copies, id: &UpstreamId) -> Option<Reason> {
    let holds = |slot: &Slot| slot.id == *id;
    let held = copies.slots().find(|(_, parsed)| parsed.value.as_ref().is_ok_and(holds));
    if let Some((number, parsed)) = held {
        let since = parsed.value.as_ref().ok().and_then(|slot| slot.since);
        let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
        let words =
            format!("it is not in the store: the copy holds slot {number}{since}, and its app doesn't work yet");
        return Some(Cause::NoRecord.into_reason(words));
    }
    let judged = JudgedCopies::new(copies);
    let standby = copies.standby().find(|(standby, _)| *standby == id);
    let why = standby.map(|(_, parsed)| judged.explain_standby(id, parsed));
    let why = why.or_else(|| judged.explain_successor(id))?;
    Some(Cause::StandsBy.into_reason(format!("it stands by: {why}")))
}

/// The figures that all sentences about a service's copies share.
struct JudgedCopies {
    wanted: Option<NonZeroU16>,
    running: usize,
    /// The hosts of the running copies, `?` for one without a name.
    hosts: BTreeSet<String>,
    /// By the copy that starts to take a slot over, the slot and the copy that holds it.
    successors: BTreeMap<UpstreamId, (SlotNumber, UpstreamId)>,
}

impl JudgedCopies {
    fn new(copies: &Copies) -> Self {
        let asked = copies.slots().filter_map(|(_, parsed)| asked_replicas(parsed, |slot| slot.replicas));
        let asked = asked.chain(copies.standby().filter_map(|(_, parsed)| asked_replicas(parsed, |it| it.replicas)));
        // While an operator changes the number on one host after the other, the newest key has the new one.
        let newest = asked.max_by_key(|(revision, _)| *revision);
        let host = |parsed: &ParsedEntry<Slot>| parsed.value.as_ref().ok().and_then(|slot| slot.host.clone());
        let slots = copies.slots().filter_map(|(number, parsed)| Some((number, parsed.value.as_ref().ok()?)));
        let successors = slots.filter_map(|(number, slot)| Some((slot.successor.clone()?, (number, slot.id.clone()))));
        let named = |host: Option<HostName>| host.map_or_else(|| "?".to_owned(), |host| host.to_string());
        Self {
            wanted: newest.map(|(_, replicas)| replicas),
            running: copies.slots().count(),
            hosts: copies.slots().map(|(_, parsed)| named(host(parsed))).collect(),
            successors: successors.collect(),
        }
    }

    /// The slot that the copy is about to take over.
    fn explain_successor(&self, id: &UpstreamId) -> Option<String> {
        let (number, holder) = self.successors.get(id)?;
        Some(format!("it starts to take slot {number} over from {holder}, and its app doesn't work yet"))
    }

    /// `2 of 2 copies run, at web-1, web-2`.
    fn describe_running(&self) -> String {
        let count = match self.wanted {
            Some(wanted) => format!("{} of {wanted} copies run", self.running),
            None => format!("{} copies run", self.running),
        };
        let named: Vec<&str> = self.hosts.iter().take(MAX_NAMED_HOSTS).map(String::as_str).collect();
        match self.hosts.len().saturating_sub(MAX_NAMED_HOSTS) {
            _ if named.is_empty() => count,
            0 => format!("{count}, at {}", named.join(", ")),
            more => format!("{count}, at {} and {more} more hosts", named.join(", ")),
        }
    }

    /// The number of wanted copies that don't run.
    fn lacking(&self) -> usize {
        self.wanted.map_or(0, |wanted| usize::from(wanted.get()).saturating_sub(self.running))
    }

    /// The reason why a copy that stands by doesn't run.
    fn explain_standby(&self, id: &UpstreamId, parsed: &ParsedEntry<Standby>) -> String {
        if let Some(why) = self.explain_successor(id) {
            return why;
        }
        let running = self.describe_running();
        let standby = match &parsed.value {
            Ok(standby) => standby,
            Err(refusal) => return format!("its reason can't be read ({refusal}); {running}"),
        };
        let until = standby.until.map(|until| format!(", and takes no slot until {until}")).unwrap_or_default();
        match standby.reason {
            StandbyReason::CrashLoop => format!("its app ended too often in a row{until}; {running}"),
            StandbyReason::NoSlot if self.lacking() > 0 => {
                format!("a slot is free, which it may take{until}; {running}")
            }
            StandbyReason::NoSlot => format!("no slot is free{until}: {running}"),
            StandbyReason::Other => {
                format!("its announcer says a reason that this release doesn't know{until}; {running}")
            }
        }
    }

    /// The reason why fewer copies run than are wanted, or more.
    fn remark(&self, copies: &Copies) -> Option<String> {
        let wanted = usize::from(self.wanted?.get());
        let running = self.describe_running();
        if self.running > wanted {
            return Some(format!("{running}: the youngest stop"));
        }
        if self.running == wanted {
            return None;
        }
        let standby: Vec<_> = copies.standby().collect();
        if standby.is_empty() {
            return Some(format!("{running}, and no other announcer stands by: start one on another host"));
        }
        let ready = standby.iter().find(|(_, parsed)| parsed.value.as_ref().is_ok_and(is_candidate));
        if let Some((id, parsed)) = ready {
            let host = parsed.value.as_ref().ok().and_then(|standby| standby.host.as_ref());
            let host = host.map(|host| format!(" at {host}")).unwrap_or_default();
            return Some(format!("{running}, and {id}{host} may take a free slot"));
        }
        let times = standby.iter().filter_map(|(_, parsed)| parsed.value.as_ref().ok()?.until);
        let first = times.min().map(|until: Timestamp| format!(" until {until}")).unwrap_or_default();
        Some(format!("{running}, and no copy that stands by takes a slot{first}: see why with discoverctl explain"))
    }
}

/// True if the copy takes the next free slot.
fn is_candidate(standby: &Standby) -> bool {
    standby.reason == StandbyReason::NoSlot && standby.until.is_none()
}

/// The number of copies that a key asks for, and the revision at which that was written.
fn asked_replicas<T>(
    parsed: &ParsedEntry<T>,
    replicas: impl Fn(&T) -> Option<NonZeroU16>,
) -> Option<(i64, NonZeroU16)> {
    Some((parsed.entry.mod_revision, replicas(parsed.value.as_ref().ok()?)?))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::{Entry, Topology};

    /// A service with these keys below its folder, each written one revision after the one before.
    fn copies(keys: &[(&str, &str)]) -> Copies {
        let entry = |((key, value), revision): (&(&str, &str), i64)| Entry {
            key: format!("http-services/shop/{key}"),
            value: (*value).into(),
            create_revision: revision,
            mod_revision: revision,
            lease: 7,
        };
        let entries: Vec<Entry> = keys.iter().zip(1..).map(entry).collect();
        let topology = Topology::from_entries(&entries);
        topology.copies().values().next().map(|copies| Copies::clone(copies)).unwrap_or_default()
    }

    /// The counts, the remark, and the reason of each copy.
    fn table(keys: &[(&str, &str)]) -> String {
        let copies = copies(keys);
        let report = CopyReport::new(&copies);
        let mut lines = vec![report.summary()];
        lines.extend(report.remark.clone());
        lines.extend(
            report.slots.iter().filter_map(|slot| Some(format!("slot {}: {}", slot.number, slot.refused.as_ref()?))),
        );
        lines.extend(report.standby.iter().map(|standby| format!("{}: {}", standby.id, standby.why)));
        assert_eq!(report.lacks_copies(), report.wanted.is_some_and(|wanted| report.running < usize::from(wanted)));
        lines.join("\n") + "\n"
    }

    const ONE: (&str, &str) = ("slots/1", r#"{"id":"a","host":"web-1","replicas":2,"since":"2026-11-30T10:00:00Z"}"#);
    const TWO: (&str, &str) = ("slots/2", r#"{"id":"b","host":"web-2","replicas":2}"#);
    const THIRD: (&str, &str) = ("standby/c", r#"{"host":"web-3","prefer":1,"replicas":2}"#);
    const LOOP: (&str, &str) =
        ("standby/d", r#"{"host":"web-4","replicas":2,"reason":"crash-loop","until":"2026-11-30T10:05:00Z"}"#);

    #[test]
    fn each_state_of_the_copies_is_explained() {
        let all = [
            &[ONE, TWO][..],
            &[ONE, TWO, THIRD, LOOP],
            &[ONE],
            &[ONE, THIRD],
            &[ONE, LOOP],
            &[LOOP],
            &[ONE, TWO, ("slots/3", r#"{"id":"e"}"#)],
            &[("slots/1", r#"{"id":"a"}"#), ("standby/b", "{}")],
            &[ONE, ("slots/2", "?"), ("standby/b", "?"), ("standby/x", r#"{"reason":"moon-phase"}"#)],
        ];
        let text = all.map(table).join("\n");
        expect![[r#"
            2 of 2

            2 of 2, 2 standing by
            c: no slot is free: 2 of 2 copies run, at web-1, web-2
            d: its app ended too often in a row, and takes no slot until 2026-11-30T10:05:00Z; 2 of 2 copies run, at web-1, web-2

            1 of 2
            1 of 2 copies run, at web-1, and no other announcer stands by: start one on another host

            1 of 2, 1 standing by
            1 of 2 copies run, at web-1, and c at web-3 may take a free slot
            c: a slot is free, which it may take; 1 of 2 copies run, at web-1

            1 of 2, 1 standing by
            1 of 2 copies run, at web-1, and no copy that stands by takes a slot until 2026-11-30T10:05:00Z: see why with discoverctl explain
            d: its app ended too often in a row, and takes no slot until 2026-11-30T10:05:00Z; 1 of 2 copies run, at web-1

            0 of 2, 1 standing by
            0 of 2 copies run, and no copy that stands by takes a slot until 2026-11-30T10:05:00Z: see why with discoverctl explain
            d: its app ended too often in a row, and takes no slot until 2026-11-30T10:05:00Z; 0 of 2 copies run

            3 of 2
            3 of 2 copies run, at ?, web-1, web-2: the youngest stop

            1, 1 standing by
            b: no slot is free: 1 copies run, at ?

            2 of 2, 2 standing by
            slot 2: JSON: expected value at line 1 column 1
            b: its reason can't be read (JSON: expected value at line 1 column 1); 2 of 2 copies run, at ?, web-1
            x: its announcer says a reason that this release doesn't know; 2 of 2 copies run, at ?, web-1
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn the_newest_key_says_how_many_copies_are_wanted() {
        let newer = [ONE, TWO, ("standby/c", r#"{"replicas":3}"#)];
        assert_eq!(CopyReport::new(&copies(&newer)).wanted, Some(3));
        let back = [("standby/c", r#"{"replicas":3}"#), ONE, TWO];
        assert_eq!(CopyReport::new(&copies(&back)).wanted, Some(2));
        assert_eq!(CopyReport::new(&Copies::default()).wanted, None);
    }

    #[test]
    fn a_copy_without_a_record_is_explained() {
        let copies = copies(&[ONE, TWO, THIRD]);
        let explain = |id: &str| explain_missing_copy(&copies, &id.parse().unwrap());
        let starting = explain("a").unwrap();
        assert_eq!(starting.cause, Cause::NoRecord);
        assert!(starting.words.contains("holds slot 1 since 2026-11-30T10:00:00Z"), "{starting:?}");
        let waiting = explain("c").unwrap();
        assert_eq!(waiting.cause, Cause::StandsBy);
        assert_eq!(waiting.words, "it stands by: no slot is free: 2 of 2 copies run, at web-1, web-2");
        assert_eq!(explain("z"), None);
    }

    #[test]
    fn a_copy_that_takes_a_slot_over_is_explained() {
        let leaving = ("slots/1", r#"{"id":"a","host":"web-1","replicas":1,"leaving":true,"successor":"c"}"#);
        let why = "it starts to take slot 1 over from a, and its app doesn't work yet";
        for keys in [&[leaving, THIRD][..], &[leaving]] {
            let copies = copies(keys);
            let reason = explain_missing_copy(&copies, &"c".parse().unwrap()).unwrap();
            assert_eq!((reason.cause, reason.words), (Cause::StandsBy, format!("it stands by: {why}")));
            let report = CopyReport::new(&copies);
            assert_eq!((report.slots[0].leaving, report.slots[0].successor.as_deref()), (true, Some("c")));
            assert!(report.standby.iter().all(|standby| standby.why == why));
        }
    }
}
