//! Deletes servers and backends that no service wants, once HAProxy lets them go. It decides nothing: the plan names them.

use anyhow::Context;
use haproxy::runtime::{Removal, ServerName, Word};

use super::backends::note_deletion;
use super::{GenerationFiles, HaproxyControl};

impl HaproxyControl {
    /// Deletes the leaving servers without connections, and the leaving backends without servers and streams. True if some are
    /// left.
    pub fn remove_leaving(&mut self, disk: &dyn GenerationFiles) -> anyhow::Result<bool> {
        self.remove_servers(&self.leaving_servers())?;
        self.remove_backends(disk)?;
        let has_backends = self.observed.as_ref().is_some_and(|observed| !observed.state.leaving_backends().is_empty());
        Ok(has_backends || !self.leaving_servers().is_empty())
    }

    /// The servers that HAProxy deletes after their last connection.
    pub fn leaving_servers(&self) -> Vec<ServerName> {
        self.observed.as_ref().map(|observed| observed.state.leaving_servers()).unwrap_or_default()
    }

    fn remove_backends(&mut self, disk: &dyn GenerationFiles) -> anyhow::Result<()> {
        let Some(observed) = &mut self.observed else { return Ok(()) };
        for name in observed.state.deletable_backends() {
            let Ok(backend) = name.parse::<Word>() else { continue };
            self.exchanges += 1;
            match self.socket.remove_backend(&backend) {
                Ok(Removal::Removed) => {
                    observed.take_note(disk, &note_deletion(&name));
                    observed.forget_backend(&name);
                }
                Ok(Removal::InUse) => observed.state.mark_unpublished(&name, false),
                Ok(Removal::Refused(answer)) => {
                    tracing::debug!(backend = name, %answer, "backend stays until a restart, without servers");
                    observed.state.mark_unpublished(&name, true);
                }
                Err(error) => {
                    self.invalidate();
                    return Err(error).with_context(|| format!("delete backend {name}"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn remove_servers(&mut self, servers: &[ServerName]) -> anyhow::Result<()> {
        for name in servers {
            self.exchanges += 1;
            match self.socket.remove_server(name) {
                Ok(Removal::InUse) => {}
                Ok(removal) => {
                    if let Removal::Refused(answer) = removal {
                        tracing::warn!(server = %name, %answer, "server stays in maintenance until a restart");
                    }
                    if let Some(observed) = &mut self.observed {
                        observed.state.mark_removed(name);
                    }
                }
                Err(error) => {
                    self.invalidate();
                    return Err(error).with_context(|| format!("remove {name}"));
                }
            }
        }
        Ok(())
    }
}
