//! The operator's `defaults` sections with a name, as far as confgen depends on what a service takes from them. Pure: no I/O, no
//! clock.

use std::collections::BTreeSet;

use discovery::Profile;
use haproxy::config::ConfigWord;

use super::{LineContext, OperatorConfig};

/// The lines of a profile that keep every request from the upstreams of its services. Each is a citation for the middle of a
/// sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClosingLines {
    /// HAProxy starts no such section.
    disabled: Option<String>,
    /// HAProxy connects to the address that the client asked for.
    transparent: Option<String>,
    http_request: Ruleset,
    content: Ruleset,
}

impl ClosingLines {
    /// The line that counts. `reads_http` tells that the service's section has mode http.
    pub fn first(&self, reads_http: bool) -> Option<&str> {
        let http = Some(&self.http_request).filter(|_| reads_http);
        let rules = [Some(&self.content), http].into_iter().flatten().find_map(Ruleset::closing_line);
        self.disabled.as_deref().or(rules).or(self.transparent.as_deref())
    }

    fn read_line(&mut self, place: LineContext, texts: &[&str]) {
        let line = place.to_source_line(texts).to_citation();
        match texts {
            // Only HAProxy knows if the line counts, so it closes nothing, and may open.
            ["disabled"] if !place.is_conditional => self.disabled = Some(line),
            ["enabled"] => self.disabled = None,
            ["option", "transparent", ..] | ["transparent", ..] if !place.is_conditional => {
                self.transparent = Some(line);
            }
            ["no", "option", "transparent", ..] => self.transparent = None,
            ["http-request", action, rest @ ..] => {
                self.http_request.read_rule(action, rest, place.is_conditional, line);
            }
            ["tcp-request", "content", action, rest @ ..] => {
                self.content.read_rule(action, rest, place.is_conditional, line);
            }
            _ => {}
        }
    }
}

/// The rules of one kind so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Ruleset {
    /// A request gets past them.
    #[default]
    Open,
    /// A request may get past all that come behind too.
    Skipped,
    /// No request gets past this line.
    Closed(String),
}

/// Actions after which no rule is read, and no upstream asked.
const FINAL: [&str; 8] = ["auth", "deny", "redirect", "reject", "return", "silent-drop", "tarpit", "use-service"];

impl Ruleset {
    fn closing_line(&self) -> Option<&str> {
        if let Self::Closed(line) = self { Some(line) } else { None }
    }

    /// `is_conditional` tells that only HAProxy knows if the rule is there.
    fn read_rule(&mut self, action: &str, rest: &[&str], is_conditional: bool, line: String) {
        let applies = if is_conditional { Applies::Sometimes } else { Applies::from_words(rest) };
        match (&*self, applies) {
            (Self::Open, Applies::Always) if FINAL.contains(&action) => *self = Self::Closed(line),
            (Self::Open, Applies::Always | Applies::Sometimes) if skips_rules(action) => *self = Self::Skipped,
            _ => {}
        }
    }
}

/// True if no rule behind this one may be read. A script may end the rules, and an action from the environment may be any.
fn skips_rules(action: &str) -> bool {
    ["allow", "accept"].contains(&action) || action.starts_with("lua.") || action.contains('$')
}

/// The requests that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applies {
    Always,
    Sometimes,
    Never,
}

impl Applies {
    /// Reads the condition at the end of a rule.
    fn from_words(words: &[&str]) -> Self {
        let Some(at) = words.iter().position(|word| ["if", "unless"].contains(word)) else { return Self::Always };
        let holds = match words.get(at + 1..).unwrap_or_default() {
            ["TRUE"] | ["{", "always_true", "}"] => true,
            ["FALSE"] | ["{", "always_false", "}"] => false,
            _ => return Self::Sometimes,
        };
        if holds == (words.get(at) == Some(&"if")) { Self::Always } else { Self::Never }
    }
}

impl OperatorConfig {
    /// Adds a section to the profiles. It inherits everything from its base except rules, because HAProxy refuses a base with rules.
    pub(super) fn open_profile(&mut self, place: LineContext, words: &[ConfigWord]) {
        let Ok(profile) = place.name.parse::<Profile>() else { return };
        self.profiles.push(profile.clone());
        let [_, _, from, base] = words else { return };
        if from.text != "from" {
            return;
        }
        if is_marked(&self.server_profiles, base) {
            self.server_profiles.insert(profile.clone());
        }
        if is_marked(&self.all_backup_profiles, base) {
            self.all_backup_profiles.insert(profile.clone());
        }
        let lines = base.known_text().and_then(|base| self.closing_lines.get(&base.parse().ok()?)).cloned();
        self.closing_lines.extend(lines.map(|lines| (profile, lines)));
    }

