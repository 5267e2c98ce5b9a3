//! Plans the changes of HAProxy's certificates: desired minus observed, both ways. Pure: no I/O, no clock.
//!
//! The changes concern the files that HAProxy has loaded, and the crt-list that names them.

use std::collections::{BTreeMap, BTreeSet};

use haproxy::runtime::{CertificateChange, CrtEntry, Pem, ShownCertificate, SniFilter, Token};

use crate::local_files::certificate::Certificate;
use crate::local_files::certificates::CrtListLine;

/// The certificates of one crt-list, as HAProxy runs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveCertificates {
    list: Token,
    /// In the list's order.
    entries: Vec<Entry>,
    files: BTreeMap<Token, Content>,
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    file: Token,
    /// As HAProxy shows them, word by word.
    filters: Vec<String>,
    /// `None` if the line was added since HAProxy was last asked.
    line: Option<u32>,
}

impl Entry {
    fn matches_line(&self, wanted: &CrtListLine) -> bool {
        let filters = wanted.filters.iter().map(SniFilter::as_str);
        self.file == wanted.certificate.copy && filters.eq(self.filters.iter().map(String::as_str))
    }
}

impl From<CrtEntry> for Entry {
    fn from(CrtEntry { file, filters, line }: CrtEntry) -> Self {
        Self { file, filters, line: Some(line) }
    }
}

impl From<&CrtListLine> for Entry {
    fn from(line: &CrtListLine) -> Self {
        let filters = line.filters.iter().map(|filter| filter.as_str().to_owned()).collect();
        Self { file: line.certificate.copy.clone(), filters, line: None }
    }
}

/// The content of a file that HAProxy has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// `new ssl cert` makes such a file.
    Empty,
    /// HAProxy's answer to `show ssl cert`, which has no key.
    Shown(ShownCertificate),
    /// The content that confgen loaded.
    Given(Pem),
}

impl LiveCertificates {
    /// The observed state. `list` is the crt-list, and `files` are those in the copies' directory.
    pub fn from_answers(list: Token, entries: Vec<CrtEntry>, files: BTreeMap<Token, Option<ShownCertificate>>) -> Self {
        let entries = entries.into_iter().map(Entry::from).collect();
        let content = |shown: Option<ShownCertificate>| shown.map_or(Content::Empty, Content::Shown);
        Self { list, entries, files: files.into_iter().map(|(file, shown)| (file, content(shown))).collect() }
    }

