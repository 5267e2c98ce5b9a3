//! An upstream's record, an operator's override, a copy's slot or stand-by, and an entry of the change log, as text that people read and write.
//!
//! Whether an upstream serves is decided elsewhere, from its record, override and color. Pure: no I/O, no clock.

mod fields;
mod log_entry;
#[cfg(test)]
mod schemas;
mod slot;
mod timestamp;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use crate::refusal::escape_text;
use crate::store::{LONGEST_RECORD, value_length};
use crate::{Color, HostName, Refusal, UpstreamAddress};
use fields::read_fields;

pub use log_entry::{Author, LogEntry};
#[cfg(test)]
pub(crate) use schemas::tidy_schema;
pub use slot::{Slot, SlotNumber, Standby, StandbyReason};
pub use timestamp::Timestamp;

/// A server's weight, 0 to 256 as in HAProxy (configuration manual, section 5.2, `weight`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("maximum" = 256)))]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u16);

impl Weight {
    /// HAProxy's largest weight.
    pub const MAX: u16 = 256;
    /// The weight of a record that names none. It leaves room for larger and smaller shares.
    pub const DEFAULT: Self = Self(100);

    /// The weight as a number, 0 to 256.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for Weight {
    type Error = Refusal;

    fn try_from(number: u32) -> Result<Self, Refusal> {
        let weight = u16::try_from(number).ok().filter(|weight| *weight <= Self::MAX);
        weight.map(Self).ok_or_else(|| Refusal::new_unexpected(&number.to_string(), "a weight from 0 to 256"))
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0.into()
    }
}

impl FromStr for Weight {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let number = text.parse::<u32>();
        number.map_err(|_| Refusal::new_unexpected(text, "a weight from 0 to 256"))?.try_into()
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The state that an announcer gives its upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum UpstreamState {
    /// The upstream takes requests.
    #[default]
    Ready,
    /// The upstream is about to stop. HAProxy sends no new request, and those in flight finish.
    Drain,
    /// The announcer's check fails. HAProxy treats the upstream as it treats `drain`.
    Down,
}

/// An upstream's record: `172.17.8.101:8000`, or JSON with the same and more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Upstream {
    /// The address that HAProxy connects to.
    #[cfg_attr(test, schemars(with = "String"))]
    pub address: UpstreamAddress,
    /// The share among the upstreams of its color.
    #[serde(skip_serializing_if = "is_default")]
    pub weight: Weight,
    /// The deployment that the upstream belongs to. `None` serves only while the service has no `active`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub color: Option<Color>,
    /// The state that the announcer wrote.
    #[serde(skip_serializing_if = "is_default")]
    pub state: UpstreamState,
    /// True if the upstream serves only while no other upstream of the service is up.
    #[serde(skip_serializing_if = "is_default")]
    pub backup: bool,
    /// True if the record is meant to have no lease, so that `discoverctl lint` doesn't report it.
    #[serde(skip_serializing_if = "is_default")]
    pub permanent: bool,
    /// The host that the upstream runs on. No balancer needs it. `discoverctl drain --host` selects upstreams by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub host: Option<HostName>,
    /// Fields with an unknown name, for `discoverctl lint`.
    #[serde(skip)]
    pub unknown: UnknownFields,
}

/// An operator's override of an upstream. It outlives the announcer's writes and the record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Override {
    /// The state that HAProxy gives the upstream. `None` leaves the record's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<OverrideState>,
    /// The weight instead of the record's. `None` leaves the record's weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// The host that was taken out as a whole, by `discoverctl drain --host` or `maint --host`. `ready --host` takes back only
    /// overrides that name the host. `None` for an override of this upstream alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub host: Option<HostName>,
    /// Fields with an unknown name, for `discoverctl lint`.
    #[serde(skip)]
    pub unknown: UnknownFields,
}

