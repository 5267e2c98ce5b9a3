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

/// The most bytes of a line's filters. A command's buffer has 16 kB. A certificate with more filters is listed without any, so that
/// HAProxy chooses by its own order between it and others for the same name.
const LONGEST_LINE: usize = 12_000;

/// The certificates that serve each name, at one point in time. An index is a place in the slice that `choose` was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The certificate for clients that ask for no name, or for a name without a certificate. `None` without certificates.
    pub default: Option<usize>,
    /// The certificates for each name, wildcards included. The best one is first.
    names: BTreeMap<String, Vec<Claimant>>,
}

/// A certificate that is for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The place among the certificates.
    pub index: usize,
    /// HAProxy serves it for the name, to clients that can use its kind of key.
    pub is_chosen: bool,
    rank: Rank,
    key_type: KeyType,
}

/// The order of certificates for one name. The better one is less.
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

/// The better one is less. A certificate that is not valid yet may be valid for a client, if this host's clock is wrong. An expired
/// one never is again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    Valid,
    NotYetValid,
    Expired,
}

impl Validity {
    /// The validity at a time in Unix seconds. A certificate without readable times counts as valid.
    pub fn at(certificate: &Certificate, now: i64) -> Self {
        if certificate.not_after.is_some_and(|end| end < now) {
            Self::Expired
        } else if certificate.not_before.is_some_and(|start| start > now) {
            Self::NotYetValid
        } else {
            Self::Valid
        }
    }

    /// The word that the API and the page show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::NotYetValid => "not valid yet",
            Self::Expired => "expired",
        }
    }
}

/// The reason why a certificate serves a name, and another one with the same kind of key doesn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advantage {
    /// No other certificate is for the name.
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

