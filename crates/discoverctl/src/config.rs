//! The configuration files: options for a whole host or for one user, so that no command line has to name them.
//!
//! An option of the command line beats its variable. A variable beats the user's file, and the user's file beats the
//! host's file. This module only turns files into clap's defaults. clap applies that order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, ValueEnum as _};
use program::variable;
use toml::Spanned;

use crate::error::Error;
use crate::file::read_small;
use crate::shared_options::{Format, parse_log_for};

/// The configuration file for all users of a host.
const HOST_FILE: &str = "/etc/haproxy-discover/discoverctl.toml";
/// The user's file, below `$XDG_CONFIG_HOME` or `~/.config`.
const USER_FILE: &str = "haproxy-discover/discoverctl.toml";
/// The variable that names one file to read instead of both.
const INSTEAD_VARIABLE: &str = "DISCOVERCTL_CONFIG";

/// The keys, which are the options' names. Options of one group come from one source: the first that names any of them.
/// So a user name on the command line doesn't get the file's password.
const KEYS: [(&str, Kind, u8); 13] = [
    ("endpoints", Kind::List, 0),
    ("cacert", Kind::Path, 1),
    ("cert", Kind::Path, 2),
    ("key", Kind::Path, 2),
    ("user", Kind::User, 3),
    ("password-file", Kind::Path, 3),
    ("prefix", Kind::Word, 4),
    ("api-token-file", Kind::Path, 5),
    ("api-cacert", Kind::Path, 6),
    ("api-cert", Kind::Path, 7),
    ("api-key", Kind::Path, 7),
    ("output", Kind::Output, 8),
    ("log-for", Kind::LogFor, 9),
];

/// The form of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    /// Several words, as an array or separated by commas.
    List,
    /// A path. A relative path starts at the file's folder, and `~/` at the user's home.
    Path,
    User,
    Output,
    LogFor,
}

/// The options that the files set, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config(BTreeMap<&'static str, Value>);

/// An option's value, and the file that sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    words: Vec<String>,
    file: PathBuf,
}

/// An option's value in effect, and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EffectiveOption {
    /// The option's name without the dashes.
    pub(crate) key: &'static str,
    /// None for an option without a value and a default.
    pub(crate) value: Option<String>,
    /// The flag, the variable, the path of the file, or `default`.
    pub(crate) source: String,
}

/// The paths of the files, as the environment variables name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ConfigPaths {
    /// The user's home; None for a process without one.
    home: Option<PathBuf>,
    /// Optional files. The first one counts most.
    files: Vec<PathBuf>,
    /// A file that must exist, instead of all `files`.
    instead: Option<PathBuf>,
}

impl ConfigPaths {
    fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let home = variable("HOME").map(PathBuf::from);
        if let Some(instead) = variable(INSTEAD_VARIABLE) {
            return Self { home, files: Vec::new(), instead: Some(instead.into()) };
        }
        // A relative path is invalid there and must be ignored (XDG Base Directory Specification 0.8).
        let folder = variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let user = folder.or_else(|| Some(home.as_ref()?.join(".config"))).map(|folder| folder.join(USER_FILE));
        Self { home, files: user.into_iter().chain([HOST_FILE.into()]).collect(), instead: None }
    }
}

