//! The JSON fields of a record or an override. Pure: no I/O, no clock.
//!
//! serde's `flatten` would read the values of unknown fields, and refuse the whole text for a number that is too large, half of a
//! surrogate pair, or 128 nested arrays. This reader passes over them.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::{UnknownFields, Weight};
use crate::{Color, HostName, UpstreamAddress};

/// The fields as they are given. A field that is `null` isn't given.
pub(super) struct Fields<State> {
    pub(super) address: Option<UpstreamAddress>,
    pub(super) weight: Option<Weight>,
    pub(super) color: Option<Color>,
    pub(super) state: Option<State>,
    pub(super) backup: Option<bool>,
    pub(super) permanent: Option<bool>,
    pub(super) host: Option<HostName>,
    pub(super) unknown: UnknownFields,
}

/// Reads the fields with these names. Others are unknown.
///
/// # Errors
/// If a known field has another type or is there twice, or if `address` is known and isn't given.
pub(super) fn read_fields<'de, D: Deserializer<'de>, State: Deserialize<'de>>(
    deserializer: D,
    known: &'static [&'static str],
) -> Result<Fields<State>, D::Error> {
    deserializer.deserialize_map(FieldsVisitor { known, state: PhantomData })
}

struct FieldsVisitor<State> {
    known: &'static [&'static str],
    state: PhantomData<State>,
}

impl<'de, State: Deserialize<'de>> Visitor<'de> for FieldsVisitor<State> {
    type Value = Fields<State>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields {
            address: None,
            weight: None,
            color: None,
            state: None,
            backup: None,
            permanent: None,
            host: None,
            unknown: UnknownFields::default(),
        };
        let mut seen = BTreeSet::new();
        while let Some(FieldName(name)) = map.next_key()? {
            let Some(known) = self.known.iter().find(|known| **known == name) else {
                map.next_value::<IgnoredAny>()?;
                fields.unknown.insert(name);
                continue;
            };
            if !seen.insert(*known) {
                return Err(A::Error::duplicate_field(known));
            }
            match *known {
                "address" => fields.address = map.next_value()?,
                "weight" => fields.weight = map.next_value()?,
                "color" => fields.color = map.next_value()?,
                "state" => fields.state = map.next_value()?,
                "backup" => fields.backup = map.next_value()?,
                "permanent" => fields.permanent = map.next_value()?,
                "host" => fields.host = map.next_value()?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        // Here, so that the message has the place.
        if self.known.contains(&"address") && fields.address.is_none() {
            return Err(A::Error::missing_field("address"));
        }
        Ok(fields)
    }
}

/// A field's name. JSON allows names that are no text, such as `"\ud800"`. None of them is known.
struct FieldName(String);

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As text, serde_json would refuse half of a surrogate pair.
        deserializer.deserialize_bytes(FieldNameVisitor)
    }
}

struct FieldNameVisitor;

impl Visitor<'_> for FieldNameVisitor {
    type Value = FieldName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<FieldName, E> {
        Ok(FieldName(String::from_utf8_lossy(name).into_owned()))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<FieldName, E> {
        Ok(FieldName(name.to_owned()))
    }
}