    /// Reads a line of a `defaults` section.
    pub(super) fn parse_profile_line(&mut self, place: LineContext, texts: &[&str]) {
        let Ok(profile) = place.name.parse::<Profile>() else { return };
        match texts {
            ["default-server", ..] => _ = self.server_profiles.insert(profile),
            ["option", "allbackups", ..] => _ = self.all_backup_profiles.insert(profile),
            _ => self.closing_lines.entry(profile).or_default().read_line(place, texts),
        }
    }
}

/// True if a base may have what these profiles have. A base that isn't known may have any line.
fn is_marked(profiles: &BTreeSet<Profile>, base: &ConfigWord) -> bool {
    base.has_unknown_variable || base.text.parse().is_ok_and(|base| profiles.contains(&base))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that keeps requests from an HTTP service's upstreams, and the one for a service that HAProxy reads as TCP.
    fn closing(lines: &str) -> (Option<String>, Option<String>) {
        let operator = OperatorConfig::from_texts([("mine.cfg", format!("defaults a\n{lines}").as_str())]);
        let last = operator.profiles.last().unwrap();
        let found = |reads_http| Some(operator.closing_lines.get(last)?.first(reads_http)?.to_owned());
        (found(true), found(false))
    }

    #[test]
    fn a_profile_may_use_all_backups() {
        let text = "defaults a\n option allbackups\ndefaults b from a\ndefaults c from \"${D}\"\ndefaults d\n";
        let operator = OperatorConfig::from_texts([("mine.cfg", text)]);
        let names: Vec<String> = operator.all_backup_profiles.iter().map(Profile::to_string).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn a_rule_for_every_request_closes_a_profile() {
        for rule in [
            "deny",
            "deny deny_status 429",
            "reject",
            "tarpit",
            "return status 200 content-type text/plain string gone",
            "redirect location https://elsewhere.test",
            "auth realm x",
            "silent-drop",
            "use-service prometheus-exporter",
            "deny if TRUE",
            "deny unless { always_false }",
        ] {
            let (http, tcp) = closing(&format!(" http-request set-header x y\n http-request {rule}\n"));
            let http = http.unwrap_or_default();
            assert!(
                http.starts_with("mine.cfg:3 (`http-request ") && http.ends_with("in `defaults a`)"),
                "{rule}: {http}"
            );
            assert_eq!(tcp, None, "HAProxy reads no request of it");
        }
        for rule in ["tcp-request content reject", "tcp-request content silent-drop", "disabled", "option transparent"]
        {
            let line = format!("mine.cfg:2 (`{rule}` in `defaults a`)");
            assert_eq!(closing(&format!(" {rule}\n")), (Some(line.clone()), Some(line)), "{rule}");
        }
        let from = |base: &str, own: &str| closing(&format!(" {base}\ndefaults b from a\n {own}\n")).0;
        assert_eq!(from("disabled", "").unwrap(), "mine.cfg:2 (`disabled` in `defaults a`)");
        assert_eq!(from("disabled", "enabled"), None);
        assert_eq!(from("option transparent", "no option transparent"), None);
    }

    #[test]
    fn a_profile_that_some_request_gets_past_is_open() {
        for lines in [
            "timeout server 1h",
            "http-request deny if { path /admin }",
            "http-request deny if FALSE",
            "http-request deny unless TRUE",
            "http-request allow if { src 10.0.0.0/8 }\n http-request deny",
            "http-request allow\n http-request deny",
            "http-request lua.check\n http-request deny",
            "http-request \"$ACTION\"\n http-request deny",
            "tcp-request content accept if HTTP\n tcp-request content reject",
            "http-response deny",
            ".if defined(X)\n http-request deny\n disabled\n .endif",
            "disabled\n .if defined(X)\n enabled\n .endif",
            ".if defined(X)\n http-request allow\n .endif\n http-request deny",
            "stats uri /",
        ] {
            assert_eq!(closing(&format!(" {lines}\n")), (None, None), "{lines}");
        }
        let both = closing(" tcp-request content accept\n http-request deny\n").0;
        assert!(both.is_some(), "the rules of a connection let no request past those of requests");
    }
}