/// The only wildcard that HAProxy matches with a host: `*.b.com` for `a.b.com`. `None` for a wildcard.
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
        let names: BTreeMap<String, Vec<Claimant>> = holders
            .keys()
            .map(|name| ((*name).to_owned(), rank_claimants(certificates, claims_on(name, &holders), now)))
            .collect();
        let choice = Self { default: choose_default(certificates, &names, now), names };
        choice.check_invariants(certificates);
        choice
    }

    /// Panics in debug builds if the choice breaks an invariant.
    fn check_invariants(&self, certificates: &[Certificate]) {
        debug_assert_eq!(self.find_violation(certificates), None, "a choice breaks an invariant");
    }

    /// A name that has no certificate, two for one kind of key, or one that doesn't exist. HAProxy would choose by the order of
    /// loading, or have none.
    fn find_violation(&self, certificates: &[Certificate]) -> Option<String> {
        let exists = |index: usize| index < certificates.len();
        for (name, claimants) in &self.names {
            let chosen: Vec<KeyType> = claimants.iter().filter(|it| it.is_chosen).map(|it| it.key_type).collect();
            let kinds: BTreeSet<KeyType> = chosen.iter().copied().collect();
            if chosen.is_empty() || kinds.len() < chosen.len() || !claimants.iter().all(|it| exists(it.index)) {
                return Some(format!("{name} has the certificates {claimants:?}"));
            }
        }
        let is_right = self.default.map_or(certificates.is_empty(), exists);
        (!is_right).then(|| format!("{:?} is the default of {} certificates", self.default, certificates.len()))
    }

    /// The certificates for a host, the best first. Empty if the host gets the default certificate.
    pub fn claimants(&self, host: &str) -> &[Claimant] {
        let found = self.names.get(host).or_else(|| self.names.get(&wildcard_of(host)?));
        found.map_or(&[], Vec::as_slice)
    }

    /// The names that each certificate serves, by place. A certificate that serves none is left out.
    pub fn names_by_certificate(&self) -> BTreeMap<usize, Vec<&str>> {
        let mut served: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (name, claimants) in &self.names {
            for claimant in claimants.iter().filter(|it| it.is_chosen) {
                served.entry(claimant.index).or_default().push(name);
            }
        }
        served
    }

    /// The lines of the crt-list behind `default.pem`: the place of a certificate, and its filters. Without filters, HAProxy serves all
    /// names of the certificate.
    pub fn crt_list_lines(&self, certificates: &[Certificate]) -> Vec<(usize, Vec<SniFilter>)> {
        let mut exact_below: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for name in self.names.keys() {
            if let Some(wildcard) = wildcard_of(name) {
                exact_below.entry(wildcard).or_default().push(name);
            }
        }
        let certificates_with_index = certificates.iter().enumerate();
        certificates_with_index
            .filter_map(|(index, it)| Some((index, self.filters_of(index, it, &exact_below, certificates)?)))
            .collect()
    }

    /// The filters of a certificate's line. `None` if it serves no name and needs no line. `exact_below` has the hosts below each
    /// wildcard.
    fn filters_of(
        &self,
        index: usize,
        certificate: &Certificate,
        exact_below: &BTreeMap<String, Vec<&str>>,
        certificates: &[Certificate],
    ) -> Option<Vec<SniFilter>> {
        let names: Vec<&str> = listable_names(certificate).map(|(name, _)| name).collect();
        let kept: Vec<&str> = names.iter().copied().filter(|name| self.is_chosen(name, index)).collect();
        if kept.is_empty() && !names.is_empty() {
            return None;
        }
        let below = kept.iter().flat_map(|name| exact_below.get(*name).into_iter().flatten()).copied();
        let excluded: BTreeSet<&str> = below.filter(|host| self.must_exclude(host, index, certificates)).collect();
        if kept.len() == names.len() && excluded.is_empty() {
            return Some(Vec::new());
        }
        let serving = kept.into_iter().filter_map(SniFilter::for_name);
        let filters: Vec<SniFilter> =
            serving.chain(excluded.into_iter().filter_map(SniFilter::excluding_host)).collect();
        let length: usize = filters.iter().map(|filter| filter.as_str().len() + 1).sum();
        Some(if length > LONGEST_LINE { Vec::new() } else { filters })
    }

    /// The advantage of a certificate for a name over the best other one with the same kind of key, and the other's place.
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

    /// True if a wildcard certificate needs a filter against this host, which another certificate serves.
    fn must_exclude(&self, host: &str, index: usize, certificates: &[Certificate]) -> bool {
        let claimants = self.names.get(host).map(Vec::as_slice).unwrap_or_default();
        let Some(own) = claimants.iter().find(|it| it.index == index).filter(|own| !own.is_chosen) else {
            return false;
        };
        // HAProxy looks for each kind of key among exact names and then among wildcards. So a wildcard certificate would serve a
        // host that was left to a certificate with another kind of key.
        !claimants.iter().any(|it| {
            it.is_chosen
                && it.key_type == own.key_type
                && certificates.get(it.index).is_some_and(|it| it.servable.contains_key(host))
        })
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

    /// The advantage of this rank, which is better, over the other one.
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

/// The names of a certificate that can be filters.
fn listable_names(certificate: &Certificate) -> impl Iterator<Item = (&str, Coverage)> {
    let names = certificate.servable.iter().map(|(name, coverage)| (name.as_str(), *coverage));
    names.filter(|(name, _)| SniFilter::for_name(name).is_some())
}

/// The certificates that have a name, or its wildcard.
fn claims_on(name: &str, holders: &BTreeMap<&str, Vec<(usize, Coverage)>>) -> BTreeMap<usize, Coverage> {
    let wildcard = wildcard_of(name).and_then(|wildcard| holders.get(wildcard.as_str())).into_iter().flatten();
    let mut claims: BTreeMap<usize, Coverage> =
        wildcard.map(|(index, coverage)| (*index, (*coverage).max(Coverage::Wildcard))).collect();
    // A certificate with both the name and the wildcard counts as one with the name.
    claims.extend(holders.get(name).into_iter().flatten().copied());
    claims
}

fn rank_claimants(certificates: &[Certificate], claims: BTreeMap<usize, Coverage>, now: i64) -> Vec<Claimant> {
    let claimants = claims.into_iter().filter_map(|(index, coverage)| {
        let certificate = certificates.get(index)?;
        let rank = Rank::new(certificate, coverage, index, now);
        Some(Claimant { index, rank, key_type: certificate.key_type, is_chosen: false })
    });
    mark_chosen(claimants.collect())
}

/// Sorts a name's certificates, and marks the best of each kind of key.
fn mark_chosen(mut claimants: Vec<Claimant>) -> Vec<Claimant> {
    claimants.sort_by_key(|claimant| claimant.rank);
    let kinds = [KeyType::Ecdsa, KeyType::Rsa, KeyType::Other].into_iter();
    let bests: Vec<Claimant> =
        kinds.filter_map(|kind| claimants.iter().find(|it| it.key_type == kind).copied()).collect();
    let chosen = bests.iter().filter(|it| !bests.iter().any(|other| must_displace(other, it)));
    let chosen: BTreeSet<usize> = chosen.map(|it| it.index).collect();
    for claimant in &mut claimants {
        claimant.is_chosen = chosen.contains(&claimant.index);
    }
    claimants
}

/// True if `other` must not be listed: HAProxy would serve it before `this`, which is better. HAProxy prefers ECDSA, then RSA. Nearly
/// every client can use RSA. Few can use other kinds, so such a certificate displaces only one that isn't valid.
fn must_displace(this: &Claimant, other: &Claimant) -> bool {
    let is_preferred = other.key_type < this.key_type;
    let is_better = match this.key_type {
        KeyType::Ecdsa => false,
        KeyType::Rsa => (this.rank.validity, this.rank.coverage) < (other.rank.validity, other.rank.coverage),
        KeyType::Other => this.rank.validity < other.rank.validity,
    };
    is_preferred && is_better
}

/// The default certificate: the one that serves the first name of the first valid file. So a renewal under another file name replaces
/// it, and files for other names don't matter.
fn choose_default(certificates: &[Certificate], names: &BTreeMap<String, Vec<Claimant>>, now: i64) -> Option<usize> {
    // An expired default would be an error to all clients that ask for no known name.
    let (first, certificate) =
        certificates.iter().enumerate().min_by_key(|(index, it)| (Validity::at(it, now), *index))?;
    let name = certificate.names.iter().map(|name| name.to_ascii_lowercase()).find(|name| names.contains_key(name));
    let claimants = name.and_then(|name| names.get(&name)).map(Vec::as_slice).unwrap_or_default();
    let mut chosen = claimants.iter().filter(|it| it.is_chosen);
    let same = chosen.clone().find(|it| it.key_type == certificate.key_type).or_else(|| chosen.next());
    Some(same.map_or(first, |it| it.index))
}

/// The time, in Unix seconds, in which the choice is the same as at `now`.
pub fn unchanged_within(certificates: &[Certificate], now: i64) -> Range<i64> {
    let starts = certificates.iter().filter_map(|it| it.not_before);
    let ends = certificates.iter().filter_map(|it| it.not_after?.checked_add(1));
    let (past, future): (Vec<i64>, Vec<i64>) = starts.chain(ends).partition(|time| *time <= now);
    past.into_iter().max().unwrap_or(i64::MIN)..future.into_iter().min().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
