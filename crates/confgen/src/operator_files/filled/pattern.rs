//! The pattern of a block's lines: `server <id> <address> check`. Pure: no I/O, no clock. It rejects a pattern with
//! lines that HAProxy would read in another way.

use std::fmt::Write;

use discovery::UpstreamId;
use haproxy::config::{ConfigWord, find_comment, tokenize};

use crate::desired::{Server, ServerState};
use crate::operator_files::server_words::{DISABLED, state_words, written_weight};

/// The operator's text for each upstream's line, with placeholders. The values come from types that can't hold a blank, a quote
/// or a line break. A character stands for one byte, since the file may be in any encoding: see [`decode_bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    parts: Vec<Part>,
    /// The comment at the end of each line, with the blanks before it.
    comment: String,
    /// The text has the word `backup`.
    has_backup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Id,
    Address,
    Ip,
    Port,
    Weight,
}

const PLACEHOLDERS: [(&str, Part); 5] = [
    ("<id>", Part::Id),
    ("<address>", Part::Address),
    ("<ip>", Part::Ip),
    ("<port>", Part::Port),
    ("<weight>", Part::Weight),
];

impl Pattern {
    /// Reads a pattern. The error is a part of a sentence for the operator.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_ascii_end();
        let has_backup = tokenize(text).iter().any(|word| word.text == "backup");
        let (before, comment) = text.split_at(find_comment(text).unwrap_or(text.len()));
        // The state's words come before the comment, or HAProxy would not read them.
        let before = before.trim_ascii_end();
        let blanks = text.get(before.len()..text.len() - comment.len()).unwrap_or_default();
        let comment = format!("{blanks}{comment}");
        let pattern = Self { parts: parse_parts(before)?, comment, has_backup };
        pattern.check_sample_lines()?;
        Ok(pattern)
    }

    /// Fails if HAProxy would read the lines in another way: a part of them could be in an open quote.
    fn check_sample_lines(&self) -> Result<(), String> {
        let lines = ["192.0.2.1:1", "192.0.2.2:2"].map(|address| self.render_sample(address));
        let [one, other] = lines.each_ref().map(|line| line.as_deref().map(tokenize).unwrap_or_default());
        match word_pair(&one, &other, 1) {
            Some((name, same)) if name == same && name.contains(SAMPLE) => {}
            _ => return Err("`server` is followed by a name that is made with <id> alone".into()),
        }
        let addresses = word_pair(&one, &other, 2);
        if !addresses.is_some_and(|(one, other)| one.contains("192.0.2.1") && other.contains("192.0.2.2")) {
            return Err("the name is followed by <address>, or <ip> with a port of yours".into());
        }
        // `disabled` ends the line. If HAProxy read it as a part of another word, it would run the server in maint as ready.
        if one.last().and_then(|word| word.known_text()) != Some(DISABLED) {
            return Err("a quote that isn't closed, or a backslash at its end".into());
        }
        Ok(())
    }

    fn render_sample(&self, address: &str) -> Option<String> {
        let (id, address) = (SAMPLE.parse().ok()?, address.parse().ok()?);
        Some(self.render_line(&Server {
            id,
            address,
            weight: 1,
            state: ServerState::Maint,
            backup: false,
            is_unproven: false,
            hash_id: None,
        }))
    }

    /// The server's line without indentation and line end.
    pub(super) fn render_line(&self, server: &Server) -> String {
        let weight = written_weight(server);
        let address = server.address.socket_addr();
        let mut line = String::new();
        for part in &self.parts {
            // Writing to a string can't fail.
            let _ = match part {
                Part::Text(text) => line.write_str(text),
                Part::Id => write!(line, "{}", server.id),
                Part::Address => write!(line, "{address}"),
                Part::Ip if address.is_ipv6() => write!(line, "[{}]", address.ip()),
                Part::Ip => write!(line, "{}", address.ip()),
                Part::Port => write!(line, "{}", address.port()),
                Part::Weight => write!(line, "{weight}"),
            };
        }
        // The operator's own text says the weight, unless the pattern lacks `<weight>` and a drain needs it.
        let weight = Some(weight).filter(|_| server.state == ServerState::Drain && !self.parts.contains(&Part::Weight));
        // It comes last, since of two weights on a line HAProxy takes the last (2.6).
        line.push_str(&state_words(weight, server.backup && !self.has_backup, server.state));
        line.push_str(&self.comment);
        line
    }

    /// The name of an upstream's server.
    pub(super) fn server_name(&self, id: &UpstreamId) -> Option<String> {
        let address = "192.0.2.1:1".parse().ok()?;
        let server = Server {
            id: id.clone(),
            address,
            weight: 1,
            state: ServerState::Ready,
            backup: false,
            is_unproven: false,
            hash_id: None,
        };
        tokenize(&self.render_line(&server)).get(1).map(|name| name.text.clone())
    }
}

