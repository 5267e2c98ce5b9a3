//! The limited number of copies of a service: the slot of one that runs, and the stand-by of one that waits for a slot.
//!
//! It says only what the values hold. Announcers decide which copy gets a slot. Pure: no I/O, no clock.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Timestamp, decode_text, parse_json};
use crate::{HostName, Refusal, UpstreamId};

/// A slot's number, 1 to 65,535, the `<n>` of `slots/<n>`. It has one form, without leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNumber(NonZeroU16);

impl SlotNumber {
    /// The number of a slot.
    pub fn new(number: NonZeroU16) -> Self {
        Self(number)
    }

    /// The slot's number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for SlotNumber {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        // `parse` reads `+1` and `01` too, which would be further keys for slot 1.
        let number = text.parse::<NonZeroU16>().ok().filter(|number| number.to_string() == text);
        number.map(Self).ok_or_else(|| Refusal::new_unexpected(text, "a slot's number from 1 to 65535"))
    }
}

impl fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The value of `slots/<n>`: the copy of the service that holds the slot, and so may run. Its announcer writes it under its
/// lease. Unknown fields are ignored, so that a newer announcer may add some. None may be called `address`: releases that
/// know no slots would take the key for an upstream's record in a wrong folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Slot {
    /// The name of the copy's upstream, whose record comes once the copy works.
    #[cfg_attr(test, schemars(with = "String"))]
    pub id: UpstreamId,
    /// The host that the copy runs on. `None` if the announcer doesn't know its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub host: Option<HostName>,
    /// The number of copies that the announcer was told to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<NonZeroU16>,
    /// The time when the copy took the slot, by its host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// True if the copy is about to stop, and a copy that stands by may start beside it and take the slot over.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub leaving: bool,
    /// The copy that starts to take the slot over. `None` before one does, and for a slot that isn't leaving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub successor: Option<UpstreamId>,
}

impl Slot {
    /// Reads a slot, always JSON.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        parse_json(decode_text(value)?)
    }
}

/// Prints the JSON value that [`Slot::parse`] reads.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// The value of `standby/<id>`: a copy of the service that doesn't run, and waits for a slot. Its announcer writes it under its
/// lease. Unknown fields are ignored, and none may be called `address`, as with [`Slot`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Standby {
    /// The host that the copy would run on. `None` if the announcer doesn't know its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub host: Option<HostName>,
    /// Among copies on hosts without a running copy, the one with the highest number gets a free slot.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub prefer: u16,
    /// The number of copies that the announcer was told to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<NonZeroU16>,
    /// The time since when the copy stands by, by its host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The reason why the copy doesn't run.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub reason: StandbyReason,
    /// The time until when the copy takes no slot, by its host's clock. `None` if it takes the next one that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// The reason why a copy doesn't run, as its announcer says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StandbyReason {
    /// All slots are taken.
    #[default]
    NoSlot,
    /// The app ended too often in a row. The announcer tries it again after `until`.
    CrashLoop,
    /// A reason of a newer release.
    #[serde(other)]
    Other,
}

impl Standby {
    /// Reads a stand-by, always JSON.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        parse_json(decode_text(value)?)
    }
}

/// Prints the JSON value that [`Standby::parse`] reads.
impl fmt::Display for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_and_prints() {
        let text = r#"{"id":"node-1-8000","host":"node-1","replicas":2,"since":"2026-11-30T10:13:06Z"}"#;
        let slot = Slot::parse(text.as_bytes()).unwrap();
        assert_eq!(slot.to_string(), text);
        assert_eq!((slot.id.as_str(), slot.replicas.map(NonZeroU16::get)), ("node-1-8000", Some(2)));
        let leaving = r#"{"id":"a","leaving":true,"successor":"b"}"#;
        assert_eq!(Slot::parse(leaving.as_bytes()).unwrap().to_string(), leaving);
        let short = Slot::parse(b" {\"id\":\"a\",\"host\":null,\"fence\":[1e99999]}\n").unwrap();
        assert_eq!(short.to_string(), r#"{"id":"a"}"#);
    }

    #[test]
    fn a_standby_reads_and_prints() {
        let text = r#"{"host":"node-2","prefer":7,"replicas":2,"since":"2026-11-30T10:13:06Z","reason":"crash-loop","until":"2026-11-30T10:14:06Z"}"#;
        let standby = Standby::parse(text.as_bytes()).unwrap();
        assert_eq!(standby.to_string(), text);
        assert!(standby.until > standby.since && standby.reason == StandbyReason::CrashLoop);
        assert_eq!(Standby::parse(b"{}"), Ok(Standby::default()));
        assert_eq!(Standby::default().to_string(), "{}");
        let newer = Standby::parse(br#"{"reason":"moon-phase","phase":{"a":[]}}"#).unwrap();
        assert_eq!(newer.reason, StandbyReason::Other);
    }

    #[test]
    fn a_dangerous_or_missing_field_is_refused() {
        for bad in [
            "",
            "{}",
            "7",
            r#"{"id":"a b"}"#,
            r#"{"id":"a","host":"x;y"}"#,
            r#"{"id":"a","host":"x\ny"}"#,
            r#"{"id":"a","replicas":0}"#,
            r#"{"id":"a","replicas":65536}"#,
            r#"{"id":"a","since":"yesterday"}"#,
            r#"{"id":"a","id":"b"}"#,
            r#"{"id":"a","leaving":1}"#,
            r#"{"id":"a","successor":"b c"}"#,
        ] {
            let refusal = Slot::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(!refusal.contains(char::is_control), "{refusal}");
        }
        for bad in ["", "yes", r#"{"prefer":-1}"#, r#"{"reason":7}"#, r#"{"until":1}"#, r#"{"host":""}"#] {
            assert!(Standby::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(matches!(Slot::parse(&vec![b' '; 5_000]), Err(Refusal::TooLong { .. })));
    }

    #[test]
    fn a_slots_number_has_one_form() {
        assert_eq!("65535".parse::<SlotNumber>().unwrap().get(), u16::MAX);
        for bad in ["", "0", "01", "+1", "-1", "1.0", " 1", "65536", "x"] {
            assert!(bad.parse::<SlotNumber>().is_err(), "{bad}");
        }
    }
}
