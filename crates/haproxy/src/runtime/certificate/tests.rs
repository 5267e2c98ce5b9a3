//! Against a real HAProxy.

use std::time::Instant;

use super::*;
use crate::runtime::proxy::{Proxy, write_file};

fn pem(host: &str) -> (String, Pem) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let text = made.cert.pem() + &made.signing_key.serialize_pem();
    let pem = Pem::parse(text.as_bytes()).unwrap();
    (text, pem)
}

/// As many bytes of certificates behind a certificate of its own.
fn long_pem(bytes: usize) -> Pem {
    let (mut text, pem) = pem("long.test");
    while text.len() < bytes {
        text += &pem.public;
    }
    Pem::parse(text.as_bytes()).unwrap()
}

impl Proxy {
    /// One that serves `default.pem` alone.
    fn with_certificate() -> Self {
        Self::start_haproxy(&[], |dir| {
            let [default, list, bind] = ["default.pem", "list", "tls.sock"].map(|name| dir.join(name));
            write_file(&default, pem("default.test").0);
            write_file(&list, format!("{}\n", default.display()));
            format!(
                " ssl-default-bind-options ssl-min-ver TLSv1.2\n\
                 defaults\n mode http\n timeout client 1s\nfrontend tls\n bind {} ssl crt-list {}\n",
                bind.display(),
                list.display()
            )
        })
    }

    fn token(&self, name: &str) -> Token {
        self.path(name).display().to_string().parse().unwrap()
    }

    fn make(&self, change: &CertificateChange) -> Option<String> {
        self.socket().change_certificate(change).unwrap()
    }

    fn shown(&self) -> BTreeMap<Token, Option<ShownCertificate>> {
        self.socket().show_certificates(&self.path("").display().to_string()).unwrap()
    }

    fn listed(&self) -> Vec<(Token, u32)> {
        let list = self.socket().show_crt_list(&self.token("list")).unwrap().unwrap();
        list.into_iter().map(|entry| (entry.file, entry.line)).collect()
    }
}

#[test]
fn a_certificate_comes_changes_and_goes() {
    let proxy = Proxy::with_certificate();
    let (list, a, default) = (proxy.token("list"), proxy.token("a.pem"), proxy.token("default.pem"));
    assert_eq!(proxy.listed(), [(default.clone(), 1)]);

    assert_eq!(proxy.make(&CertificateChange::New(a.clone())), None);
    assert_eq!(proxy.shown()[&a], None, "it is empty");
    assert_eq!(proxy.make(&CertificateChange::Load(a.clone(), pem("a.test").1)), None);
    let first = proxy.shown()[&a].clone().unwrap();
    assert_eq!((first.fingerprint.len(), &first.chain[..]), (40, &[][..]));
    assert_eq!(proxy.make(&CertificateChange::List(list.clone(), a.clone(), vec![])), None);
    assert_eq!(proxy.listed(), [(default.clone(), 1), (a.clone(), 2)]);

    assert_eq!(proxy.make(&CertificateChange::Load(a.clone(), pem("a.test").1)), None);
    assert_ne!(proxy.shown()[&a], Some(first));

    let complaint = proxy.make(&CertificateChange::Delete(a.clone())).unwrap();
    assert!(complaint.contains("in use"), "{complaint}");
    assert_eq!(proxy.make(&CertificateChange::Unlist(list.clone(), a.clone(), Some(2))), None);
    assert_eq!(proxy.make(&CertificateChange::Delete(a.clone())), None);
    assert!(!proxy.shown().contains_key(&a));
    let complaint = proxy.make(&CertificateChange::Unlist(list, default, None)).unwrap();
    assert!(complaint.contains("default certificate"), "{complaint}");
    assert_eq!(proxy.socket().show_crt_list(&a).unwrap(), None);
}

#[test]
fn a_change_that_somebody_left_half_made_is_given_up() {
    let proxy = Proxy::with_certificate();
    let (a, default) = (proxy.token("a.pem"), proxy.token("default.pem"));
    assert_eq!(proxy.make(&CertificateChange::New(a.clone())), None);
    let other = format!(
        "{}
",
        pem("other.test").0
    );
    let answer = proxy.socket().exchange_lossy(&load_command(&default, ""), &other).unwrap();
    assert!(answer.contains("Transaction created"), "{answer}");
    let before = proxy.shown()[&default].clone();
    assert_eq!(proxy.make(&CertificateChange::Load(a.clone(), pem("a.test").1)), None);
    assert_eq!(proxy.shown()[&default], before, "nothing was taken for the other one");
    assert!(proxy.shown()[&a].is_some());
}

#[test]
fn a_long_chain_goes_over_in_two_parts_and_a_longer_one_is_refused_at_once() {
    let proxy = Proxy::with_certificate();
    let default = proxy.token("default.pem");
    let (public, key) = {
        let pem = pem("long.test").1;
        (pem.public.len(), pem.key.len())
    };
    let mut longest = long_pem(LONGEST - public - 200);
    assert!(longest.public.len() + longest.key.len() < LONGEST, "{}", longest.public.len());
    longest.key = format!("{}{}", "# a comment\n".repeat(100), longest.key);
    assert!(longest.public.len() + longest.key.len() > LONGEST && key > 0);
    assert_eq!(longest.split_payloads(&default).unwrap().len(), 2);
    assert_eq!(proxy.make(&CertificateChange::Load(default.clone(), longest)), None);
    let begun = Instant::now();
    let complaint = proxy.make(&CertificateChange::Load(default.clone(), long_pem(20_000))).unwrap();
    assert!(complaint.contains("longer than"), "{complaint}");
    assert!(begun.elapsed() < crate::runtime::TIMEOUT, "nothing was waited for");
}

