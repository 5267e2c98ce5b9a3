//! Warnings about certificates that expire soon, once a day. `Expiry` is pure: it is told the time, and logs nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::local_files::certificate::Certificate;

/// In seconds.
pub const DAY: i64 = 24 * 60 * 60;

/// The time before the expiry from which confgen warns. Let's Encrypt's clients renew a month ahead, so at two weeks a renewal has
/// been failing for some time.
pub const SOON: i64 = 14 * DAY;

/// The warnings that were given.
#[derive(Clone, Debug, Default)]
pub struct Expiry {
    /// By file: the certificate's fingerprint, and the day of its last warning.
    warned: BTreeMap<PathBuf, (String, i64)>,
}

/// The day since 1970, in UTC, of a time in Unix seconds.
pub fn day_of(now: i64) -> i64 {
    now.div_euclid(DAY)
}

/// The system's clock in Unix seconds.
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Expiry {
    /// The warnings that are due at `now`, in Unix seconds: a line a day for each certificate that has expired, or will within 14 days.
    pub fn due_warnings<'a>(&mut self, certificates: impl Iterator<Item = &'a Certificate>, now: i64) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut said = BTreeMap::new();
        for certificate in certificates {
            let Some(left) = certificate.not_after.map(|end| end - now).filter(|left| *left < SOON) else { continue };
            // The fingerprint is part of it, so that a renewal which expires soon too is a new warning.
            let this = (certificate.fingerprint.clone(), day_of(now));
            if self.warned.get(&certificate.file) != Some(&this) && !said.contains_key(&certificate.file) {
                let file = certificate.file.display();
                let when = match left {
                    ..0 => "has expired".to_owned(),
                    0..DAY => "expires within a day".to_owned(),
                    _ => format!("expires in {} days", left / DAY),
                };
                warnings.push(format!("certificate {file} for {}: {when}", certificate.names.join(", ")));
            }
            said.insert(certificate.file.clone(), this);
        }
        self.warned = said;
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_files::certificate::tests::certificate;

    #[test]
    fn a_warning_comes_once_a_day_from_two_weeks_on() {
        let mut one = certificate("a.com", "/state/a.pem");
        let end = 1_000 * DAY + 5;
        one.not_after = Some(end);
        let mut expiry = Expiry::default();
        let mut at = |now: i64| expiry.due_warnings([&one, &one].into_iter(), now).join("; ");
        assert_eq!(at(end - SOON), "");
        assert_eq!(at(end - SOON + 1), "certificate /certs/a.com.pem for a.com: expires in 13 days");
        assert_eq!(at(end - SOON + 2), "");
        assert_eq!(at(end - 10), "certificate /certs/a.com.pem for a.com: expires within a day");
        assert_eq!(at(end + DAY), "certificate /certs/a.com.pem for a.com: has expired");
        assert_eq!(at(end + DAY + 1), "");
    }

    #[test]
    fn a_renewed_certificate_has_a_warning_of_its_own() {
        let (mut old, mut new) = (certificate("a.com", "/state/a.pem"), certificate("a.com", "/state/a.pem"));
        (old.not_after, new.not_after) = (Some(10), Some(20));
        let mut expiry = Expiry::default();
        assert_eq!(expiry.due_warnings([&old].into_iter(), 0).len(), 1);
        assert_eq!(expiry.due_warnings([&new].into_iter(), 0).len(), 1);
        assert_eq!(expiry.due_warnings([&new].into_iter(), 0).len(), 0);
    }
}