/// The state of an override.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OverrideState {
    /// HAProxy sends no new client. Clients with a cookie for this upstream stay.
    Drain,
    /// HAProxy sends no new request at all.
    Maint,
}

/// The names of JSON fields that mean nothing. Their values are ignored, and never written.
#[expect(clippy::box_collection, reason = "of a balancer's 100,000 records next to none has such a field")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownFields(Option<Box<BTreeSet<String>>>);

impl UnknownFields {
    /// The names, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &String> {
        self.0.iter().flat_map(|names| names.iter())
    }

    /// True if every field is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn insert(&mut self, name: String) {
        self.0.get_or_insert_default().insert(name);
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let known = &["address", "weight", "color", "state", "backup", "permanent", "host"];
        let fields = read_fields::<D, UpstreamState>(deserializer, known)?;
        Ok(Self {
            address: fields.address.ok_or_else(|| D::Error::missing_field("address"))?,
            weight: fields.weight.unwrap_or_default(),
            color: fields.color,
            state: fields.state.unwrap_or_default(),
            backup: fields.backup.unwrap_or_default(),
            permanent: fields.permanent.unwrap_or_default(),
            host: fields.host,
            unknown: fields.unknown,
        })
    }
}

impl<'de> Deserialize<'de> for Override {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = read_fields(deserializer, &["state", "weight", "host"])?;
        Ok(Self { state: fields.state, weight: fields.weight, host: fields.host, unknown: fields.unknown })
    }
}

impl Upstream {
    /// An upstream with this address, and the default of every other field.
    pub fn from_address(address: UpstreamAddress) -> Self {
        Self {
            address,
            weight: Weight::DEFAULT,
            color: None,
            state: UpstreamState::Ready,
            backup: false,
            permanent: false,
            host: None,
            unknown: UnknownFields::default(),
        }
    }

    /// Reads a record. A value that begins with `{` is JSON, any other one is an address.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        let text = decode_text(value)?;
        if text.starts_with('{') { parse_json(text) } else { text.parse().map(Self::from_address) }
    }
}

