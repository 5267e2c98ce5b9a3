//! What HAProxy serves TLS with, and the changes that lead to what is wanted. Pure.
//!
//! As in `live`: desired minus current, both ways, for the files that it has loaded and for the list that names them.

use std::collections::{BTreeMap, BTreeSet};

use haproxy::runtime::{CertificateChange, CrtEntry, ShownCertificate, Token};

use crate::certificate::Certificate;

/// The certificates of one crt-list, as HAProxy runs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveCertificates {
    list: Token,
    /// In the list's order, with the line's number where it is known.
    entries: Vec<(Token, Option<u32>)>,
    files: BTreeMap<Token, Content>,
}

/// What a file that HAProxy has loaded holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing.
    Empty,
    /// What HAProxy shows of it.
    Shown(ShownCertificate),
    /// What it was given.
    Given(Certificate),
}

impl LiveCertificates {
    /// What HAProxy answers about a list, and about the files in the copies' folder.
    pub fn observed(list: Token, entries: Vec<CrtEntry>, files: BTreeMap<Token, Option<ShownCertificate>>) -> Self {
        let entries = entries.into_iter().map(|entry| (entry.file, Some(entry.line))).collect();
        let content = |shown: Option<ShownCertificate>| shown.map_or(Content::Empty, Content::Shown);
        Self { list, entries, files: files.into_iter().map(|(file, shown)| (file, content(shown))).collect() }
    }

    /// The steps to what is wanted, in the list's order. What is served already is replaced before anything is added,
    /// and nothing goes before what replaces it is there.
    pub fn steps(&self, wanted: &[Certificate]) -> Vec<CertificateChange> {
        let (mut replaced, mut added, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for certificate in wanted {
            let file = &certificate.copy;
            let listed = self.entries.iter().any(|(entry, _)| entry == file);
            let steps = if listed { &mut replaced } else { &mut added };
            let content = self.files.get(file);
            if content.is_none() {
                steps.push(CertificateChange::New(file.clone()));
            }
            if !content.is_some_and(|content| content.is(certificate)) {
                steps.push(CertificateChange::Load(file.clone(), certificate.pem.clone()));
            }
            if !listed {
                steps.push(CertificateChange::List(self.list.clone(), file.clone()));
            }
        }
        let files: BTreeSet<&Token> = wanted.iter().map(|certificate| &certificate.copy).collect();
        let mut kept = BTreeSet::new();
        for (file, line) in &self.entries {
            // One that somebody has listed twice stays once.
            if !files.contains(file) || !kept.insert(file) {
                gone.push(CertificateChange::Unlist(self.list.clone(), file.clone(), *line));
            }
        }
        let unwanted = self.files.keys().filter(|file| !files.contains(file));
        gone.extend(unwanted.cloned().map(CertificateChange::Delete));
        [replaced, added, gone].concat()
    }

    /// Believes that the steps to this were made.
    pub fn made(&mut self, wanted: &[Certificate]) {
        let mut kept = BTreeSet::new();
        self.entries.retain(|(file, _)| wanted.iter().any(|it| it.copy == *file) && kept.insert(file.clone()));
        let new = wanted.iter().map(|it| &it.copy).filter(|file| !kept.contains(file));
        self.entries.extend(new.map(|file| (file.clone(), None)));
        self.files = wanted.iter().map(|it| (it.copy.clone(), Content::Given(it.clone()))).collect();
    }
}

impl Content {
    fn is(&self, wanted: &Certificate) -> bool {
        match self {
            Self::Empty => false,
            Self::Shown(shown) => wanted.is_shown_as(shown),
            Self::Given(given) => given.pem == wanted.pem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::tests::certificate;

    const LIST: &str = "/state/list";

    fn wanted(hosts: &[&str]) -> Vec<Certificate> {
        hosts.iter().map(|host| certificate(host, &format!("/state/{host}.pem"))).collect()
    }

    fn shown(certificate: &Certificate) -> Option<ShownCertificate> {
        Some(ShownCertificate { fingerprint: certificate.fingerprint.to_lowercase(), chain: Vec::new() })
    }

    /// HAProxy with these, listed on lines 1, 2, 3, …
    fn running(certificates: &[Certificate]) -> LiveCertificates {
        let entry = |(line, it): (u32, &Certificate)| CrtEntry { file: it.copy.clone(), line };
        let entries = (1..).zip(certificates).map(entry).collect();
        let files = certificates.iter().map(|it| (it.copy.clone(), shown(it))).collect();
        LiveCertificates::observed(LIST.parse().unwrap(), entries, files)
    }

    fn steps(live: &LiveCertificates, wanted: &[Certificate]) -> Vec<String> {
        live.steps(wanted).iter().map(|step| step.to_string().replace("/state/", "")).collect()
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let all = wanted(&["default", "a", "b"]);
        assert_eq!(running(&all).steps(&all), []);
    }

    #[test]
    fn what_is_served_changes_first_then_comes_what_is_new_then_goes_what_is_not_wanted() {
        let before = wanted(&["default", "a", "b"]);
        let after = [wanted(&["default", "new"]), before[2..].to_vec()].concat();
        let mut live = running(&before);
        let expected = [
            "set ssl cert default.pem",
            "new ssl cert new.pem",
            "set ssl cert new.pem",
            "add ssl crt-list list new.pem",
            "del ssl crt-list list a.pem:2",
            "del ssl cert a.pem",
        ];
        assert_eq!(steps(&live, &after), expected);
        live.made(&after);
        assert_eq!(live.steps(&after), []);
        let back = steps(&live, &before);
        assert!(back.contains(&"del ssl crt-list list new.pem".to_owned()), "its line isn't known: {back:?}");
    }

    #[test]
    fn another_chain_behind_the_same_certificate_is_another_content() {
        let all = wanted(&["default"]);
        let mut live = running(&all);
        live.made(&all);
        let mut other = all.clone();
        other[0].pem = certificate("other", "/state/default.pem").pem;
        assert_eq!(steps(&live, &other), ["set ssl cert default.pem"], "what was given is known whole");
    }

    #[test]
    fn what_somebody_left_behind_is_mended() {
        let all = wanted(&["default", "a"]);
        let entry = |it: &Certificate, line| CrtEntry { file: it.copy.clone(), line };
        let entries = vec![entry(&all[0], 1), entry(&all[0], 2), entry(&all[0], 7)];
        let empty: Token = "/state/stray.pem".parse().unwrap();
        let files = [(all[0].copy.clone(), shown(&all[0])), (all[1].copy.clone(), None), (empty, None)];
        let live = LiveCertificates::observed(LIST.parse().unwrap(), entries, files.into());
        let expected = [
            "set ssl cert a.pem",
            "add ssl crt-list list a.pem",
            "del ssl crt-list list default.pem:2",
            "del ssl crt-list list default.pem:7",
            "del ssl cert stray.pem",
        ];
        assert_eq!(steps(&live, &all), expected);
    }
}
