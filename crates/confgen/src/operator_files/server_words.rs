//! The words for a server's state on its line, the same in haproxy.cfg and in filled files. Pure: no I/O, no clock.

use crate::desired::{Server, ServerState};

/// The keyword for `maint`.
pub const DISABLED: &str = "disabled";

/// The weight that a server's line has, 0 to 256. A drain is weight 0: HAProxy reads that as its own `drain` (Management Guide,
/// `set server state`), and no keyword says it.
pub fn written_weight(server: &Server) -> u16 {
    if server.state == ServerState::Drain { 0 } else { server.weight }
}

/// The words for weight, backup and state, each with a blank before it. `None` leaves the weight out.
pub fn state_words(weight: Option<u16>, is_backup: bool, state: ServerState) -> String {
    let mut words = weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
    if is_backup {
        words.push_str(" backup");
    }
    if state == ServerState::Maint {
        words.push(' ');
        words.push_str(DISABLED);
    }
    words
}
