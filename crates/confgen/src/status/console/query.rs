//! The query of the list of services: search, filters, order and page. Pure.

use std::cmp::Ordering;

use serde::Deserialize;

/// The services of one page. A table of more is slow to render on a phone.
pub const ROWS: usize = 100;

/// The longest text of a field that is searched for.
const LONGEST: usize = 200;

/// The order of the services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Those with the most harm first, then by name.
    #[default]
    Harm,
    Name,
    Sessions,
    Requests,
    Errors,
    Latency,
}

impl Order {
    pub const ALL: [Self; 6] = [Self::Harm, Self::Name, Self::Sessions, Self::Requests, Self::Errors, Self::Latency];

    /// The word in the query.
    pub fn name(self) -> &'static str {
        match self {
            Self::Harm => "harm",
            Self::Name => "name",
            Self::Sessions => "sessions",
            Self::Requests => "requests",
            Self::Errors => "errors",
            Self::Latency => "latency",
        }
    }

    /// The words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Harm => "worst first",
            Self::Name => "name",
            Self::Sessions => "sessions",
            Self::Requests => "requests/s",
            Self::Errors => "5xx/s",
            Self::Latency => "latency",
        }
    }

    fn parse(name: &str) -> Self {
        Self::ALL.into_iter().find(|order| order.name() == name).unwrap_or_default()
    }
}

/// The query as it stands in the URL. Fields that are missing or can't be read have their defaults, because a reader may have
/// typed them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawQuery {
    q: String,
    host: String,
    color: String,
    wrong: String,
    problem: String,
    sort: String,
    page: String,
}

/// The query, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceQuery {
    /// Words that a service's name, hosts, ports or upstreams have. All must be found.
    pub text: String,
    /// A machine of its upstreams, or one of its domains, as a whole or in part.
    pub host: String,
    /// A color of its upstreams.
    pub color: String,
    pub only_wrong: bool,
    /// A kind of problems, alone or with a cause: `no_requests`, `no_requests.pending`.
    pub problem: String,
    pub order: Order,
    /// From 1.
    pub page: usize,
}

impl RawQuery {
    pub fn read(&self) -> ServiceQuery {
        // A longer text would be searched for in every service.
        let field = |text: &str| text.trim().chars().take(LONGEST).collect::<String>();
        ServiceQuery {
            text: field(&self.q),
            host: field(&self.host),
            color: field(&self.color),
            only_wrong: self.wrong == "1",
            problem: field(&self.problem),
            order: Order::parse(&self.sort),
            page: self.page.parse().unwrap_or(1).max(1),
        }
    }
}

/// The facts of a service that the query is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subject<'a> {
    /// `http-shop`.
    pub name: String,
    /// The rank of its greatest harm, 0 for the most. `None` if nothing is wrong.
    pub harm: Option<usize>,
    /// Its problems: `no_requests.pending`. Empty if the query has no problem.
    pub problems: Vec<String>,
    pub domains: Vec<String>,
    pub machines: Vec<&'a str>,
    pub colors: Vec<&'a str>,
    /// Further texts that are searched: paths, ports, upstreams, addresses. Empty if the query has no text.
    pub texts: Vec<String>,
    pub sessions: u64,
    pub requests: Option<f32>,
    pub errors: Option<f32>,
    pub latency: Option<f32>,
}

impl ServiceQuery {
    /// True if the service belongs into the list.
    pub fn selects(&self, subject: &Subject) -> bool {
        let has_host = || subject.hosts().any(|host| contains(host, &self.host));
        (!self.only_wrong || subject.harm.is_some())
            && (self.problem.is_empty() || subject.problems.iter().any(|problem| is_of_kind(problem, &self.problem)))
            && (self.color.is_empty() || subject.colors.contains(&self.color.as_str()))
            && (self.host.is_empty() || has_host())
            && self.text.split_whitespace().all(|word| subject.has_word(word))
    }

    /// The order of two services. Figures come with the greatest first, and names decide between equals.
    pub fn compare(&self, one: &Subject, other: &Subject) -> Ordering {
        // A service without a figure comes after those with a figure of 0.
        let by_figure =
            |figure: fn(&Subject) -> Option<f32>| figure(other).unwrap_or(-1.0).total_cmp(&figure(one).unwrap_or(-1.0));
        let first = match self.order {
            Order::Name => Ordering::Equal,
            Order::Harm => one.harm.unwrap_or(usize::MAX).cmp(&other.harm.unwrap_or(usize::MAX)),
            Order::Sessions => other.sessions.cmp(&one.sessions),
            Order::Requests => by_figure(|subject| subject.requests),
            Order::Errors => by_figure(|subject| subject.errors),
            Order::Latency => by_figure(|subject| subject.latency),
        };
        first.then_with(|| one.name.cmp(&other.name))
    }

    /// True if the list has all services.
    pub fn is_unfiltered(&self) -> bool {
        let texts = [&self.text, &self.host, &self.color, &self.problem];
        texts.into_iter().all(String::is_empty) && !self.only_wrong
    }