/// Prints the shortest form: the address if every other field has its default, else JSON.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::from_address(self.address) {
            return self.address.fmt(f);
        }
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Override {
    /// Reads an override, always JSON.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        parse_json(decode_text(value)?)
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

fn decode_text(value: &[u8]) -> Result<&str, Refusal> {
    let length = value_length(value);
    if length > LONGEST_RECORD {
        return Err(Refusal::TooLong { length, limit: LONGEST_RECORD });
    }
    // `etcdctl put` from a file or a pipe leaves a line feed at the end.
    let text = std::str::from_utf8(value).map_err(|_| Refusal::NotText)?.trim();
    if text.is_empty() { Err(Refusal::Empty) } else { Ok(text) }
}

fn parse_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Refusal> {
    // serde repeats a piece of the value in its message, which may hold control characters.
    serde_json::from_str(text).map_err(|error| Refusal::Json(escape_text(&error.to_string(), 200).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_json_say_the_same() {
        let plain = Upstream::parse(b"172.17.8.101:8000\n").unwrap();
        let json = Upstream::parse(br#"{"address":"172.17.8.101:8000"}"#).unwrap();
        assert_eq!(plain, json);
        assert_eq!(json.to_string(), "172.17.8.101:8000");
    }

    #[test]
    fn json_says_more() {
        let text =
            r#"{"address":"10.0.0.1:80","weight":7,"color":"blue","state":"drain","backup":true,"host":"web1.test"}"#;
        let read = Upstream::parse(text.as_bytes()).unwrap();
        assert_eq!(read.to_string(), text);
        let odd = Upstream::parse(br#"{"address":"10.0.0.1:80","wieght":7}"#).unwrap();
        assert_eq!(odd.unknown.iter().collect::<Vec<_>>(), ["wieght"]);
    }

    #[test]
    fn a_field_that_is_null_is_not_given() {
        let fields = ["weight", "color", "state", "backup", "permanent", "host"];
        let fields = fields.map(|name| format!(r#","{name}":null"#)).concat();
        let text = format!(r#"{{"address":"10.0.0.1:80"{fields}}}"#);
        assert_eq!(Upstream::parse(text.as_bytes()), Upstream::parse(b"10.0.0.1:80"));
        assert_eq!(Override::parse(br#"{"state":null,"weight":null}"#), Override::parse(b"{}"));
        let why = Upstream::parse(br#"{"address":null}"#).unwrap_err().to_string();
        assert_eq!(why, "JSON: missing field `address` at line 1 column 16");
    }

    #[test]
    fn an_unknown_field_voids_no_record() {
        let deep = format!("{}{}", "[".repeat(400), "]".repeat(400));
        for odd in
            ["1e99999", r#""\ud800""#, r#"{"a":"\udc00\ud800"}"#, "-0.1E-99999", "99999999999999999999999", &deep]
        {
            for name in ["x", r"\ud800", "\u{e4}"] {
                let record = format!(r#"{{"{name}":{odd},"address":"10.0.0.1:80","{name}":{odd},"weight":7}}"#);
                let read = Upstream::parse(record.as_bytes()).unwrap_or_else(|why| panic!("{record}: {why}"));
                assert_eq!((read.weight.get(), read.unknown.iter().count()), (7, 1), "{record}");
                let imposed = format!(r#"{{"{name}":{odd},"address":{odd},"state":"maint"}}"#);
                let imposed = Override::parse(imposed.as_bytes()).unwrap();
                assert_eq!((imposed.state, imposed.unknown.iter().count()), (Some(OverrideState::Maint), 2));
            }
        }
        for broken in [
            r#"{"address":"10.0.0.1:80","x":1e}"#,
            r#"{"address":"10.0.0.1:80","x":[}"#,
            r#"{"address":"10.0.0.1:80"} x"#,
        ] {
            assert!(Upstream::parse(broken.as_bytes()).is_err(), "{broken}");
        }
        let twice = Upstream::parse(br#"{"address":"10.0.0.1:80","weight":1,"weight":2}"#).unwrap_err().to_string();
        assert!(twice.starts_with("JSON: duplicate field `weight`"), "{twice}");
    }

    #[test]
    fn refused_records_say_why() {
        let why = |value: &str| Upstream::parse(value.as_bytes()).unwrap_err().to_string();
        expect_test::expect!["`node:80`: an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000"]
            .assert_eq(&why("node:80"));
        expect_test::expect!["JSON: missing field `address` at line 1 column 2"].assert_eq(&why("{}"));
        expect_test::expect!["JSON: `257`: expected a weight from 0 to 256 at line 1 column 38"]
            .assert_eq(&why(r#"{"address":"10.0.0.1:80","weight":257}"#));
        for host in ["", "my host", "a;b", "a/b", r"a\n", "[fd00::1]", &"a".repeat(254)] {
            let record = format!(r#"{{"address":"10.0.0.1:80","host":"{host}"}}"#);
            assert!(why(&record).contains("the name of a host"), "{record}");
        }
        expect_test::expect!["empty: delete the key to unset it"].assert_eq(&why(" "));
    }

    #[test]
    fn an_override_is_json_with_a_state_or_a_weight() {
        assert_eq!(Override::parse(br#"{"state":"maint"}"#).unwrap().state, Some(OverrideState::Maint));
        assert_eq!(Override::parse(br#"{"weight":10}"#).unwrap().weight.map(Weight::get), Some(10));
        let whole_host = r#"{"state":"drain","weight":10,"host":"web1"}"#;
        assert_eq!(Override::parse(whole_host.as_bytes()).unwrap().to_string(), whole_host);
        assert!(Override::parse(br#"{"state":"ready"}"#).is_err());
        assert!(Override::parse(b"drain").is_err());
    }
}
