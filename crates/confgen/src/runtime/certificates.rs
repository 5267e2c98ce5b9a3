//! The running HAProxy's certificates: looked at, and changed while it runs.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::{HaproxyControl, Observed};
use crate::runtime::plan::certificates::LiveCertificates;

impl HaproxyControl {
    /// Has it serve TLS with the certificates that are wanted. Returns how many changes that took, with its complaints.
    pub(super) fn swap_certificates(&mut self) -> anyhow::Result<(usize, Vec<String>)> {
        let wanted = Arc::clone(&self.certificates);
        let is_done =
            |known: &Observed| known.applied_certificates.as_ref().is_some_and(|done| Arc::ptr_eq(done, &wanted));
        let known = self.observed.as_mut().filter(|known| !is_done(known));
        let Some(Observed { certificates: Some(live), applied_certificates: brought_to, .. }) = known else {
            return Ok((0, Vec::new()));
        };
        let steps = live.plan_certificates(&wanted.lines);
        let mut complaints = Vec::new();
        for step in &steps {
            match self.socket.change_certificate(step) {
                Ok(complaint) => complaints.extend(complaint.map(|words| format!("{step}: {words}"))),
                Err(error) => {
                    self.invalidate();
                    return Err(error).context("change HAProxy's certificates");
                }
            }
        }
        let made = steps.len() - complaints.len();
        if made > 0 {
            tracing::info!("certificates: {made} changes over the Runtime API");
        }
        live.mark_applied(&wanted.lines);
        if live.has_unnumbered_lines()
            && let Some(list) = &wanted.crt_list
        {
            match self.socket.show_crt_list(list) {
                Ok(entries) => live.set_entries(entries.unwrap_or_default()),
                Err(error) => {
                    self.invalidate();
                    return Err(error).context("look at HAProxy's certificates");
                }
            }
        }
        *brought_to = Some(wanted);
        Ok((made, complaints))
    }

    /// What it serves TLS with; none where it has no list of ours.
    pub(super) fn observe_certificates(&self) -> anyhow::Result<Option<LiveCertificates>> {
        let Some(list) = &self.certificates.crt_list else { return Ok(None) };
        let Some(entries) = self.socket.show_crt_list(list)? else { return Ok(None) };
        let path = list.to_string();
        let copies = Path::new(&path).parent().map(|copies| format!("{}/", copies.display())).unwrap_or_default();
        Ok(Some(LiveCertificates::from_answers(list.clone(), entries, self.socket.show_certificates(&copies)?)))
    }
}
