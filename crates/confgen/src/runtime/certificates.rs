//! Observes the running HAProxy's certificates and applies the planned changes. Decides nothing: `plan/certificates.rs` does.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::{HaproxyControl, Observed};
use crate::runtime::plan::certificates::LiveCertificates;

impl HaproxyControl {
    /// Has HAProxy serve TLS with the wanted certificates. Returns the number of changes, and HAProxy's complaints.
    pub(super) fn swap_certificates(&mut self) -> anyhow::Result<(usize, Vec<String>)> {
        let wanted = Arc::clone(&self.certificates);
        let observed = self.observed.as_mut().filter(|observed| !observed.has_applied(&wanted));
        let Some(Observed { certificates: Some(live), applied_certificates, .. }) = observed else {
            return Ok((0, Vec::new()));
        };
        let changes = live.plan_certificates(&wanted.lines);
        let mut complaints = Vec::new();
        for change in &changes {
            match self.socket.change_certificate(change) {
                Ok(complaint) => complaints.extend(complaint.map(|words| format!("{change}: {words}"))),
                Err(error) => {
                    self.invalidate();
                    return Err(error).context("change HAProxy's certificates");
                }
            }
        }
        let count = changes.len() - complaints.len();
        if count > 0 {
            tracing::info!(count, "certificates changed over the Runtime API");
        }
        live.mark_applied(&wanted.lines);
        // HAProxy numbers a line when it is added. Removing one of several lines for a file needs its number.
        if live.has_unnumbered_lines()
            && let Some(list) = &wanted.crt_list
        {
            match self.socket.show_crt_list(list) {
                Ok(entries) => live.set_entries(entries.unwrap_or_default()),
                Err(error) => {
                    self.invalidate();
                    return Err(error).context("observe HAProxy's certificates");
                }
            }
        }
        *applied_certificates = Some(wanted);
        Ok((count, complaints))
    }

    /// The certificates that HAProxy serves. `None` if it runs without confgen's crt-list.
    pub(super) fn observe_certificates(&self) -> anyhow::Result<Option<LiveCertificates>> {
        let Some(list) = &self.certificates.crt_list else { return Ok(None) };
        let Some(entries) = self.socket.show_crt_list(list)? else { return Ok(None) };
        let path = list.to_string();
        let copies = Path::new(&path).parent().map(|copies| format!("{}/", copies.display())).unwrap_or_default();
        Ok(Some(LiveCertificates::from_answers(list.clone(), entries, self.socket.show_certificates(&copies)?)))
    }
}
