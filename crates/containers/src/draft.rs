//! A service as labels describe it, before its values are read. All dialects make drafts, and one function reads them.
//! Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use discovery::{Color, Excerpt, Kind, ServiceId, ServiceName, Setting, SettingName, Weight};

use crate::fault::LabelFault;
use crate::service::{CopyLimit, LabelCheck, LabelledService};

/// A longer value is not parsed. etcd takes more, but no person writes it into a label.
const LONGEST_VALUE: usize = 4096;

/// The longest path of a check.
const LONGEST_PATH: usize = 1024;

/// What a label can say of a service, besides its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FieldName {
    Service,
    Type,
    Domain,
    Path,
    Ports,
    Tls,
    Port,
    Weight,
    Color,
    Check,
    Replicas,
    Prefer,
}

impl FieldName {
    pub(crate) const ALL: [(&'static str, Self); 12] = [
        ("service", Self::Service),
        ("type", Self::Type),
        ("domain", Self::Domain),
        ("path", Self::Path),
        ("ports", Self::Ports),
        ("tls", Self::Tls),
        ("port", Self::Port),
        ("weight", Self::Weight),
        ("color", Self::Color),
        ("check", Self::Check),
        ("replicas", Self::Replicas),
        ("prefer", Self::Prefer),
    ];

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, field)| *field)
    }
}

/// Drafts with the faults that were found while they were made.
#[derive(Debug, Default)]
pub(crate) struct Drafts {
    pub(crate) drafts: Vec<ServiceDraft>,
    pub(crate) faults: Vec<LabelFault>,
}

impl Drafts {
    pub(crate) fn is_empty(&self) -> bool {
        self.drafts.is_empty() && self.faults.is_empty()
    }
}

/// A value, and the label that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) label: String,
    pub(crate) value: String,
}

/// A service, as far as the labels describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceDraft {
    /// Begin of the labels' names, for messages.
    pub(crate) folder: String,
    pub(crate) fields: BTreeMap<FieldName, Field>,
    /// By the setting's key.
    pub(crate) settings: BTreeMap<String, Field>,
}

impl ServiceDraft {
    /// Sets a field that no label has. `label` is the one that it was derived from.
    pub(crate) fn set(&mut self, name: FieldName, label: &str, value: &str) {
        self.fields.insert(name, Field { label: label.to_owned(), value: value.to_owned() });
    }

    /// Reads all values. An error names the first label that can't be read.
    pub(crate) fn resolve(&self) -> Result<LabelledService, LabelFault> {
        for Field { label, value } in self.fields.values().chain(self.settings.values()) {
            if value.len() > LONGEST_VALUE {
                let reason = format!("{} bytes, at most {LONGEST_VALUE} are read", value.len());
                return Err(LabelFault::new(label, value, reason));
            }
        }
        let kind = self.read(FieldName::Type, parse_kind)?.unwrap_or(Kind::Http);
        let settings = self.read_settings(kind)?;
        Ok(LabelledService {
            folder: self.folder.clone(),
            service: ServiceId { kind, name: self.choose_name(kind, &settings)? },
            port: self.read(FieldName::Port, parse_port)?,
            weight: self.read(FieldName::Weight, parse_as::<Weight>)?.unwrap_or_default(),
            color: self.read(FieldName::Color, parse_as::<Color>)?,
            check: self.read(FieldName::Check, parse_check)?,
            limit: self.read_limit()?,
            settings,
        })
    }

    fn read<T>(&self, name: FieldName, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, LabelFault> {
        let Some(Field { label, value }) = self.fields.get(&name) else { return Ok(None) };
        parse(value.trim()).map(Some).map_err(|reason| LabelFault::new(label, value, reason))
    }

    fn read_limit(&self) -> Result<Option<CopyLimit>, LabelFault> {
        let replicas = self.read(FieldName::Replicas, |value| {
            value.parse().map_err(|_| "expected the number of copies, from 1 to 65535".to_owned())
        })?;
        let prefer = self
            .read(FieldName::Prefer, |value| value.parse().map_err(|_| "expected a rank from 0 to 65535".to_owned()))?;
        match (replicas, prefer) {
            (Some(replicas), prefer) => Ok(Some(CopyLimit { replicas, prefer: prefer.unwrap_or_default() })),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let label = format!("{}.replicas", self.folder);
                Err(LabelFault::missing(&label, "prefer means nothing without it"))
            }
        }
    }

