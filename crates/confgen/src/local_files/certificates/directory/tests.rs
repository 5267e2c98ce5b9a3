use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;
use crate::test_support::TempFiles;

/// A server's certificate of an authority, in pieces.
struct Issued {
    own: String,
    chain: String,
    key: String,
}

fn issued(name: &str) -> Issued {
    let authority = |name: &str| {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let root = CertifiedIssuer::self_signed(authority("Root"), KeyPair::generate().unwrap()).unwrap();
    let between = CertifiedIssuer::signed_by(authority("Between"), KeyPair::generate().unwrap(), &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &between).unwrap();
    Issued { own: own.pem(), chain: between.pem() + &root.pem(), key: key.serialize_pem() }
}

/// The accepted files, each with its number of certificates, and the reasons for the others.
fn found(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let place = TempFiles::with_folders(&[]);
    for (name, content) in files {
        let path = place.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let found = read_directory(&place.path("certs")).unwrap();
    let name = |path: &Path| path.strip_prefix(place.path("certs")).unwrap().display().to_string();
    let (mut taken, mut others) = (Vec::new(), Vec::new());
    for (path, outcome) in &found.certificates {
        match outcome {
            Ok(text) => {
                let blocks = pem::parse_many(text).unwrap();
                let keys = blocks.iter().filter(|block| block.tag().ends_with("PRIVATE KEY")).count();
                taken.push(format!("{} {}+{keys}", name(path), blocks.len() - keys));
            }
            Err(reason) => others.push(format!("{}: {reason}", name(path))),
        }
    }
    others.extend(found.unused.iter().map(|(path, reason)| format!("{} unused: {reason}", name(path))));
    (taken, others)
}

#[test]
fn the_files_of_common_tools_are_found() {
    let Issued { own, chain, key } = &issued("a.com");
    let bundle = &format!("{own}{chain}");
    let whole = &format!("{own}{key}");
    let nothing: Vec<String> = Vec::new();
    let authority = "the authority of a certificate beside it";
    for (tool, files, taken, others) in [
        (
            "lego",
            vec![("certs/_.a.com.crt", bundle), ("certs/_.a.com.key", key), ("certs/_.a.com.issuer.crt", chain)],
            vec!["_.a.com.crt 3+1"],
            vec![format!("_.a.com.issuer.crt unused: {authority}")],
        ),
        (
            "mkcert",
            vec![("certs/_wildcard.a.com+2.pem", own), ("certs/_wildcard.a.com+2-key.pem", key)],
            vec!["_wildcard.a.com+2.pem 1+1"],
            nothing.clone(),
        ),
        (
            "acme.sh",
            vec![
                ("certs/a.com_ecc/a.com.cer", own),
                ("certs/a.com_ecc/a.com.key", key),
                ("certs/a.com_ecc/ca.cer", chain),
                ("certs/a.com_ecc/fullchain.cer", bundle),
            ],
            vec!["a.com_ecc/a.com.cer 2+1", "a.com_ecc/fullchain.cer 3+1"],
            nothing.clone(),
        ),
        (
            "certbot",
            vec![
                ("certs/a.com/cert.pem", own),
                ("certs/a.com/chain.pem", chain),
                ("certs/a.com/README", key),
                ("certs/a.com/fullchain.pem", bundle),
                ("certs/a.com/privkey.pem", key),
            ],
            vec!["a.com/cert.pem 2+1", "a.com/fullchain.pem 3+1"],
            nothing.clone(),
        ),
        (
            "Kubernetes",
            vec![("certs/a/tls.crt", bundle), ("certs/a/tls.key", key), ("certs/a/..data/tls.crt", bundle)],
            vec!["a/tls.crt 3+1"],
            nothing.clone(),
        ),
        (
            "a shop for certificates",
            vec![("certs/A_COM.CRT", own), ("certs/A_COM.ca-bundle", chain), ("certs/a.KEY", key)],
            vec!["A_COM.CRT 2+1"],
            nothing.clone(),
        ),
        (
            "HAProxy",
            vec![("certs/SHOP.PEM", whole), ("certs/b.pem", own), ("certs/b.pem.key", key)],
            vec!["SHOP.PEM 1+1", "b.pem 1+1"],
            nothing.clone(),
        ),
        ("a key twice", vec![("certs/a.pem", whole), ("certs/a.key", key)], vec!["a.pem 1+1"], nothing.clone()),
        (
            "nothing of it",
            vec![("certs/README", bundle), ("certs/.gitkeep", bundle), ("certs/a.json", key)],
            vec![],
            vec!["README unused: its name does not end in .pem, .crt, .cer, .cert".to_owned()],
        ),
    ] {
        let (found, said) = found(&files.iter().map(|(name, text)| (*name, text.as_str())).collect::<Vec<_>>());
        let said: Vec<String> = said.into_iter().filter(|it| !it.starts_with("a.json")).collect();
        assert_eq!((found, said), (taken.iter().map(ToString::to_string).collect(), others), "{tool}");
    }
}

#[test]
fn a_file_that_cannot_be_served_is_refused_with_the_true_reason() {
    let (one, other) = (issued("a.com"), issued("b.com"));
    let encrypted = one.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (files, expected) in [
        (vec![("certs/a.pem", "")], "a.pem: there is no CERTIFICATE in it"),
        (vec![("certs/a.crt", "\x30\u{1}")], "a.crt: there is no CERTIFICATE in it in PEM; it may be DER"),
        (vec![("certs/a.p12", "\x30\u{1}")], "a.p12: a .p12 file is not PEM; convert it"),
        (vec![("certs/a.pem", "-----BEGIN CERTIFICATE-----\n??\n-----END CERTIFICATE-----\n")], "a.pem: no PEM file"),
        (vec![("certs/a.pem", &*one.own)], "a.pem: there has to be one PRIVATE KEY in it, or in a file beside it"),
        (vec![("certs/a.crt", &*one.own), ("certs/a.key", &*other.key)], "a.crt: the private key in a.key is another"),
        (vec![("certs/a.crt", &*one.own), ("certs/a.key", "")], "a.crt: there is no PRIVATE KEY in a.key"),
        (vec![("certs/ca.pem", &*one.chain)], "ca.pem: it holds an authority's certificate and no private key"),
        (vec![("certs/x.pem", &*one.key)], "x.pem: there is no CERTIFICATE in it, and no certificate beside it"),
        (vec![("certs/a/b/c.pem", &*one.key)], "a/b: certificates are read from the directory and its direct"),
    ] {
        let (taken, said) = found(&files);
        assert!(taken.is_empty() && said.iter().any(|it| it.starts_with(expected)), "{expected}: {taken:?} {said:?}");
    }
    let (taken, _) = found(&[("certs/a.crt", &one.own), ("certs/a.key", &encrypted)]);
    assert_eq!(taken, ["a.crt 1+1"], "an encrypted key is found by its name, and refused by what reads the text");
}

#[test]
fn the_servers_own_certificate_comes_first_whatever_the_files_order() {
    let Issued { own, chain, key } = &issued("a.com");
    let place = TempFiles::with_folders(&["certs"]);
    place.write("certs/a.pem", format!("{chain}{own}{key}"));
    let found = read_directory(&place.path("certs")).unwrap();
    let text = found.certificates[&place.path("certs/a.pem")].as_ref().unwrap();
    let first = pem::parse_many(text).unwrap().remove(0);
    assert_eq!(first, pem::parse(own).unwrap());
}