impl Config {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Usage`] if a file can't be read, or if its text is invalid.
    pub(crate) fn read() -> Result<Self, Error> {
        Self::read_from(&ConfigPaths::from_environment(|name| variable::read(name)))
    }

    fn read_from(places: &ConfigPaths) -> Result<Self, Error> {
        let mut config = Self::default();
        if let Some(path) = &places.instead {
            let bytes = read_small(path).map_err(|error| unreadable_error(path, &error))?;
            config.add_file(path, parse_file(path, &bytes, places.home.as_deref())?);
            return Ok(config);
        }
        let mut is_any_read = false;
        for path in &places.files {
            let bytes = match read_small(path) {
                Ok(bytes) => bytes,
                Err(error) if is_absent(&error) => continue,
                // Only root may read the host's file if it holds a password. A user who has a file must not fail for
                // that.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_any_read => continue,
                Err(error) => return Err(unreadable_error(path, &error)),
            };
            is_any_read = true;
            config.add_file(path, parse_file(path, &bytes, places.home.as_deref())?);
        }
        Ok(config)
    }

    /// Adds the options of a file, except groups of which an earlier file sets an option.
    fn add_file(&mut self, path: &Path, keys: Words) {
        let taken: BTreeSet<Option<u8>> = self.0.keys().map(|key| find_group(key)).collect();
        let fresh = keys.into_iter().filter(|(key, _)| !taken.contains(&find_group(key)));
        self.0.extend(fresh.map(|(key, words)| (key, Value { words, file: path.to_owned() })));
    }

    /// Makes the files' values the options' defaults, except groups of which the command line or the environment sets
    /// an option. `given` is the result of parsing without the files.
    pub(crate) fn apply_defaults(&self, mut command: clap::Command, given: &ArgMatches) -> clap::Command {
        for (key, Value { words, .. }) in &self.0 {
            // A password on the command line or in the environment replaces the file's password, and belongs to the
            // file's user.
            let has_password = *key == "password-file" && is_option_given(given, "password");
            if has_password || is_group_given(given, key) {
                continue;
            }
            // `--help` shows defaults, and `user` may hold a password.
            command =
                command.mut_arg(clap_id(key), |arg: Arg| arg.default_values(words.clone()).hide_default_value(true));
        }
        command
    }

    /// Lists every option that a file may set, with its value in effect and the source of that.
    pub(crate) fn list_effective(&self, matches: &ArgMatches, command: &clap::Command) -> Vec<EffectiveOption> {
        KEYS.iter().map(|(key, kind, _)| self.describe_option(key, *kind, matches, command)).collect()
    }

    fn describe_option(
        &self,
        key: &'static str,
        kind: Kind,
        matches: &ArgMatches,
        command: &clap::Command,
    ) -> EffectiveOption {
        let id = clap_id(key);
        let words =
            matches.get_raw(&id).map(|words| words.map(|it| it.to_string_lossy().into_owned()).collect::<Vec<_>>());
        let value = words.map(|words| words.join(","));
        let value = value.map(|value| if kind == Kind::User { hide_password(&value) } else { value });
        let variable = command.get_arguments().find(|arg| arg.get_id() == id.as_str()).and_then(Arg::get_env);
        let source = match matches.value_source(&id) {
            Some(ValueSource::CommandLine) => format!("--{key}"),
            Some(ValueSource::EnvVariable) => variable.unwrap_or_default().to_string_lossy().into_owned(),
            // clap takes a value of a file for the default, which `apply_defaults` made of it.
            Some(_) => match self.0.get(key) {
                Some(value) => value.file.display().to_string(),
                None => "default".to_owned(),
            },
            None => "–".to_owned(),
        };
        EffectiveOption { key, value, source }
    }
}

/// Hides the password of `name:password`.
fn hide_password(user: &str) -> String {
    user.split_once(':').map_or_else(|| user.to_owned(), |(name, _)| format!("{name}:…"))
}

/// Names an option as clap does.
fn clap_id(key: &str) -> String {
    key.replace('-', "_")
}

fn find_group(key: &str) -> Option<u8> {
    KEYS.iter().find(|(name, ..)| *name == key).map(|(.., group)| *group)
}

/// The command line or the environment sets an option of the key's group.
fn is_group_given(given: &ArgMatches, key: &str) -> bool {
    let mut together = KEYS.iter().filter(|(.., other)| Some(*other) == find_group(key));
    together.any(|(name, ..)| is_option_given(given, &clap_id(name)))
}

/// The command line or the environment sets the option with clap's name `id`.
fn is_option_given(given: &ArgMatches, id: &str) -> bool {
    matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn is_absent(error: &io::Error) -> bool {
    // A file in the place of the folder is as good as no file.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn unreadable_error(path: &Path, error: &io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run discoverctl as root, or write a file of your own: ~/.config/haproxy-discover/discoverctl.toml"
        }
        _ => "",
    };
    Error::Usage(format!("{} can't be read: {error}{hint}", path.display()))
}

type Words = Vec<(&'static str, Vec<String>)>;

/// Parses a file into keys and their values. An empty value counts as none.
fn parse_file(path: &Path, bytes: &[u8], home: Option<&Path>) -> Result<Words, Error> {
    let source = Source { path, bytes };
    let text = std::str::from_utf8(bytes).map_err(|error| source.error_at(error.valid_up_to(), "it is no UTF-8"))?;
    let table: BTreeMap<Spanned<String>, Spanned<toml::Value>> = toml::from_str(text)
        .map_err(|error| source.error_at(error.span().map_or(0, |span| span.start), error.message()))?;
    let mut found = Words::new();
    for (key, value) in table {
        let place = key.span().start;
        let Some((name, kind, _)) = KEYS.iter().find(|(name, ..)| name == key.get_ref()) else {
            return Err(source.error_at(place, &describe_unknown_key(key.get_ref())));
        };
        let words =
            parse_value(*kind, value.get_ref()).map_err(|why| source.error_at(place, &format!("{name}: {why}")))?;
        let words: Vec<String> = words
            .into_iter()
            .map(|word| if *kind == Kind::Path { resolve_path(&word, path, home) } else { word })
            .collect();
        if !words.is_empty() {
            found.push((name, words));
        }
    }
    Ok(found)
}

/// A file's text, for the line numbers of errors.
struct Source<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Source<'_> {
    /// An error in the line that has the byte at this offset.
    fn error_at(&self, offset: usize, words: &str) -> Error {
        let line = 1 + self.bytes.iter().take(offset).filter(|byte| **byte == b'\n').count();
        Error::Usage(format!("{} line {line}: {words}", self.path.display()))
    }
}

fn describe_unknown_key(key: &str) -> String {
    let known = KEYS.iter().map(|(name, ..)| (*name).to_owned());
    let hint = crate::target::suggest_names(key, known);
    if hint.is_empty() {
        let all: Vec<&str> = KEYS.iter().map(|(name, ..)| *name).collect();
        return format!("there is no key {key}; the keys are {}", all.join(", "));
    }
    format!("there is no key {key}{hint}")
}

/// Parses a value. clap would report errors without the file's name, so the form is checked here.
fn parse_value(kind: Kind, value: &toml::Value) -> Result<Vec<String>, String> {
    let words: Vec<String> = match value {
        toml::Value::String(text) if kind == Kind::List => text.split(',').map(|word| word.trim().to_owned()).collect(),
        toml::Value::String(text) => vec![text.clone()],
        toml::Value::Array(all) if kind == Kind::List => {
            let texts: Option<Vec<_>> = all.iter().map(|it| it.as_str().map(str::to_owned)).collect();
            texts.ok_or("an array of texts: [\"http://10.0.0.1:2379\"]")?
        }
        _ if kind == Kind::List => return Err("a text in quotes, or an array of them".to_owned()),
        _ => return Err("a text in quotes".to_owned()),
    };
    // An empty value leaves the option to the next source.
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    for word in &words {
        if word.chars().any(char::is_control) {
            return Err("control characters can't be in it".to_owned());
        }
        match kind {
            Kind::User => {
                registry::User::from_str(word).map_err(ToString::to_string)?;
            }
            Kind::Output => {
                Format::from_str(word, false).map_err(|_| "table, plain, json or yaml".to_owned())?;
            }
            Kind::LogFor => _ = parse_log_for(word)?,
            Kind::Word | Kind::List | Kind::Path => {}
        }
    }
    Ok(words)
}

/// Resolves a path that a file names.
fn resolve_path(word: &str, file: &Path, home: Option<&Path>) -> String {
    let path = match (word.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => file.parent().unwrap_or(Path::new("")).join(word),
    };
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::slice::from_ref;

    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("discoverctl-config-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            File::create(&path).unwrap().write_all(text.as_ref()).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn read(files: &[PathBuf]) -> Result<Config, String> {
        let places = ConfigPaths { home: Some("/home/eve".into()), files: files.to_vec(), instead: None };
        Config::read_from(&places).map_err(|error| error.to_string())
    }

    fn command() -> clap::Command {
        Cli::command().mut_args(|arg| arg.global(true))
    }

    /// `endpoints=… (source)` of each option that has a value, with these words on the command line.
    fn counts(config: &Config, line: &[&str]) -> Vec<String> {
        let line = [&["discoverctl"], line, &["list"]].concat();
        let given = command().try_get_matches_from(&line).unwrap();
        let mut command = config.apply_defaults(command(), &given);
        let matches = command.try_get_matches_from_mut(&line).unwrap();
        let all = config.list_effective(&matches, &command);
        let shown = all.into_iter().filter_map(|it| Some(format!("{}={} ({})", it.key, it.value?, it.source)));
        shown.collect()
    }

    #[test]
    fn the_keys_are_options() {
        let command = command();
        for (key, ..) in KEYS {
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(key)), "{key}");
        }
    }

    #[test]
    fn the_command_line_beats_the_users_file_which_beats_the_hosts() {
        let folder = Folder::new("order");
        let user = folder.put("user.toml", "output = \"json\"\nuser = \"eve:secret\"\napi-token-file = \"~/token\"\n");
        let host = folder.put(
            "host.toml",
            "# the whole host's\nendpoints = [\"http://a:1\", \"http://b:2\"]\noutput = 'yaml'\nuser = 'host'\n\
             password-file = 'host.password'\napi-token-file = \"/etc/token\"\napi-cert = ''\n",
        );
        let config = read(&[user.clone(), host.clone()]).unwrap();
        let (user, host) = (user.display(), host.display());
        assert_eq!(
            counts(&config, &[]),
            [
                format!("endpoints=http://a:1,http://b:2 ({host})"),
                // Not the host's password: it is another user's.
                format!("user=eve:… ({user})"),
                "prefix=/haproxy-discover (default)".into(),
                format!("api-token-file=/home/eve/token ({user})"),
                format!("output=json ({user})"),
                "log-for=90d (default)".into(),
            ]
        );
        let line = ["--endpoints", "http://c:3", "--user", "adam:x", "--output", "plain"];
        assert_eq!(
            counts(&config, &line),
            [
                "endpoints=http://c:3 (--endpoints)".into(),
                "user=adam:… (--user)".into(),
                "prefix=/haproxy-discover (default)".into(),
                format!("api-token-file=/home/eve/token ({user})"),
                "output=plain (--output)".into(),
                "log-for=90d (default)".into(),
            ]
        );
        let words = folder.put("words.toml", "user = 'eve'\npassword-file = '/p'\n");
        let config = read(from_ref(&words)).unwrap();
        let login =
            |line: &[&str]| counts(&config, line).into_iter().filter(|it| it.contains(" (/")).collect::<Vec<_>>();
        let (user, file) =
            (format!("user=eve ({})", words.display()), format!("password-file=/p ({})", words.display()));
        assert_eq!(login(&[]), [user.clone(), file]);
        assert_eq!(login(&["--password", "x"]), [user], "two passwords would be refused");
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line_and_key() {
        let folder = Folder::new("wrong");
        for (text, why) in [
            ("\nendpoint = 'x'\n", "line 2: there is no key endpoint; did you mean endpoints?"),
            ("wrong = 1", "line 1: there is no key wrong; the keys are endpoints, cacert"),
            ("[api]\ntoken = 'x'\n", "there is no key api"),
            ("prefix = 7", "line 1: prefix: a text in quotes"),
            ("endpoints = [1]", "endpoints: an array of texts"),
            ("\n\noutput = 'xml'", "line 3: output: table, plain, json or yaml"),
            ("user = ':x'", "user: the user's name is empty"),
            ("prefix = \"a\\u001bb\"", "prefix: control characters"),
            ("prefix", "line 1: "),
            ("prefix = 'a'\nprefix = 'b'", "line 2: "),
        ] {
            let error = read(&[folder.put("a.toml", text)]).unwrap_err();
            assert!(error.contains("/a.toml line ") && error.contains(why), "{text}: {error}");
        }
        assert!(read(&[folder.put("a.toml", b"prefix = '\xff'")]).unwrap_err().contains("no UTF-8"));
        let missing = folder.0.join("none/discoverctl.toml");
        assert_eq!(read(from_ref(&missing)), Ok(Config::default()));
        let instead = ConfigPaths { instead: Some(missing), ..ConfigPaths::default() };
        assert!(Config::read_from(&instead).unwrap_err().to_string().contains("can't be read: No such file"));
        assert!(read(from_ref(&folder.0)).unwrap_err().contains("it is a directory"));
        assert_eq!(read(&[folder.put("a.toml", "")]), Ok(Config::default()));
    }

    #[test]
    fn the_environment_says_where_the_files_are() {
        let of = |variables: &[(&str, &str)]| {
            ConfigPaths::from_environment(|name| {
                variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).into())
            })
        };
        let files = |places: &ConfigPaths| places.files.iter().map(|it| it.display().to_string()).collect::<Vec<_>>();
        assert_eq!(files(&of(&[])), [HOST_FILE]);
        let own = |folder: &str| vec![format!("{folder}/haproxy-discover/discoverctl.toml"), HOST_FILE.to_owned()];
        assert_eq!(files(&of(&[("HOME", "/home/eve")])), own("/home/eve/.config"));
        assert_eq!(files(&of(&[("HOME", "/home/eve"), ("XDG_CONFIG_HOME", "/x")])), own("/x"));
        assert_eq!(files(&of(&[("HOME", "/home/eve"), ("XDG_CONFIG_HOME", "x")])), own("/home/eve/.config"));
        assert_eq!(of(&[("HOME", "/h"), (INSTEAD_VARIABLE, "/f")]).instead.unwrap(), Path::new("/f"));
    }
}
