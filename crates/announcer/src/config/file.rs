//! Reads the config file. Errors name its line and key. It checks only syntax.

#[cfg(test)]
pub(crate) mod schema;

use std::{fmt, io, io::ErrorKind, path::Path};

use serde::Deserialize;
use toml::{Spanned, de::DeTable};

use crate::config::upstream_options::Announce;

/// Largest file in bytes. Some hundred upstreams take a twentieth of it.
const LARGEST: u64 = 1 << 20;

/// Upstreams as written, with their positions.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFile {
    pub(crate) announces: Vec<(Announce, FilePosition)>,
}

/// Position of an upstream in a file, for errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePosition {
    file: String,
    /// Line of its `[[announce]]`, from 1.
    line: usize,
    /// Lines of its keys, from 1.
    keys: Vec<(String, usize)>,
}

/// Failure to read or parse a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("can't read {file}: {source}")]
    Read { file: String, source: io::Error },
    #[error("{file} is larger than {LARGEST} bytes: is it the right file?")]
    Large { file: String },
    #[error("{file} line {line}: {what}")]
    Syntax { file: String, line: usize, what: String },
    #[error("{file} announces nothing: it needs an [[announce]] for each upstream (announcer --help shows one)")]
    Empty { file: String },
}

/// The file's tables.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "announcer.toml"))]
// A misspelt key must not be ignored: the upstream would be announced otherwise than it was meant.
#[serde(deny_unknown_fields)]
struct Content {
    /// An upstream, its service and its checks
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<Announce>"))]
    announce: Vec<Spanned<Announce>>,
}

impl ConfigFile {
    /// Reads and parses a file of at most [`LARGEST`] bytes.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let file = path.display().to_string();
        let text = regular_file::read_text(path, LARGEST).map_err(|source| match source.kind() {
            ErrorKind::FileTooLarge => FileError::Large { file: file.clone() },
            _ => FileError::Read { file: file.clone(), source },
        })?;
        Self::parse(&file, &text)
    }

    fn parse(file: &str, text: &str) -> Result<Self, FileError> {
        let content: Content = toml::from_str(text).map_err(|error| describe_syntax_error(file, text, &error))?;
        if content.announce.is_empty() {
            return Err(FileError::Empty { file: file.to_owned() });
        }
        let mut keys = key_lines(text).into_iter();
        let mut announces = Vec::new();
        for announce in content.announce {
            let line = line_number(text, announce.span().start);
            let position = FilePosition { file: file.to_owned(), line, keys: keys.next().unwrap_or_default() };
            announces.push((announce.into_inner(), position));
        }
        Ok(Self { announces })
    }
}

impl FilePosition {
    /// Position of this key. An unknown key leaves the position at the `[[announce]]`.
    pub(crate) fn at_key(mut self, key: &str) -> Self {
        if let Some((_, line)) = self.keys.iter().find(|(known, _)| known == key) {
            self.line = *line;
        }
        self
    }
}

impl fmt::Display for FilePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file, self.line)
    }
}

/// Keys of each `[[announce]]`, with their lines.
fn key_lines(text: &str) -> Vec<Vec<(String, usize)>> {
    // serde reported the error already. Without positions, errors name the `[[announce]]`.
    let Ok(root) = DeTable::parse(text) else { return Vec::new() };
    let tables = root.get_ref().get("announce").and_then(|value| value.get_ref().as_array());
    let tables = tables.into_iter().flatten().map(|value| value.get_ref().as_table());
    tables.map(|table| table.map(|table| table_key_lines(text, table)).unwrap_or_default()).collect()
}

fn table_key_lines(text: &str, table: &DeTable<'_>) -> Vec<(String, usize)> {
    table.keys().map(|key| (key.get_ref().to_string(), line_number(text, key.span().start))).collect()
}

