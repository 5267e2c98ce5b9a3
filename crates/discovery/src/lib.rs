//! The language of haproxy-discover: names, keys, settings, records, and the topology built from them.
//!
//! Pure: no I/O, no clock, nothing awaits, and no input panics. Every type that may reach `haproxy.cfg` or the Runtime API
//! holds no line break, quote, blank, `#` or `;`, for any text that it was parsed from.

mod refusal;

mod address;
mod domain;
mod name;
mod path;
mod span;
mod url_regex;
mod words;

mod key;
mod record;
mod setting;

mod acceptance;
mod balancer;
mod claim;
mod copies;
mod store;
mod topology;
mod verdict;

pub use acceptance::Acceptance;
pub use address::{Bind, Networks, UpstreamAddress};
pub use balancer::api as balancer_api;
pub use balancer::{BalancerRecord, BalancerRecords, QuarantinedKey, RetainedAfterReset};
pub use claim::{Claim, ClaimConflict, collect_claims, find_claim_conflicts};
pub use copies::{CopyReport, SlotReport, StandbyReport, explain_missing_copy};
pub use domain::{Domain, Host};
pub use key::{Key, KeyError, Kind, Layout, ServiceId};
pub use name::{Color, FileName, HostName, LogName, Node, Profile, ServiceName, UpstreamId};
pub use path::PathPrefix;
pub use record::{
    Author, LogEntry, Override, OverrideState, Slot, SlotNumber, Standby, StandbyReason, Timestamp, UnknownFields,
    Upstream, UpstreamState, Weight,
};
pub use refusal::{Excerpt, Refusal};
pub use setting::{
    Active, Balance, Check, Hsts, HttpCheck, Method, Proto, ProxyProtocol, Setting, SettingName, Sni, StatusRange,
    Sticky, StoredSetting, Tls, Verify,
};
pub use span::Span;
pub use store::{Change, Entry, ResetReason, Snapshot, StoreRevision};
pub use topology::{Copies, KeyLimits, LeftOutKeys, ParsedEntry, Service, Topology};
pub use url_regex::UrlRegex;
pub use verdict::{Cause, Reason, Verdict, find_intended_reasons};
