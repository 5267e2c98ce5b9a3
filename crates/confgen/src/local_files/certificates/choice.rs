//! Chooses the certificate that serves each name. Pure: no I/O, no clock.
//!
//! HAProxy takes the first certificate of a crt-list that matches a name. "First" depends on the order in which the
//! certificates were loaded, and a renewal changes that order. So each name is given to one certificate for each kind of
//! key, by the lines' SNI filters, and the order of the lines does not matter.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use haproxy::runtime::SniFilter;

use crate::local_files::certificate::{Certificate, Coverage, KeyType};

/// HAProxy's buffer for a command has 16 kB, and a line has to fit into one. A certificate with more filters than this is
/// listed without any. HAProxy then chooses by its own order between it and others for the same name.
const LONGEST_LINE: usize = 12_000;

/// Which of some certificates serve which names, at one point in time. Indexes are places in the slice that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Serves clients that ask for no name, or for one that no certificate is for. None without certificates.
    pub default: Option<usize>,
    /// By name, wildcards included: the certificates that are for it, the best first.
    names: BTreeMap<String, Vec<Claimant>>,
}

/// A certificate that is for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Its place among the certificates.
    pub index: usize,
    /// HAProxy serves it for the name, to clients that can use its kind of key.
    pub is_chosen: bool,
    rank: Rank,
    key_type: KeyType,
}

/// How good a certificate is for a name. The better one is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    validity: Validity,
    coverage: Coverage,
    not_after: Reverse<i64>,
    not_before: Reverse<i64>,
    /// Of two files with one certificate, the one with its chain is better: `cert.pem` and `fullchain.pem`.
    chain: Reverse<usize>,
    /// Decides between equals, so that the same files always give the same choice.
    index: usize,
}

/// The better one is less. A certificate that is not valid yet may be valid for a client whose clock is right; an expired one
/// never is again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// Now.
    Valid,
    /// Its validity begins later.
    NotYetValid,
    /// Its validity is over.
    Expired,
}

impl Validity {
    /// The validity at a time in Unix seconds. A certificate whose times can't be read counts as valid.
    pub fn at(certificate: &Certificate, now: i64) -> Self {
        if certificate.not_after.is_some_and(|end| end < now) {
            Self::Expired
        } else if certificate.not_before.is_some_and(|start| start > now) {
            Self::NotYetValid
        } else {
            Self::Valid
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::NotYetValid => "not valid yet",
            Self::Expired => "expired",
        }
    }
}

/// Why a certificate serves a name and not another one of the same kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advantage {
    /// No other one is for the name.
    Only,
    /// The other one has this validity, which is worse.
    Validity(Validity),
    /// The other one only has a wildcard, or a common name.
    Coverage(Coverage),
    /// The other one expires sooner.
    Later,
    /// The other one expires at the same time, and its validity begins sooner.
    Newer,
    /// The other one has a shorter chain.
    Chain,
    /// The two are equally good, and this file's name sorts first.
    First,
}

impl fmt::Display for Advantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Only => "the only one",
            Self::Validity(Validity::Valid) => "as good",
            Self::Validity(Validity::NotYetValid) => "valid, the other one not yet",
            Self::Validity(Validity::Expired) => "the other one has expired",
            Self::Coverage(Coverage::CommonName) => "the other one has the name as common name only",
            Self::Coverage(_) => "the exact name, the other one has a wildcard",
            Self::Later => "expires later",
            Self::Newer => "issued later",
            Self::Chain => "the other one has a shorter chain",
            Self::First => "equally good, first by file name",
        })
    }
}

/// The wildcard that matches a host: `*.b.com` for `a.b.com`, and nothing else, as HAProxy has it. None for a wildcard.
pub fn wildcard_of(name: &str) -> Option<String> {
    let (label, rest) = name.split_once('.')?;
    (label != "*").then(|| format!("*.{rest}"))
}