    /// Plans the changes to the wanted lines. Served files are replaced before others are added, and no line goes before the one
    /// that replaces it is there. HAProxy can't change a line, so a line with other filters is a new one.
    pub fn plan_certificates(&self, wanted: &[CrtListLine]) -> Vec<CertificateChange> {
        let (mut replaced, mut added, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for line in wanted {
            let (file, certificate) = (&line.certificate.copy, &line.certificate);
            let is_served = self.entries.iter().any(|entry| entry.file == *file);
            let steps = if is_served { &mut replaced } else { &mut added };
            let content = self.files.get(file);
            if content.is_none() {
                steps.push(CertificateChange::New(file.clone()));
            }
            if !content.is_some_and(|content| content.holds_certificate(certificate)) {
                steps.push(CertificateChange::Load(file.clone(), certificate.pem.clone()));
            }
            if !self.entries.iter().any(|entry| entry.matches_line(line)) {
                added.push(CertificateChange::List(self.list.clone(), file.clone(), line.filters.clone()));
            }
        }
        let mut kept = BTreeSet::new();
        for entry in &self.entries {
            // HAProxy lists a file twice if it is added twice. One line stays.
            let is_wanted =
                wanted.iter().any(|line| entry.matches_line(line)) && kept.insert((&entry.file, &entry.filters));
            if !is_wanted {
                gone.push(CertificateChange::Unlist(self.list.clone(), entry.file.clone(), entry.line));
            }
        }
        let files: BTreeSet<&Token> = wanted.iter().map(|line| &line.certificate.copy).collect();
        let unwanted = self.files.keys().filter(|file| !files.contains(file));
        gone.extend(unwanted.cloned().map(CertificateChange::Delete));
        [replaced, added, gone].concat()
    }

    /// Notes that HAProxy made the planned changes.
    pub fn mark_applied(&mut self, wanted: &[CrtListLine]) {
        let mut kept = BTreeSet::new();
        let mut stays = |entry: &Entry| {
            wanted.iter().any(|line| entry.matches_line(line))
                && kept.insert((entry.file.clone(), entry.filters.clone()))
        };
        self.entries.retain(|entry| stays(entry));
        let new: Vec<&CrtListLine> =
            wanted.iter().filter(|line| !self.entries.iter().any(|entry| entry.matches_line(line))).collect();
        self.entries.extend(new.into_iter().map(Entry::from));
        let files = wanted.iter().map(|line| &line.certificate);
        self.files = files.map(|it| (it.copy.clone(), Content::Given(it.pem.clone()))).collect();
    }

    /// Replaces the lines by HAProxy's listing, which has their numbers. Removing one of several lines for a file needs its number.
    pub fn set_entries(&mut self, entries: Vec<CrtEntry>) {
        self.entries = entries.into_iter().map(Entry::from).collect();
    }

    /// True if the number of a line isn't known.
    pub fn has_unnumbered_lines(&self) -> bool {
        self.entries.iter().any(|entry| entry.line.is_none())
    }
}

impl Content {
    fn holds_certificate(&self, wanted: &Certificate) -> bool {
        match self {
            Self::Empty => false,
            Self::Shown(shown) => wanted.is_shown_as(shown),
            Self::Given(given) => *given == wanted.pem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_files::certificate::tests::certificate;

    const LIST: &str = "/state/list";

    fn line(host: &str, filters: &[&str]) -> CrtListLine {
        let filters = filters.iter().filter_map(|filter| SniFilter::for_name(filter)).collect();
        CrtListLine { certificate: certificate(host, &format!("/state/{host}.pem")), filters }
    }

    fn wanted(hosts: &[&str]) -> Vec<CrtListLine> {
        hosts.iter().map(|host| line(host, &[])).collect()
    }

    fn shown(CrtListLine { certificate, .. }: &CrtListLine) -> Option<ShownCertificate> {
        Some(ShownCertificate { fingerprint: certificate.fingerprint.to_lowercase(), chain: Vec::new() })
    }

    fn entry(of: &CrtListLine, line: u32) -> CrtEntry {
        let filters = of.filters.iter().map(|filter| filter.as_str().to_owned()).collect();
        CrtEntry { file: of.certificate.copy.clone(), filters, line }
    }

    /// HAProxy with these, listed on lines 1, 2, 3, …
    fn running(certificates: &[CrtListLine]) -> LiveCertificates {
        let entries = (1..).zip(certificates).map(|(line, it)| entry(it, line)).collect();
        let files = certificates.iter().map(|it| (it.certificate.copy.clone(), shown(it))).collect();
        LiveCertificates::from_answers(LIST.parse().unwrap(), entries, files)
    }

    fn steps(live: &LiveCertificates, wanted: &[CrtListLine]) -> Vec<String> {
        live.plan_certificates(wanted).iter().map(|step| step.to_string().replace("/state/", "")).collect()
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let all = wanted(&["default", "a", "b"]);
        assert_eq!(running(&all).plan_certificates(&all), []);
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
        live.mark_applied(&after);
        assert_eq!(live.plan_certificates(&after), []);
        let back = steps(&live, &before);
        assert!(back.contains(&"del ssl crt-list list new.pem".to_owned()), "its line isn't known: {back:?}");
    }

    #[test]
    fn another_chain_behind_the_same_certificate_is_another_content() {
        let all = wanted(&["default"]);
        let mut live = running(&all);
        live.mark_applied(&all);
        let mut other = all.clone();
        other[0].certificate.pem = certificate("other", "/state/default.pem").pem;
        assert_eq!(steps(&live, &other), ["set ssl cert default.pem"], "what was given is known whole");
    }

    #[test]
    fn what_somebody_left_behind_is_mended() {
        let all = wanted(&["default", "a"]);
        let entries = vec![entry(&all[0], 1), entry(&all[0], 2), entry(&all[0], 7)];
        let empty: Token = "/state/stray.pem".parse().unwrap();
        let copy = |at: usize| all[at].certificate.copy.clone();
        let files = [(copy(0), shown(&all[0])), (copy(1), None), (empty, None)];
        let live = LiveCertificates::from_answers(LIST.parse().unwrap(), entries, files.into());
        let expected = [
            "set ssl cert a.pem",
            "add ssl crt-list list a.pem",
            "del ssl crt-list list default.pem:2",
            "del ssl crt-list list default.pem:7",
            "del ssl cert stray.pem",
        ];
        assert_eq!(steps(&live, &all), expected);
    }

    #[test]
    fn a_line_with_other_filters_is_there_before_the_old_one_goes() {
        let before = [wanted(&["default"]), vec![line("a", &[]), line("b", &["b"])]].concat();
        let mut after = before.clone();
        after[1].filters = line("a", &["a", "a.b"]).filters;
        let mut live = running(&before);
        let expected = ["add ssl crt-list list a.pem a a.b", "del ssl crt-list list a.pem:2"];
        assert_eq!(steps(&live, &after), expected);
        live.mark_applied(&after);
        assert_eq!(live.plan_certificates(&after), []);
        assert!(live.has_unnumbered_lines());
        live.set_entries(vec![entry(&after[0], 1), entry(&after[2], 3), entry(&after[1], 9)]);
        assert_eq!((live.plan_certificates(&after), live.has_unnumbered_lines()), (vec![], false));
        assert_eq!(steps(&live, &before), ["add ssl crt-list list a.pem", "del ssl crt-list list a.pem:9"]);
    }
}