/// The bytes as text with a character for each byte, so that none is lost. All that HAProxy gives a meaning to is ASCII.
pub(super) fn decode_bytes(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes that the text was decoded from.
pub(super) fn encode_bytes(text: &str) -> Vec<u8> {
    text.chars().filter_map(|byte| u8::try_from(byte).ok()).collect()
}

/// The decoded text as people wrote it, for a message.
pub(super) fn show_text(text: &str) -> String {
    String::from_utf8_lossy(&encode_bytes(text)).into_owned()
}

/// The word at this position of both lines. `None` if a line lacks it, or it comes from the environment.
fn word_pair<'a>(one: &'a [ConfigWord], other: &'a [ConfigWord], at: usize) -> Option<(&'a str, &'a str)> {
    Some((one.get(at)?.known_text()?, other.get(at)?.known_text()?))
}

/// An id that no operator's pattern is likely to have in its own text.
const SAMPLE: &str = "discover-sample";

fn parse_parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (before, from) = rest.split_at(at);
        let known = PLACEHOLDERS.iter().find_map(|(name, part)| Some((from.strip_prefix(name)?, part)));
        let Some((after, part)) = known else {
            let end = from.find('>').map_or(from.len(), |end| end + 1);
            let (unknown, _) = from.split_at(end);
            return Err(format!("`{}` is none of <id>, <address>, <ip>, <port>, <weight>", show_text(unknown)));
        };
        parts.extend([Part::Text(before.to_owned()), part.clone()]);
        rest = after;
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str, weight: u16, state: ServerState, backup: bool) -> Server {
        Server {
            id: "shop-1".parse().unwrap(),
            address: address.parse().unwrap(),
            weight,
            state,
            backup,
            is_unproven: false,
            hash_id: None,
        }
    }

    fn line(pattern: &str, server: &Server) -> String {
        Pattern::parse(pattern).unwrap().render_line(server)
    }

    #[test]
    fn states_are_written_as_in_the_generated_file() {
        use ServerState::{Drain, Maint, Ready};
        let of = |pattern, state, backup| line(pattern, &server("10.0.0.1:8000", 30, state, backup));
        let plain = "server <id> <address> check inter 2000 rise 2 fall 5";
        assert_eq!(of(plain, Ready, false), "server shop-1 10.0.0.1:8000 check inter 2000 rise 2 fall 5");
        assert_eq!(of("server <id> <address>", Drain, false), "server shop-1 10.0.0.1:8000 weight 0");
        assert_eq!(of("server <id> <address>", Maint, true), "server shop-1 10.0.0.1:8000 backup disabled");
        let weighted = "server a-<id> <address> weight <weight> backup ";
        assert_eq!(of(weighted, Ready, true), "server a-shop-1 10.0.0.1:8000 weight 30 backup");
        assert_eq!(of(weighted, Drain, false), "server a-shop-1 10.0.0.1:8000 weight 0 backup");
        let parts = line("server <id> <ip>:443 check port <port>", &server("[fd00::1]:8000", 100, Ready, false));
        assert_eq!(parts, "server shop-1 [fd00::1]:443 check port 8000");
        assert_eq!(Pattern::parse(weighted).unwrap().server_name(&"x".parse().unwrap()).as_deref(), Some("a-x"));
    }

    #[test]
    fn a_pattern_that_haproxy_would_misread_is_refused() {
        for (pattern, why) in [
            ("server <id> <adress>", "`<adress>` is none of"),
            ("server <id> <address", "`<address` is none of"),
            ("server shop <address>", "a name that is made with <id>"),
            ("server <id>-<port> <address>", "<id> alone"),
            ("server \"$P<id>\" <address>", "<id> alone"),
            ("server <id> 10.0.0.1:80", "followed by <address>"),
            ("server <id>", "followed by <address>"),
            ("server <id> # mine <address>", "followed by <address>"),
            ("server <id> <address> \"check # mine", "a quote"),
            ("server <id> <address> \"check", "a quote"),
            ("server <id> <address> check \\", "a backslash"),
        ] {
            let refused = Pattern::parse(pattern).unwrap_err();
            assert!(refused.contains(why), "{pattern}: {refused}");
        }
        Pattern::parse("server '<id>' <address> sni str(\"$HOST\") # \\#").unwrap();
    }

    #[test]
    fn a_comment_stands_behind_the_servers_state() {
        let away = server("10.0.0.1:8000", 30, ServerState::Maint, true);
        for comment in ["  # it's ours", "# \"", " # <backup>", "\t# backup \\"] {
            let filled = line(&format!("server <id> <address> check{comment}"), &away);
            assert_eq!(filled, format!("server shop-1 10.0.0.1:8000 check backup disabled{comment}"));
        }
    }

    #[test]
    fn no_byte_is_lost() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(encode_bytes(&decode_bytes(&all)), all);
        assert_eq!(show_text(&decode_bytes("<né>".as_bytes())), "<né>");
    }
}
