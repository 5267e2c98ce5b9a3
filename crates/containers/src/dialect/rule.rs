//! Traefik's rules of routers, as far as a service here can say the same: hosts and path prefixes. Pure.

use std::collections::BTreeSet;

/// The deepest nesting of parentheses. A label may have a million of them.
const DEEPEST: usize = 16;

/// The most pairs of host and path. `(a || b) && (c || d)` has four.
const MOST_PAIRS: usize = 256;

/// The requests that a rule matches: each of the hosts with each of the paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) hosts: BTreeSet<String>,
    /// Empty for all paths.
    pub(super) paths: BTreeSet<String>,
}

/// The functions that a router's rule may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleKind {
    /// `Host`, `PathPrefix`.
    Http,
    /// `HostSNI`.
    Tcp,
}

/// A host and a path prefix that must both match. `None` matches all.
type Pair = (Option<String>, Option<String>);

/// Reads a rule. The error says which part has no meaning here.
pub(super) fn parse_rule(rule: &str, kind: RuleKind) -> Result<Route, String> {
    let mut parser = Parser { rest: rule, kind };
    let pairs = parser.parse_or(0)?;
    if !parser.rest.trim_start().is_empty() {
        return Err("expected `&&`, `||` or the rule's end".to_owned());
    }
    make_route(&pairs)
}

/// The hosts of a rule that can't be used, as far as they are named.
pub(super) fn find_hosts(rule: &str) -> BTreeSet<String> {
    rule.split(['`', '"', '\'']).skip(1).step_by(2).take(MOST_PAIRS).map(str::to_ascii_lowercase).collect()
}

fn make_route(pairs: &BTreeSet<Pair>) -> Result<Route, String> {
    let hosts: BTreeSet<&String> = pairs.iter().filter_map(|(host, _)| host.as_ref()).collect();
    if hosts.is_empty() || pairs.iter().any(|(host, _)| host.is_none()) {
        return Err("a service here needs a host in each part of the rule".to_owned());
    }
    let paths: BTreeSet<&Option<String>> = pairs.iter().map(|(_, path)| path).collect();
    if pairs.len() != hosts.len() * paths.len() {
        return Err("a service here has all of its hosts with all of its paths; make several routers of it".to_owned());
    }
    // All paths include each single one.
    let paths = if paths.contains(&None) { BTreeSet::new() } else { paths.into_iter().flatten().cloned().collect() };
    Ok(Route { hosts: hosts.into_iter().cloned().collect(), paths })
}

struct Parser<'a> {
    rest: &'a str,
    kind: RuleKind,
}

impl Parser<'_> {
    fn parse_or(&mut self, depth: usize) -> Result<BTreeSet<Pair>, String> {
        let mut pairs = self.parse_and(depth)?;
        while self.take("||") {
            pairs.extend(self.parse_and(depth)?);
            check_count(&pairs)?;
        }
        Ok(pairs)
    }

    fn parse_and(&mut self, depth: usize) -> Result<BTreeSet<Pair>, String> {
        let mut pairs = self.parse_part(depth)?;
        while self.take("&&") {
            let others = self.parse_part(depth)?;
            let mut both = BTreeSet::new();
            for one in &pairs {
                for other in &others {
                    both.insert(join_pairs(one, other)?);
                    check_count(&both)?;
                }
            }
            pairs = both;
        }
        Ok(pairs)
    }

    fn parse_part(&mut self, depth: usize) -> Result<BTreeSet<Pair>, String> {
        if depth > DEEPEST {
            return Err(format!("more than {DEEPEST} parentheses in each other"));
        }
        if self.take("(") {
            let pairs = self.parse_or(depth + 1)?;
            return if self.take(")") { Ok(pairs) } else { Err("a `)` is missing".to_owned()) };
        }
        if self.take("!") {
            return Err("`!` has no counterpart here".to_owned());
        }
        let name = self.take_name();
        if name.is_empty() || !self.take("(") {
            return Err("expected a function such as Host(`example.com`)".to_owned());
        }
        let words = self.parse_words()?;
        let pair_of: fn(String) -> Pair = match (self.kind, name.as_str()) {
            (RuleKind::Http, "Host") | (RuleKind::Tcp, "HostSNI") => |word| (Some(word.to_ascii_lowercase()), None),
            (RuleKind::Http, "PathPrefix") => |word| (None, Some(word)),
            (RuleKind::Http, "Path") => {
                return Err("Path() matches one path, and a service here has path prefixes: PathPrefix()".to_owned());
            }
            _ => return Err(format!("{}() has no counterpart here", discovery::Excerpt::new(&name))),
        };
        Ok(words.into_iter().map(pair_of).collect())
    }

    /// The function's arguments, up to its `)`. Version 2 takes several.
    fn parse_words(&mut self) -> Result<Vec<String>, String> {
        let mut words = Vec::new();
        loop {
            words.push(self.take_quoted().ok_or("expected a word in backquotes")?);
            if self.take(")") {
                return Ok(words);
            }
            if !self.take(",") || words.len() >= MOST_PAIRS {
                return Err("expected `,` or `)` after a word".to_owned());
            }
        }
    }

    fn take(&mut self, sign: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn take_name(&mut self) -> String {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (name, rest) = rest.split_at_checked(end).unwrap_or((rest, ""));
        self.rest = rest;
        name.to_owned()
    }

    fn take_quoted(&mut self) -> Option<String> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|quote| matches!(quote, '`' | '"' | '\''))?;
        let (word, rest) = rest.strip_prefix(quote)?.split_once(quote)?;
        self.rest = rest;
        Some(word.to_owned())
    }
}