    /// The URL of the list with another order or page.
    pub fn url(&self, order: Order, page: usize) -> String {
        // Defaults are left out, so that the plain list has a plain URL.
        let mut pairs = Vec::new();
        let texts = [("q", &self.text), ("host", &self.host), ("color", &self.color), ("problem", &self.problem)];
        for (name, value) in texts {
            pairs.extend((!value.is_empty()).then(|| format!("{name}={}", encode_query(value))));
        }
        pairs.extend(self.only_wrong.then(|| "wrong=1".to_owned()));
        pairs.extend((order != Order::default()).then(|| format!("sort={}", order.name())));
        pairs.extend((page > 1).then(|| format!("page={page}")));
        if pairs.is_empty() { "/".to_owned() } else { format!("/?{}", pairs.join("&")) }
    }
}

impl Subject<'_> {
    fn hosts(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().map(String::as_str).chain(self.machines.iter().copied())
    }

    fn has_word(&self, word: &str) -> bool {
        let names = [self.name.as_str()].into_iter().chain(self.hosts()).chain(self.colors.iter().copied());
        names.chain(self.texts.iter().map(String::as_str)).any(|text| contains(text, word))
    }
}

/// True if the problem has this kind, or this kind and cause.
fn is_of_kind(problem: &str, wanted: &str) -> bool {
    problem.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// True if the text has the word, whatever the case of its letters is.
fn contains(text: &str, word: &str) -> bool {
    let (text, word) = (text.as_bytes(), word.as_bytes());
    word.is_empty() || text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// A value of a query: everything but letters, digits and a few signs is escaped.
pub fn encode_query(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The pages of a list, from 1. Empty lists have one.
pub fn count_pages(rows: usize) -> usize {
    rows.div_ceil(ROWS).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str) -> Subject<'static> {
        Subject {
            name: name.into(),
            domains: vec!["shop.example.com".into()],
            machines: vec!["web-1"],
            ..Subject::default()
        }
    }

    fn read(text: &str) -> ServiceQuery {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        let of = |wanted: &str| pairs.clone().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned());
        let field = |name| of(name).unwrap_or_default();
        let (q, host, color) = (field("q"), field("host"), field("color"));
        let (problem, sort) = (field("problem"), field("sort"));
        RawQuery { q, host, color, wrong: field("wrong"), problem, sort, page: field("page") }.read()
    }

    #[test]
    fn a_query_that_makes_no_sense_has_its_defaults() {
        assert_eq!(read(""), ServiceQuery { page: 1, ..ServiceQuery::default() });
        let odd = read("wrong=yes&sort=mood&page=-3&q=  a  ");
        assert_eq!((odd.only_wrong, odd.order, odd.page, odd.text.as_str()), (false, Order::Harm, 1, "a"));
        assert_eq!(read(&format!("q={}", "x".repeat(999))).text.len(), LONGEST);
    }

    #[test]
    fn a_service_is_found_by_all_that_it_shows() {
        let mut shop = subject("http-shop");
        shop.colors = vec!["blue"];
        shop.texts = vec!["10.0.0.7:8000".into()];
        for found in
            ["", "q=SHOP", "q=example+", "q=10.0.0.7", "q=shop blue", "host=web-1", "host=SHOP.exa", "color=blue"]
        {
            let query = read(&found.replace('+', ""));
            assert!(query.selects(&shop), "{found}");
        }
        for missed in ["q=cart", "q=shop cart", "host=web-2", "color=blu", "wrong=1"] {
            assert!(!read(missed).selects(&shop), "{missed}");
        }
        shop.harm = Some(0);
        shop.problems = vec!["no_requests.pending".into()];
        for found in ["wrong=1", "problem=no_requests", "problem=no_requests.pending"] {
            assert!(read(found).selects(&shop), "{found}");
        }
        for missed in ["problem=no_request", "problem=pending", "problem=no_requests.check", "problem=no_upstream"] {
            assert!(!read(missed).selects(&shop), "{missed}");
        }
    }

    #[test]
    fn services_are_in_the_wanted_order() {
        let mut all = vec![subject("http-b"), subject("http-a"), subject("http-c")];
        (all[2].harm, all[0].requests, all[1].sessions) = (Some(1), Some(2.0), 9);
        let names = |order: &str| {
            let mut sorted = all.clone();
            let query = read(&format!("sort={order}"));
            sorted.sort_by(|one, other| query.compare(one, other));
            sorted.into_iter().map(|subject| subject.name.replace("http-", "")).collect::<String>()
        };
        assert_eq!(["", "name", "requests", "sessions", "errors"].map(names), ["cab", "abc", "bac", "abc", "abc"]);
    }

    #[test]
    fn a_link_keeps_the_filter_and_can_not_be_broken() {
        let query = read("q=\"><script>&host=a b&wrong=1&problem=no_requests.pending");
        let rest = "host=a%20b&problem=no_requests.pending&wrong=1&sort=name&page=2";
        assert_eq!(query.url(Order::Name, 2), format!("/?q=%22%3E%3Cscript%3E&{rest}"));
        assert_eq!(ServiceQuery::default().url(Order::Harm, 1), "/");
        assert_eq!([0, 1, 100, 101].map(count_pages), [1, 1, 1, 2]);
    }
}