/// Line of a byte offset, from 1.
fn line_number(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The quoted line names the key, which toml's own message often doesn't.
fn describe_syntax_error(file: &str, text: &str, error: &toml::de::Error) -> FileError {
    let number = line_number(text, error.span().map_or(0, |span| span.start));
    let written = text.lines().nth(number - 1).unwrap_or_default().trim();
    let message = error.message();
    let what = match suggest_key(message) {
        Some((unknown, Some(known))) => format!("there is no key `{unknown}`; did you mean `{known}`?"),
        Some((unknown, None)) => format!("there is no key `{unknown}`; announcer --help lists them"),
        None => format!("`{written}`: {message}"),
    };
    FileError::Syntax { file: file.to_owned(), line: number, what }
}

/// The unknown key in serde's message, and the known key that resembles it most. serde names all known keys: "unknown
/// field `a`, expected one of `b`, `c`".
fn suggest_key(message: &str) -> Option<(&str, Option<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`').step_by(2);
    let unknown = quoted.next()?;
    // 0.7 is clap's own threshold for a suggestion.
    let alike = quoted.filter(|known| !known.is_empty()).map(|known| (strsim::jaro(unknown, known), known));
    let best = alike.filter(|(likeness, _)| *likeness > 0.7).max_by(|(one, _), (other, _)| one.total_cmp(other));
    Some((unknown, best.map(|(_, known)| known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        ConfigFile::parse("a.toml", text).expect_err(text).to_string()
    }

    #[test]
    fn upstreams_are_read_with_their_places() {
        let text = r#"
            # Comments are fine.
            [[announce]]
            domain = ["a.com", "b.com"]
            port = 8000
            check = "tcp"
            check-interval = "500ms"
            set = { balance = "leastconn", maxconn = 100 }

            [[announce]]
            type = "tcp"
            service = "db"
            ports = 3306
            weight = 7
            upstream = "10.0.0.1:3306"
        "#;
        let file = ConfigFile::parse("a.toml", text).unwrap();
        let [(http, first), (tcp, second)] = &*file.announces else { panic!("{file:?}") };
        assert_eq!(
            (http.domain.as_slice(), http.port),
            (["a.com".to_owned(), "b.com".to_owned()].as_slice(), Some(8000))
        );
        assert_eq!(http.settings, ["balance=leastconn", "maxconn=100"]);
        assert_eq!((http.check_interval.to_string(), http.check_rise.get()), ("500ms".to_owned(), 1));
        assert_eq!((tcp.ports.as_slice(), tcp.weight.get()), (["3306".to_owned()].as_slice(), 7));
        assert_eq!((first.to_string(), second.to_string()), ("a.toml line 3".to_owned(), "a.toml line 10".to_owned()));
        assert_eq!(second.clone().at_key("ports").to_string(), "a.toml line 13");
        assert_eq!(second.clone().at_key("path").to_string(), "a.toml line 10");
    }

    #[test]
    fn errors_name_the_line_and_the_key() {
        for (text, said) in [
            ("", "a.toml announces nothing: it needs an [[announce]] for each upstream (announcer --help shows one)"),
            ("[[announce]]\ndomian = 'a.com'", "a.toml line 2: there is no key `domian`; did you mean `domain`?"),
            ("[[announce]]\n\ncolour = 'blue'", "a.toml line 3: there is no key `colour`; did you mean `color`?"),
            ("[[announce]]\nxyzzy = 1", "a.toml line 2: there is no key `xyzzy`; announcer --help lists them"),
            ("[[anounce]]", "a.toml line 1: there is no key `anounce`; did you mean `announce`?"),
            ("[[announce]]\nport = 'x'", "a.toml line 2: `port = 'x'`: invalid type: string \"x\", expected u16"),
        ] {
            assert_eq!(refused(text), said);
        }
        for (text, words) in [
            ("[[announce]]\nport = 70000", ["line 2", "port = 70000"]),
            ("[[announce]]\n\nweight = 257", ["line 3", "a weight from 0 to 256"]),
            ("[[announce]]\ncheck-interval = 'soon'", ["line 2", "check-interval"]),
            ("[[announce]]\ncheck-fall = 0", ["line 2", "check-fall = 0"]),
            ("[[announce]]\nservice = 'a/b'", ["line 2", "a name has no"]),
            ("[[announce]]\nset = ['a=b']", ["line 2", "a table of settings"]),
            ("[[announce]]\nport = 1\nport = 2", ["line 3", "duplicate key"]),
            ("[[announce]\n", ["line 1", "announce"]),
            ("\u{0}", ["line 1", "a.toml"]),
        ] {
            let error = refused(text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let error = ConfigFile::read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(error.starts_with("can't read /no/such/file: No such file"), "{error}");
        assert!(matches!(
            ConfigFile::read(Path::new("/proc/kcore")),
            Err(FileError::Large { .. } | FileError::Read { .. })
        ));
    }
}