impl Choice {
    /// Chooses among certificates at a time in Unix seconds.
    pub fn choose(certificates: &[Certificate], now: i64) -> Self {
        let mut holders: BTreeMap<&str, Vec<(usize, Coverage)>> = BTreeMap::new();
        for (index, certificate) in certificates.iter().enumerate() {
            for (name, coverage) in listable_names(certificate) {
                holders.entry(name).or_default().push((index, coverage));
            }
        }
        let of_name = |name: &str| {
            let own = holders.get(name).into_iter().flatten().copied();
            let wildcard = wildcard_of(name).and_then(|wildcard| holders.get(wildcard.as_str()));
            let wide = wildcard.into_iter().flatten();
            let wide = wide.map(|(index, coverage)| (*index, (*coverage).max(Coverage::Wildcard)));
            let mut claimants: BTreeMap<usize, Coverage> = wide.collect();
            claimants.extend(own);
            let claimant = |(index, coverage): (usize, Coverage)| {
                let certificate = certificates.get(index)?;
                let rank = Rank::new(certificate, coverage, index, now);
                Some(Claimant { index, rank, key_type: certificate.key_type, is_chosen: false })
            };
            mark_chosen(claimants.into_iter().filter_map(claimant).collect())
        };
        let names: BTreeMap<String, Vec<Claimant>> =
            holders.keys().map(|name| ((*name).to_owned(), of_name(name))).collect();
        Self { default: choose_default(certificates, &names, now), names }
    }

    /// The certificates that are for a host, the best first. Empty if only the default certificate is left for it.
    pub fn claimants(&self, host: &str) -> &[Claimant] {
        let found = self.names.get(host).or_else(|| self.names.get(&wildcard_of(host)?));
        found.map_or(&[], Vec::as_slice)
    }

    /// The names that each certificate serves, by its place. A certificate that serves none is left out.
    pub fn names_by_certificate(&self) -> BTreeMap<usize, Vec<&str>> {
        let mut served: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (name, claimants) in &self.names {
            for claimant in claimants.iter().filter(|it| it.is_chosen) {
                served.entry(claimant.index).or_default().push(name);
            }
        }
        served
    }

    /// The lines of the crt-list behind its first one: places of certificates, with filters. Without filters, HAProxy serves
    /// all names of a certificate.
    pub fn crt_list_lines(&self, certificates: &[Certificate]) -> Vec<(usize, Vec<SniFilter>)> {
        let mut exact_below: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for name in self.names.keys() {
            if let Some(wildcard) = wildcard_of(name) {
                exact_below.entry(wildcard).or_default().push(name);
            }
        }
        let line = |(index, certificate): (usize, &Certificate)| {
            let names: Vec<&str> = listable_names(certificate).map(|(name, _)| name).collect();
            let kept: Vec<&str> = names.iter().copied().filter(|name| self.is_chosen(name, index)).collect();
            if kept.is_empty() && !names.is_empty() {
                return None;
            }
            let excluded: BTreeSet<&str> = kept
                .iter()
                .flat_map(|name| exact_below.get(*name).into_iter().flatten())
                .copied()
                .filter(|host| self.must_exclude(host, index, certificates))
                .collect();
            if kept.len() == names.len() && excluded.is_empty() {
                return Some((index, Vec::new()));
            }
            let serving = kept.into_iter().filter_map(SniFilter::for_name);
            let filters: Vec<SniFilter> =
                serving.chain(excluded.into_iter().filter_map(SniFilter::excluding_host)).collect();
            let length: usize = filters.iter().map(|filter| filter.as_str().len() + 1).sum();
            Some((index, if length > LONGEST_LINE { Vec::new() } else { filters }))
        };
        certificates.iter().enumerate().filter_map(line).collect()
    }

    /// Tells what a certificate has for a name over the best other one of the same kind of key.
    pub fn advantage_of(&self, host: &str, claimant: &Claimant) -> (Advantage, Option<usize>) {
        let others = self.claimants(host).iter().filter(|it| it.index != claimant.index);
        let Some(other) = others.into_iter().find(|it| it.key_type == claimant.key_type) else {
            return (Advantage::Only, None);
        };
        (claimant.rank.advantage_over(&other.rank), Some(other.index))
    }

    fn is_chosen(&self, name: &str, index: usize) -> bool {
        self.names.get(name).is_some_and(|claimants| claimants.iter().any(|it| it.is_chosen && it.index == index))
    }

    /// HAProxy looks for each kind of key among exact names and then among wildcards. So a wildcard certificate would serve
    /// a host that was left to a certificate with another kind of key.
    fn must_exclude(&self, host: &str, index: usize, certificates: &[Certificate]) -> bool {
        let claimants = self.names.get(host).map(Vec::as_slice).unwrap_or_default();
        let Some(own) = claimants.iter().find(|it| it.index == index).filter(|own| !own.is_chosen) else {
            return false;
        };
        let is_found_first = |it: &Claimant| {
            it.is_chosen
                && it.key_type == own.key_type
                && certificates.get(it.index).is_some_and(|it| it.servable.contains_key(host))
        };
        !claimants.iter().any(is_found_first)
    }
}

