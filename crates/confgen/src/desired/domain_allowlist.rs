//! The hosts that each service may claim (`--domains-file`). Pure: this module reads text, not files.
//!
//! A line names a service and its hosts: `shop  shop.example.com *.shop.example.com`. `#` begins a comment. `*` stands for every
//! service, or for every host. `*.example.com` covers the wildcard itself and each host one label below. Several lines of one
//! service add up.

use std::collections::BTreeMap;

use discovery::{Domain, ServiceName};

/// The hosts of each service. A service that the file doesn't name may claim the hosts of `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainAllowlist {
    all: Vec<Pattern>,
    services: BTreeMap<ServiceName, Vec<Pattern>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    Named(Domain),
}

impl DomainAllowlist {
    /// Parses the file's text. The error names the first bad line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut allowed = Self::default();
        for (number, line) in text.lines().enumerate() {
            let mut words =
                line.split('#').next().unwrap_or_default().split([' ', '\t', ',']).filter(|w| !w.is_empty());
            let Some(service) = words.next() else { continue };
            let patterns = if service == "*" {
                &mut allowed.all
            } else {
                let name = service.parse().map_err(|error| format!("line {}: {service}: {error}", number + 1))?;
                allowed.services.entry(name).or_default()
            };
            for word in words {
                patterns.push(match word {
                    "*" => Pattern::Any,
                    _ => Pattern::Named(word.parse().map_err(|error| format!("line {}: {word}: {error}", number + 1))?),
                });
            }
        }
        Ok(allowed)
    }

    /// The error is the reason why the service can't claim the host.
    pub fn check_domain(&self, service: &ServiceName, domain: &Domain) -> Result<(), String> {
        if self.patterns_of(service).any(|pattern| pattern.matches_domain(domain)) {
            Ok(())
        } else {
            Err(format!("{domain}: --domains-file doesn't give it to {service}"))
        }
    }

    /// Passes if the service may claim at least one of these hosts. The error is the reason against the first.
    pub fn check_some_domain(&self, service: &ServiceName, domains: &[Domain]) -> Result<(), String> {
        let mut verdicts = domains.iter().map(|domain| self.check_domain(service, domain));
        // A key without any host claims nothing, and is allowed.
        let first = verdicts.next().unwrap_or(Ok(()));
        if verdicts.any(|verdict| verdict.is_ok()) { Ok(()) } else { first }
    }

    /// Passes if the service may answer for hosts that no service names. The error is the reason why it can't.
    pub fn check_catch_all(&self, service: &ServiceName) -> Result<(), String> {
        let any = self.patterns_of(service).any(|pattern| *pattern == Pattern::Any);
        if any {
            Ok(())
        } else {
            Err(format!("it could match any host, and --domains-file doesn't give `*` to {service}"))
        }
    }

    fn patterns_of(&self, service: &ServiceName) -> impl Iterator<Item = &Pattern> {
        self.all.iter().chain(self.services.get(service).into_iter().flatten())
    }
}

impl Pattern {
    fn matches_domain(&self, domain: &Domain) -> bool {
        match (self, domain) {
            (Self::Any, _) => true,
            (Self::Named(Domain::Wildcard(parent)), Domain::Exact(host)) => {
                host.as_str().split_once('.').is_some_and(|(_, rest)| rest == parent.as_str())
            }
            (Self::Named(pattern), domain) => pattern == domain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(file: &str, service: &str, hosts: &[&str]) -> bool {
        let (allowed, service) = (DomainAllowlist::parse(file).unwrap(), service.parse().unwrap());
        hosts.iter().all(|host| allowed.check_domain(&service, &host.parse().unwrap()).is_ok())
    }

    #[test]
    fn a_service_has_its_own_hosts_and_those_of_all() {
        let file =
            "# who may be what\nshop  Shop.example.com, *.shop.example.com # two\n*  *.apps.example.com\nall *\nnone\n";
        assert!(allows(file, "shop", &["shop.example.com", "*.shop.example.com", "a.shop.example.com"]));
        assert!(!allows(file, "shop", &["shop.example.com", "a.b.shop.example.com"]));
        assert!(!allows(file, "shop", &["example.com"]));
        assert!(!allows(file, "blog", &["shop.example.com"]));
        assert!(allows(file, "blog", &["blog.apps.example.com"]));
        assert!(!allows(file, "none", &["x.com"]) && allows(file, "all", &["x.com", "*.y.com"]));
        assert!(!allows("shop a.example.com", "shop", &["*.example.com"]), "a wildcard is more than one of its hosts");
    }

    #[test]
    fn a_service_that_could_match_any_host_needs_every_host() {
        let allowed = DomainAllowlist::parse("old *\nshop *.example.com").unwrap();
        assert!(allowed.check_catch_all(&"old".parse().unwrap()).is_ok());
        assert!(allowed.check_catch_all(&"shop".parse().unwrap()).is_err());
    }

    #[test]
    fn a_bad_line_is_named() {
        assert!(DomainAllowlist::parse("shop a.com\n\nblog b_.com/x").unwrap_err().starts_with("line 3: b_.com/x: "));
        assert!(DomainAllowlist::parse("sh/op a.com").unwrap_err().starts_with("line 1: sh/op: "));
    }
}
