use super::*;
use crate::local_files::certificate::tests::certificate;

const NOW: i64 = 1_000_000;

/// A certificate for some names, valid for so many seconds around now, with this kind of key.
fn of(file: &str, names: &[&str], key_type: KeyType, (since, until): (i64, i64)) -> Certificate {
    Certificate {
        file: file.into(),
        names: names.iter().map(ToString::to_string).collect(),
        servable: names.iter().map(|name| ((*name).to_owned(), Coverage::Exact)).collect(),
        key_type,
        not_before: Some(NOW + since),
        not_after: Some(NOW + until),
        ..certificate("any", &format!("/state/{file}"))
    }
}

fn ecdsa(file: &str, names: &[&str], validity: (i64, i64)) -> Certificate {
    of(file, names, KeyType::Ecdsa, validity)
}

/// The lines as they are written: `a.pem a.com !b.com`.
fn lines(certificates: &[Certificate], now: i64) -> Vec<String> {
    let lines = Choice::choose(certificates, now).crt_list_lines(certificates);
    let line = |(index, filters): (usize, Vec<SniFilter>)| {
        let file = certificates[index].file.display().to_string();
        filters.iter().fold(file, |line, filter| format!("{line} {}", filter.as_str()))
    };
    lines.into_iter().map(line).collect()
}

/// The file that serves a host, as HAProxy chooses by the lines: exact names, then wildcards, for each kind of key.
fn haproxy_serves(certificates: &[Certificate], host: &str, can_use: &[KeyType]) -> Option<String> {
    let listed = Choice::choose(certificates, NOW).crt_list_lines(certificates);
    let serving = |name: &str, key_type: KeyType| {
        let matches = |(index, filters): &&(usize, Vec<SniFilter>)| {
            let certificate = &certificates[*index];
            let has = |word: &str| filters.iter().any(|filter| filter.as_str() == word);
            let is_for = certificate.servable.contains_key(name) && (filters.is_empty() || has(name));
            certificate.key_type == key_type && is_for && !has(&format!("!{host}"))
        };
        let found: Vec<_> = listed.iter().filter(matches).collect();
        assert!(found.len() <= 1, "two for {name}: the order would decide");
        found.first().map(|(index, _)| certificates[*index].file.display().to_string())
    };
    let wildcard = wildcard_of(host).unwrap_or_default();
    let of = |key_type| serving(host, key_type).or_else(|| serving(&wildcard, key_type));
    [KeyType::Ecdsa, KeyType::Rsa, KeyType::Other].into_iter().filter(|it| can_use.contains(it)).find_map(of)
}

const MODERN: &[KeyType] = &[KeyType::Ecdsa, KeyType::Rsa];
const VALID: (i64, i64) = (-10, 100);
const EXPIRED: (i64, i64) = (-100, -1);
const NOT_YET: (i64, i64) = (10, 1_000);

#[test]
fn valid_comes_before_not_yet_valid_before_expired() {
    let (expired, not_yet) = (ecdsa("a.pem", &["x"], EXPIRED), ecdsa("b.pem", &["x"], NOT_YET));
    let valid = ecdsa("c.pem", &["x"], VALID);
    assert_eq!(lines(&[expired.clone(), not_yet.clone(), valid], NOW), ["c.pem"]);
    assert_eq!(lines(&[expired.clone(), not_yet], NOW), ["b.pem"]);
    assert_eq!(lines(&[expired], NOW), ["a.pem"], "better than another name's");
}

#[test]
fn a_validity_ends_after_its_last_second() {
    let it = ecdsa("a.pem", &["x"], (0, 5));
    let at = |seconds: i64| Validity::at(&it, NOW + seconds);
    assert_eq!([-1, 0, 5, 6].map(at), [Validity::NotYetValid, Validity::Valid, Validity::Valid, Validity::Expired]);
    assert_eq!(unchanged_within(std::slice::from_ref(&it), NOW + 1), NOW..NOW + 6);
    assert_eq!(unchanged_within(std::slice::from_ref(&it), NOW + 6), NOW + 6..i64::MAX);
    assert_eq!(unchanged_within(&[it], NOW - 1), i64::MIN..NOW);
    assert_eq!(unchanged_within(&[], NOW), i64::MIN..i64::MAX);
}