#[test]
fn a_certificate_that_haproxy_refuses_changes_nothing() {
    let proxy = Proxy::with_certificate();
    let default = proxy.token("default.pem");
    let before = proxy.shown();
    let (one, two) = (pem("one.test").1, pem("two.test").1);
    let mixed = Pem { key: two.key, ..one };
    let complaint = proxy.make(&CertificateChange::Load(default.clone(), mixed)).unwrap();
    assert!(complaint.contains("inconsistencies"), "{complaint}");
    assert_eq!(proxy.shown(), before);
    assert_eq!(proxy.make(&CertificateChange::Load(default, pem("three.test").1)), None, "nothing is left half made");
}

#[test]
fn a_content_that_breaks_a_rule_is_found() {
    let (_, kept) = pem("a.test");
    assert_eq!(kept.find_broken_rule(), None);
    let bare = Pem { certificates: Vec::new(), ..kept.clone() };
    assert_eq!(bare.find_broken_rule(), Some("there is a certificate"));
    let cut = Pem { public: format!("{}\n{}", kept.public, kept.public), ..kept.clone() };
    assert_eq!(cut.find_broken_rule(), Some("no empty line ends a payload"));
    let joined = Pem { key: kept.key.trim_end().to_owned(), ..kept };
    assert_eq!(
        joined.find_broken_rule(),
        Some("no empty line ends a payload"),
        "the payload's end would join its line"
    );
}

#[test]
fn only_a_certificate_with_one_key_in_the_clear_is_taken() {
    let (text, pem) = pem("a.test");
    assert_eq!(pem.certificates().count(), 1);
    let spaced =
        format!("Subject: a.test\n\n{}\n\n", text.replace("-----BEGIN PRIVATE", "\n\nwords\n-----BEGIN PRIVATE"));
    assert_eq!(Pem::parse(spaced.as_bytes()), Ok(pem.clone()), "what stands between the blocks is nothing");
    assert_eq!(Pem::parse(b""), Err(NotPem::NoCertificate));
    assert_eq!(Pem::parse(pem.public.as_bytes()), Err(NotPem::Keys(0)));
    assert_eq!(Pem::parse(format!("{text}{}", pem.key).as_bytes()), Err(NotPem::Keys(2)));
    let encrypted = text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    assert_eq!(Pem::parse(encrypted.as_bytes()), Err(NotPem::Encrypted));
    // A blank line in the key makes its beginning look like headers.
    let secret = pem.key.lines().nth(1).unwrap();
    let broken = text.replace(secret, &format!("{secret}\n"));
    let refused = Pem::parse(broken.as_bytes());
    assert!(
        !format!("{refused:?} {}", refused.clone().err().map(|e| e.to_string()).unwrap_or_default()).contains(secret)
    );
    assert!(!format!("{pem:?} {:?}", CertificateChange::Load("/a".parse().unwrap(), pem.clone())).contains(secret));
}

#[test]
fn what_is_shown_is_read_in_every_version() {
    let answer = "Filename: /c/a.pem\nCrt filename: /c/a.pem\nStatus: Used\nSHA1 FingerPrint: AB\nSubject: /CN=a\n\
                  Issuer: /CN=I\nChain Subject: /CN=I\nChain Issuer: /CN=R\nOCSP Response Key: \n\n\
                  Can't display the certificate: Not found or the certificate is a bundle!\n\n\
                  Filename: /c/b.pem\nStatus: Empty\nOCSP Response Key: \n\n";
    let a = ShownCertificate { fingerprint: "AB".into(), chain: vec!["/CN=I".into()] };
    let expected = [("/c/a.pem", Some(a)), ("/c/b.pem", None)];
    assert_eq!(parse_shown_certificates(answer), expected.map(|(file, shown)| (file.parse().unwrap(), shown)).into());
}

#[test]
fn a_line_is_listed_with_its_filters() {
    let proxy = Proxy::with_certificate();
    let (list, default) = (proxy.token("list"), proxy.token("default.pem"));
    let filters = vec![
        SniFilter::for_name("*.a.test").unwrap(),
        SniFilter::for_name("_b.test").unwrap(),
        SniFilter::excluding_host("c.a.test").unwrap(),
    ];
    let change = CertificateChange::List(list.clone(), default.clone(), filters);
    assert_eq!(proxy.make(&change), None);
    let listed = proxy.socket().show_crt_list(&list).unwrap().unwrap();
    assert_eq!(listed[1].filters, ["*.a.test", "_b.test", "!c.a.test"]);
    assert_eq!(proxy.make(&CertificateChange::Unlist(list.clone(), default.clone(), Some(listed[1].line))), None);
    let many = vec![SniFilter::for_no_name(); LONGEST / 3];
    let complaint = proxy.make(&CertificateChange::List(list, default, many)).unwrap();
    assert!(complaint.contains("longer than"), "{complaint}");
}

#[test]
fn a_name_that_no_client_can_ask_for_is_no_filter() {
    for name in ["", "*", "*.", "a b.test", "a.test #", "[x]", "!a.test", "a.*.test", "A.test", "ä.test", "a\nb"] {
        assert_eq!(SniFilter::for_name(name), None, "{name:?}");
    }
    assert_eq!(SniFilter::for_name(&"a".repeat(254)), None);
    assert_eq!(SniFilter::excluding_host("*.a.test"), None);
}