impl Rank {
    fn new(certificate: &Certificate, coverage: Coverage, index: usize, now: i64) -> Self {
        Self {
            validity: Validity::at(certificate, now),
            coverage,
            not_after: Reverse(certificate.not_after.unwrap_or(i64::MIN)),
            not_before: Reverse(certificate.not_before.unwrap_or(i64::MIN)),
            chain: Reverse(certificate.chain_length()),
            index,
        }
    }

    /// What this one, which is better, has over the other one.
    fn advantage_over(&self, other: &Self) -> Advantage {
        if self.validity != other.validity {
            Advantage::Validity(other.validity)
        } else if self.coverage != other.coverage {
            Advantage::Coverage(other.coverage)
        } else if self.not_after != other.not_after {
            Advantage::Later
        } else if self.not_before != other.not_before {
            Advantage::Newer
        } else if self.chain != other.chain {
            Advantage::Chain
        } else {
            Advantage::First
        }
    }
}

/// The names of a certificate that a line of the list can be given for.
fn listable_names(certificate: &Certificate) -> impl Iterator<Item = (&str, Coverage)> {
    let names = certificate.servable.iter().map(|(name, coverage)| (name.as_str(), *coverage));
    names.filter(|(name, _)| SniFilter::for_name(name).is_some())
}

/// Sorts a name's certificates, and marks the best of each kind of key.
fn mark_chosen(mut claimants: Vec<Claimant>) -> Vec<Claimant> {
    claimants.sort_by_key(|claimant| claimant.rank);
    let best = |of: KeyType| claimants.iter().find(|it| it.key_type == of).copied();
    let bests: Vec<Claimant> = [KeyType::Ecdsa, KeyType::Rsa, KeyType::Other].into_iter().filter_map(best).collect();
    let chosen = bests.iter().filter(|it| !bests.iter().any(|other| must_displace(other, it)));
    let chosen: BTreeSet<usize> = chosen.map(|it| it.index).collect();
    for claimant in &mut claimants {
        claimant.is_chosen = chosen.contains(&claimant.index);
    }
    claimants
}

/// Whether HAProxy must not have `other`, because it would serve it before `this`, which is better. HAProxy prefers ECDSA,
/// then RSA. Nearly every client can use RSA. Few can use other kinds, so one of those only displaces what isn't valid.
fn must_displace(this: &Claimant, other: &Claimant) -> bool {
    let is_preferred = other.key_type < this.key_type;
    let is_better = match this.key_type {
        KeyType::Ecdsa => false,
        KeyType::Rsa => (this.rank.validity, this.rank.coverage) < (other.rank.validity, other.rank.coverage),
        KeyType::Other => this.rank.validity < other.rank.validity,
    };
    is_preferred && is_better
}

/// The default certificate is the one that serves the first name of the first valid file, so that a renewal under another
/// file name is followed, and files for other names don't matter.
fn choose_default(certificates: &[Certificate], names: &BTreeMap<String, Vec<Claimant>>, now: i64) -> Option<usize> {
    let by_validity = |(index, certificate): &(usize, &Certificate)| (Validity::at(certificate, now), *index);
    let (first, certificate) = certificates.iter().enumerate().min_by_key(by_validity)?;
    let name = certificate.names.iter().map(|name| name.to_ascii_lowercase()).find(|name| names.contains_key(name));
    let claimants = name.and_then(|name| names.get(&name)).map(Vec::as_slice).unwrap_or_default();
    let chosen = || claimants.iter().filter(|it| it.is_chosen);
    let same = chosen().find(|it| it.key_type == certificate.key_type).or_else(|| chosen().next());
    Some(same.map_or(first, |it| it.index))
}

/// The times, in Unix seconds, between which the choice is as it is at `now`.
pub fn unchanged_within(certificates: &[Certificate], now: i64) -> Range<i64> {
    let starts = certificates.iter().filter_map(|it| it.not_before);
    let ends = certificates.iter().filter_map(|it| it.not_after?.checked_add(1));
    let (past, future): (Vec<i64>, Vec<i64>) = starts.chain(ends).partition(|time| *time <= now);
    past.into_iter().max().unwrap_or(i64::MIN)..future.into_iter().min().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