#[test]
fn later_expiry_then_later_issue_then_longer_chain_then_file_name_decides() {
    let base = ecdsa("b.pem", &["x"], VALID);
    let later = ecdsa("z.pem", &["x"], (-10, 200));
    let newer = ecdsa("y.pem", &["x"], (-5, 100));
    assert_eq!(lines(&[base.clone(), later], NOW), ["z.pem"]);
    assert_eq!(lines(&[base.clone(), newer], NOW), ["y.pem"]);
    let text = crate::local_files::certificate::tests::pem("any");
    let (own, key) = text.split_at(text.find("-----BEGIN PRIVATE").unwrap());
    let chained = Certificate::parse("c".into(), "/c".parse().unwrap(), format!("{own}{own}{key}").as_bytes()).unwrap();
    assert_eq!(chained.chain_length(), 1);
    let dates = (base.not_before, base.not_after);
    let chained = Certificate {
        file: "fullchain.pem".into(),
        servable: base.servable.clone(),
        not_before: dates.0,
        not_after: dates.1,
        ..chained
    };
    assert_eq!(lines(&[base.clone(), chained], NOW), ["fullchain.pem"]);
    assert_eq!(lines(&[base.clone(), Certificate { file: "c.pem".into(), ..base }], NOW), ["b.pem"]);
}

#[test]
fn a_certificate_for_two_names_leaves_one_to_a_better_certificate() {
    let both = ecdsa("both.pem", &["a.com", "b.com"], VALID);
    let better = ecdsa("b.pem", &["b.com"], (-10, 200));
    assert_eq!(lines(&[both, better], NOW), ["both.pem a.com", "b.pem"]);
}

#[test]
fn exact_comes_before_wildcard_unless_it_has_expired() {
    let wild = |validity| ecdsa("wild.pem", &["*.x.com"], validity);
    let exact = |validity| ecdsa("exact.pem", &["a.x.com"], validity);
    let serves = |wild: Certificate, exact: Certificate| haproxy_serves(&[wild, exact], "a.x.com", MODERN).unwrap();
    assert_eq!(serves(wild((-10, 900)), exact(VALID)), "exact.pem");
    assert_eq!(serves(wild(VALID), exact(EXPIRED)), "wild.pem");
    assert_eq!(serves(wild(VALID), exact(NOT_YET)), "wild.pem");
    assert_eq!(serves(wild(EXPIRED), exact(EXPIRED)), "exact.pem");
    assert_eq!(lines(&[wild(VALID), exact(EXPIRED)], NOW), ["wild.pem"]);
}

#[test]
fn a_wildcard_does_not_serve_a_host_by_another_kind_of_key() {
    let rsa = |name: &str, names: &[&str], validity| of(name, names, KeyType::Rsa, validity);
    let all = [ecdsa("wild.pem", &["*.x.com"], VALID), rsa("exact.pem", &["a.x.com"], VALID)];
    assert_eq!(lines(&all, NOW), ["wild.pem *.x.com !a.x.com", "exact.pem"]);
    assert_eq!(haproxy_serves(&all, "a.x.com", MODERN).unwrap(), "exact.pem");
    assert_eq!(haproxy_serves(&all, "b.x.com", MODERN).unwrap(), "wild.pem");
    let reverse = [rsa("wild.pem", &["*.x.com"], VALID), ecdsa("exact.pem", &["a.x.com"], VALID)];
    assert_eq!(lines(&reverse, NOW), ["wild.pem", "exact.pem"]);
    assert_eq!(haproxy_serves(&reverse, "a.x.com", &[KeyType::Rsa]).unwrap(), "wild.pem", "it can't use the other");
}

#[test]
fn both_kinds_of_keys_serve_unless_one_is_expired() {
    let pair = |of_ecdsa, of_rsa| [ecdsa("e.pem", &["x"], of_ecdsa), of("r.pem", &["x"], KeyType::Rsa, of_rsa)];
    let more = [ecdsa("e0.pem", &["x"], EXPIRED), of("r0.pem", &["x"], KeyType::Rsa, EXPIRED)];
    assert_eq!(lines(&[&pair(VALID, VALID)[..], &more].concat(), NOW), ["e.pem", "r.pem"], "the best of each kind");
    assert_eq!(lines(&pair(EXPIRED, VALID), NOW), ["r.pem"], "HAProxy would prefer the expired one");
    assert_eq!(lines(&pair(VALID, EXPIRED), NOW), ["e.pem", "r.pem"], "for clients that can't use the other");
}

#[test]
fn a_client_without_a_name_gets_the_certificate_of_the_first_valid_files_name() {
    let default = |all: &[Certificate]| Choice::choose(all, NOW).default.map(|at| all[at].file.display().to_string());
    let (old, new) = (ecdsa("b-2025.pem", &["x"], VALID), ecdsa("b-2026.pem", &["x"], (0, 900)));
    let (expired, other) = (ecdsa("a.pem", &["y"], EXPIRED), ecdsa("c.pem", &["z"], (0, 9_000)));
    assert_eq!(default(&[]), None);
    assert_eq!(default(&[expired.clone(), old, new, other]).unwrap(), "b-2026.pem");
    assert_eq!(default(&[expired]).unwrap(), "a.pem");
}