    fn read_settings(&self, kind: Kind) -> Result<Vec<Setting>, LabelFault> {
        let mut settings: Vec<Setting> = Vec::new();
        let fields = [
            (FieldName::Domain, SettingName::Domain),
            (FieldName::Path, SettingName::Path),
            (FieldName::Ports, SettingName::Ports),
            (FieldName::Tls, SettingName::Tls),
        ];
        for (field, name) in fields {
            settings.extend(self.read(field, |value| parse_setting(kind, name, value))?);
        }
        for (key, Field { label, value }) in &self.settings {
            let fault = |reason: String| LabelFault::new(label, value, reason);
            let name: SettingName = key.parse().map_err(|refusal: discovery::Refusal| fault(refusal.to_string()))?;
            if settings.iter().any(|setting| setting.name() == name) {
                return Err(fault(format!("the setting {name} is given twice")));
            }
            settings.push(parse_setting(kind, name, value).map_err(fault)?);
        }
        Ok(settings)
    }

    /// The service's name, by default the whole first domain, as the announcer's options have it.
    fn choose_name(&self, kind: Kind, settings: &[Setting]) -> Result<ServiceName, LabelFault> {
        if let Some(name) = self.read(FieldName::Service, parse_as::<ServiceName>)? {
            return Ok(name);
        }
        let label = |name: &str| format!("{}.{name}", self.folder);
        let first = settings.iter().find_map(|setting| match setting {
            Setting::Domain(domains) => domains.first(),
            _ => None,
        });
        match (kind, first) {
            (Kind::Tcp, _) => Err(LabelFault::missing(&label("service"), "a TCP service needs its name")),
            (Kind::Http, None) => {
                let reason = format!("a service needs it, or else {}", Excerpt::new(&label("service")));
                Err(LabelFault::missing(&label("domain"), reason))
            }
            (Kind::Http, Some(domain)) => domain.to_string().parse().map_err(|_| {
                LabelFault::missing(&label("service"), format!("the domain {domain} names no service by itself"))
            }),
        }
    }
}

fn parse_setting(kind: Kind, name: SettingName, value: &str) -> Result<Setting, String> {
    Setting::parse(kind, name, value.as_bytes()).map_err(|refusal| refusal.to_string())
}

fn parse_as<T: std::str::FromStr<Err = discovery::Refusal>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|refusal: discovery::Refusal| refusal.to_string())
}

fn parse_kind(value: &str) -> Result<Kind, String> {
    match value {
        "http" => Ok(Kind::Http),
        "tcp" => Ok(Kind::Tcp),
        _ => Err("expected http or tcp".to_owned()),
    }
}

/// `8000`, or `8000/tcp` as the engine writes it.
pub(crate) fn parse_port(value: &str) -> Result<NonZeroU16, String> {
    let number = value.strip_suffix("/tcp").unwrap_or(value);
    number.parse().map_err(|_| "expected the container's port, from 1 to 65535".to_owned())
}

/// `tcp`, `/health`, or `https:/health`.
fn parse_check(value: &str) -> Result<LabelCheck, String> {
    let is_path = |path: &str| {
        path.starts_with('/') && path.len() <= LONGEST_PATH && path.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match value.strip_prefix("https:") {
        Some(path) if is_path(path) => Ok(LabelCheck::Https(path.to_owned())),
        None if value == "tcp" => Ok(LabelCheck::Tcp),
        None if is_path(value) => Ok(LabelCheck::Http(value.to_owned())),
        // A command would run on the host, as the agent's user, at the will of a container's owner.
        _ => {
            Err("expected tcp, a path such as /health, or https:/health; a command belongs into HEALTHCHECK".to_owned())
        }
    }
}