fn check_count(pairs: &BTreeSet<Pair>) -> Result<(), String> {
    if pairs.len() > MOST_PAIRS { Err(format!("more than {MOST_PAIRS} hosts and paths")) } else { Ok(()) }
}

fn join_pairs(one: &Pair, other: &Pair) -> Result<Pair, String> {
    let join = |one: &Option<String>, other: &Option<String>| match (one, other) {
        (Some(one), Some(other)) if one != other => {
            Err("no request matches two hosts or two prefixes at once".to_owned())
        }
        (one, other) => Ok(one.clone().or_else(|| other.clone())),
    };
    Ok((join(&one.0, &other.0)?, join(&one.1, &other.1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rule: &str) -> Result<String, String> {
        let Route { hosts, paths } = parse_rule(rule, RuleKind::Http)?;
        let join = |words: BTreeSet<String>| words.into_iter().collect::<Vec<_>>().join(" ");
        Ok(format!("{} | {}", join(hosts), join(paths)))
    }

    #[test]
    fn hosts_and_prefixes_are_read() {
        for (rule, means) in [
            ("Host(`A.com`)", "a.com | "),
            ("Host(`a.com`, `b.com`)", "a.com b.com | "),
            ("Host(`a.com`) || Host(`b.com`)", "a.com b.com | "),
            ("Host(`a.com`) && PathPrefix(`/x`)", "a.com | /x"),
            ("(Host(`a.com`)||Host(\"b.com\")) && (PathPrefix(`/x`) || PathPrefix(`/y`))", "a.com b.com | /x /y"),
            ("Host(`a.com`) && PathPrefix(`/x`) || Host(`b.com`) && PathPrefix(`/x`)", "a.com b.com | /x"),
            ("Host(`a.com`) && Host(`a.com`)", "a.com | "),
            ("Host(`a.com`) || Host(`a.com`) && PathPrefix(`/x`)", "a.com | "),
        ] {
            assert_eq!(read(rule).as_deref(), Ok(means), "{rule}");
        }
    }

    #[test]
    fn what_a_service_can_not_say_is_refused() {
        for (rule, words) in [
            ("", "expected a function"),
            ("PathPrefix(`/x`)", "needs a host"),
            ("Host(`a.com`) || PathPrefix(`/x`)", "needs a host"),
            ("Host(`a.com`) && Host(`b.com`)", "two hosts"),
            ("Host(`a.com`) && PathPrefix(`/x`) || Host(`b.com`)", "several routers"),
            ("Host(`a.com`) && !PathPrefix(`/x`)", "`!` has no counterpart"),
            ("HostRegexp(`.*`)", "`HostRegexp`() has no counterpart"),
            ("Host(`a.com`) && ClientIP(`10.0.0.0/8`)", "`ClientIP`() has no counterpart"),
            ("Host(`a.com`) && Path(`/x`)", "PathPrefix()"),
            ("Host(a.com)", "in backquotes"),
            ("Host(`a.com`", "expected `,` or `)`"),
            ("Host(`a.com`) Host(`b.com`)", "the rule's end"),
            ("(Host(`a.com`)", "a `)` is missing"),
        ] {
            let refused = read(rule).expect_err(rule);
            assert!(refused.contains(words), "{rule}: {refused}");
        }
    }

    #[test]
    fn a_huge_rule_is_bounded() {
        assert!(read(&"(".repeat(1 << 20)).unwrap_err().contains("parentheses"));
        let many: Vec<_> = (0..1000).map(|number| format!("Host(`a{number}.com`)")).collect();
        assert!(read(&many.join("||")).unwrap_err().contains("more than 256"));
        let paths: Vec<_> = (0..200).map(|number| format!("PathPrefix(`/{number}`)")).collect();
        let square = format!("({}) && ({})", many.get(..200).unwrap().join("||"), paths.join("||"));
        assert!(read(&square).unwrap_err().contains("more than 256"));
    }
}