#[test]
fn names_that_no_client_can_ask_for_are_no_filters() {
    let odd = ecdsa("odd.pem", &["a.com", "b .com", "[x]", "!y", "c\nd"], VALID);
    let better = ecdsa("z.pem", &["a.com"], (-10, 200));
    assert_eq!(lines(&[odd.clone(), better], NOW), ["z.pem"]);
    assert_eq!(lines(&[odd], NOW), ["odd.pem"]);
    assert_eq!(lines(&[ecdsa("none.pem", &[], VALID)], NOW), ["none.pem"]);
}

#[test]
fn a_line_that_would_be_too_long_has_no_filters() {
    let names: Vec<String> = (0..900).map(|n| format!("name-{n:04}.example.com")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let better = ecdsa("z.pem", &names[..1], (-10, 200));
    assert_eq!(lines(&[ecdsa("long.pem", &names, VALID), better], NOW), ["long.pem", "z.pem"]);
}

#[test]
fn an_advantage_has_words() {
    let all = [ecdsa("a.pem", &["x"], EXPIRED), ecdsa("b.pem", &["x"], VALID), ecdsa("c.pem", &["*.y"], VALID)];
    let choice = Choice::choose(&all, NOW);
    let words = |host: &str| {
        let chosen = choice.claimants(host).iter().find(|it| it.is_chosen).unwrap();
        let (advantage, other) = choice.advantage_of(host, chosen);
        format!("{}: {advantage} {other:?}", all[chosen.index].file.display())
    };
    assert_eq!(words("x"), "b.pem: the other one has expired Some(0)");
    assert_eq!(words("w.y"), "c.pem: the only one None");
    assert!(choice.claimants("none").is_empty() && choice.claimants("v.w.y").is_empty());
}

proptest::proptest! {
    /// For any certificates, HAProxy serves each host with the best of each kind of key, and never has two to choose from.
    #[test]
    fn haproxy_never_has_to_choose_between_two(
        raw in proptest::collection::vec((0..3_usize, proptest::bits::u8::between(0, 5), -2..3_i64, 0..3_i64), 1..8)
    ) {
        let names = ["a.x.com", "b.x.com", "*.x.com", "y.com", "*.y.com"];
        let certificate = |(at, (kind, bits, since, length)): (usize, &(usize, u8, i64, i64))| {
            let names: Vec<&str> = names.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|it| *it.1).collect();
            of(&format!("{at}.pem"), &names, [KeyType::Ecdsa, KeyType::Rsa, KeyType::Other][*kind], (*since, since + length))
        };
        let all: Vec<Certificate> = raw.iter().enumerate().map(certificate).collect();
        let choice = Choice::choose(&all, NOW);
        for host in ["a.x.com", "b.x.com", "c.x.com", "y.com", "z.y.com", "none.com"] {
            for can_use in [&[KeyType::Rsa][..], MODERN, &[KeyType::Ecdsa], &[KeyType::Other]] {
                let usable = |it: &&Claimant| it.is_chosen && can_use.contains(&it.key_type);
                let best = choice.claimants(host).iter().filter(usable).min_by_key(|it| it.key_type);
                let best = best.map(|it| all[it.index].file.display().to_string());
                proptest::prop_assert_eq!(haproxy_serves(&all, host, can_use), best, "{} {:?}", host, can_use);
            }
            // What a modern client gets is valid if anything is.
            let valid = |it: &Claimant| it.rank.validity == Validity::Valid && it.key_type != KeyType::Other;
            if choice.claimants(host).iter().any(valid) {
                let served = haproxy_serves(&all, host, MODERN).unwrap();
                let served = all.iter().find(|it| it.file.ends_with(&served)).unwrap();
                proptest::prop_assert_eq!(Validity::at(served, NOW), Validity::Valid);
            }
        }
    }
}

#[test]
fn a_choice_with_two_certificates_of_a_kind_or_with_none_is_a_violation() {
    let all = [ecdsa("a.pem", &["x"], VALID), ecdsa("b.pem", &["x"], VALID)];
    let good = Choice::choose(&all, NOW);
    assert_eq!(good.find_violation(&all), None);
    for chosen in [true, false] {
        let mut bad = good.clone();
        bad.names.get_mut("x").unwrap().iter_mut().for_each(|it| it.is_chosen = chosen);
        assert!(bad.find_violation(&all).unwrap().starts_with("x has the certificates"), "{chosen}");
    }
    assert!(good.find_violation(&all[..1]).is_some(), "it names a certificate that doesn't exist");
    assert!(Choice { default: None, ..good.clone() }.find_violation(&all).is_some());
    assert!(Choice { default: Some(2), ..good }.find_violation(&all).is_some());
}
