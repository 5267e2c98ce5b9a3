//! docs/limits.md, held against the code: a value of the longest length is read, one byte more is not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use discovery::{
    Active, Host, HostName, Kind, Override, PathPrefix, ServiceName, Setting, SettingName, Span, Upstream, UrlRegex,
    Weight,
};

const PAGE: &str = include_str!("../../../docs/limits.md");

/// The page has this row.
fn says(row: &str) {
    assert!(PAGE.lines().any(|line| line == row), "docs/limits.md has no row {row}");
}

fn setting(name: SettingName, value: &str) -> bool {
    Setting::parse(Kind::Http, name, value.as_bytes()).is_ok()
}

#[test]
fn values_are_as_long_as_the_page_says() {
    says("| a setting | 16 kB of text, some five hundred host names |");
    let longest = format!("a.test{}", " ".repeat(16 * 1024 - 6));
    assert!(setting(SettingName::Domain, &longest) && !setting(SettingName::Domain, &format!("{longest} ")));

    says("| an upstream's record, an override | 4 kB |");
    let record = format!("10.0.0.1:80{}", " ".repeat(4 * 1024 - 11));
    assert!(Upstream::parse(record.as_bytes()).is_ok() && Upstream::parse(format!("{record} ").as_bytes()).is_err());
    let imposed = format!("{{}}{}", " ".repeat(4 * 1024 - 2));
    assert!(Override::parse(imposed.as_bytes()).is_ok() && Override::parse(format!("{imposed} ").as_bytes()).is_err());

    says("| a name of a service, upstream, color or node | 253 letters, digits, `_`, `.`, `-` |");
    let name = |length: usize| "a".repeat(length).parse::<ServiceName>();
    assert!(name(253).is_ok() && name(254).is_err());

    says("| the name of an upstream's host | the same, and `:` |");
    let host = |length: usize| format!("a:{}", "b".repeat(length - 2)).parse::<HostName>();
    assert!(host(253).is_ok() && host(254).is_err());

    says("| a host name | 253 characters, 63 in a label |");
    let label = |length: usize| "a".repeat(length);
    let host = [label(63), label(63), label(63), label(61)].join(".");
    assert_eq!(host.len(), 253);
    assert!(host.parse::<Host>().is_ok() && format!("{host}a").parse::<Host>().is_err());
    assert!(label(64).parse::<Host>().is_err());

    says("| a path in `path` | 512 bytes |");
    let path = |length: usize| format!("/{}", label(length - 1)).parse::<PathPrefix>();
    assert!(path(512).is_ok() && path(513).is_err());

    says("| a path in `check` | 256 bytes |");
    let check = |length: usize| setting(SettingName::Check, &format!("http /{}", label(length - 1)));
    assert!(check(256) && !check(257));

    says("| `url_reg` | 256 bytes; see [below](#what-url_reg-may-cost) |");
    let regex = |length: usize| format!("^/{}", label(length - 2)).parse::<UrlRegex>();
    assert!(regex(256).is_ok() && regex(257).is_err());

    says("| a time | 24 days |");
    assert!("24d".parse::<Span>().is_ok() && "25d".parse::<Span>().is_err());
}

#[test]
fn numbers_are_as_large_as_the_page_says() {
    says("| `weight` | 0 to 256 |");
    assert!(["0", "256"].iter().all(|it| it.parse::<Weight>().is_ok()) && "257".parse::<Weight>().is_err());

    says("| `maxconn` | 1 to 1,000,000 |");
    let maxconn = |value: &str| setting(SettingName::Maxconn, value);
    assert!(maxconn("1") && maxconn("1000000") && !maxconn("0") && !maxconn("1000001"));

    says("| a share in `active` | 1 to 10,000 |");
    let active = |share: &str| format!("a={share} b=1").parse::<Active>().is_ok();
    assert!(active("1") && active("10000") && !active("0") && !active("10001"));
    let row =
        format!("| each list in `balancers/<node>` | {} entries, and 256 KiB;", discovery::BalancerRecord::MAX_ENTRIES);
    assert!(PAGE.lines().any(|line| line.starts_with(&row)), "docs/limits.md has no row {row}");
}
