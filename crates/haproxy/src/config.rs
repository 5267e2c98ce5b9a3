//! Configuration files as HAProxy reads them: which ones, and the `server` lines in them.

mod words;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use words::words;

/// A `server` line with an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerLine {
    /// Its `backend` or `listen` section.
    pub backend: String,
    /// Its name.
    pub server: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 for none.
    pub port: u16,
}

/// A configuration file, or directory of them, that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {path}: {source}")]
pub struct Unreadable {
    /// Which.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// The keywords that open a section (manual, 2.6 to 3.2). A `server` line in one of the others isn't a backend's.
const SECTIONS: [&str; 19] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "mailers",
    "resolvers",
    "userlist",
    "program",
    "cache",
    "ring",
    "http-errors",
    "fcgi-app",
    "log-forward",
    "log-profile",
    "crt-store",
    "traces",
    "acme",
];

/// The `server` lines of a configuration text that name an IP address, in the file's order.
///
/// Host names, unix sockets, relative ports, templates and words from the environment are passed over.
/// Both branches of an `.if` count.
pub fn servers(text: &str) -> Vec<ServerLine> {
    let mut backend = None;
    let mut found = Vec::new();
    for line in text.lines() {
        let words = words(line);
        match words.iter().map(Option::as_deref).collect::<Vec<_>>().as_slice() {
            [Some("backend" | "listen"), name, ..] => backend = name.map(str::to_owned),
            [Some(keyword), ..] if SECTIONS.contains(keyword) => backend = None,
            [Some("server"), Some(server), Some(address), ..] => {
                if let (Some(backend), Some((address, port))) = (&backend, parse_address(address)) {
                    found.push(ServerLine { backend: backend.clone(), server: (*server).to_owned(), address, port });
                }
            }
            _ => {}
        }
    }
    found
}

/// An address as `server` takes it: the last colon separates the port, brackets or not.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port.parse().ok()?),
        Some(_) => return None,
        None => (text, 0),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.parse().ok()?, port))
}

/// The texts of the files that HAProxy reads for these `-f` arguments: a directory stands for its
/// `*.cfg`, by name, without hidden ones.
///
/// # Errors
/// When one of them can't be read.
pub fn read(paths: &[PathBuf]) -> Result<Vec<String>, Unreadable> {
    let mut texts = Vec::new();
    for path in paths {
        for file in files(path).map_err(|source| Unreadable { path: path.clone(), source })? {
            // Comments may be in any encoding; what matters here is ASCII.
            let bytes = fs::read(&file).map_err(|source| Unreadable { path: file.clone(), source })?;
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(texts)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".cfg") && !name.starts_with('.') && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        servers(text).iter().map(|s| format!("{}/{} {} {}", s.backend, s.server, s.address, s.port)).collect()
    }

    #[test]
    fn finds_servers_by_section() {
        let text = "
global
    stats socket /run/x
backend http-app from careful   # its own
    balance roundrobin
    server one 10.0.0.1:8000 check
    server two [fd00::2]:8001 weight 3
listen tcp-db
    bind :3306
    server db 10.0.0.3
peers others
    server node 10.0.0.9:1024
frontend web
    bind :80
";
        assert_eq!(names(text), ["http-app/one 10.0.0.1 8000", "http-app/two fd00::2 8001", "tcp-db/db 10.0.0.3 0"]);
    }

    #[test]
    fn reads_addresses_as_haproxy_does() {
        let line = |address: &str| names(&format!("backend b\n server s {address}")).pop();
        assert_eq!(line("ipv4@10.0.0.1:80").as_deref(), Some("b/s 10.0.0.1 80"));
        assert_eq!(line("fd00::1:80").as_deref(), Some("b/s fd00::1 80"), "the last colon is the port's");
        for foreign in
            ["app.example:80", "10.0.0.1:+80", "unix@/run/x", "/run/x", "abns@x", "\"${APP}:80\"", "10.0.0.1:99999"]
        {
            assert_eq!(line(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn reads_words_as_haproxy_does() {
        assert_eq!(names("backend 'a'\n server \"s\" 10.0.0.1:80#comment"), ["a/s 10.0.0.1 80"]);
        assert_eq!(names("backend \"$NAME\"\n server s 10.0.0.1:80"), Vec::<String>::new());
        assert_eq!(names("server s 10.0.0.1:80\nbackend\nserver s 10.0.0.1:80"), Vec::<String>::new());
    }

    #[test]
    fn a_directory_stands_for_its_files() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("20.cfg", "second"), ("10.cfg", "first"), (".hidden.cfg", "no"), ("notes.txt", "no")] {
            io::Write::write_all(&mut fs::File::create(dir.path().join(name)).unwrap(), text.as_bytes()).unwrap();
        }
        let last = dir.path().join("notes.txt");
        assert_eq!(read(&[dir.path().to_owned(), last]).unwrap(), ["first", "second", "no"]);
        let error = read(&[dir.path().join("none")]).unwrap_err();
        assert!(error.to_string().contains("/none: "), "{error}");
    }
}
