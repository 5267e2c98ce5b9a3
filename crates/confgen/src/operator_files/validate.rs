//! Has HAProxy check the operator's files without the services, so that no service is blamed for them. Blocks until HAProxy answers.
//! It never changes a file of the operator's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use discovery::{Kind, ServiceId};
use haproxy::check::{CheckResult, Checker};

use crate::desired::names::parse_section;
use crate::operator_files::OperatorFiles;
use crate::operator_files::parse::OperatorConfig;

/// Checks the operator's files.
pub struct Validator<'a> {
    pub checker: &'a Checker,
    /// The directory for files that exist only for the check.
    pub state_dir: &'a Path,
    /// The path of haproxy.cfg, with the generation that was published last.
    pub cfg: &'a Path,
}

/// HAProxy's warnings about the operator's files, or the reason why they are rejected. No service matters for it.
pub type OperatorVerdict = Result<BTreeSet<String>, Rejection>;

/// The reason why the operator's files are rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// HAProxy would not start with them. Its output.
    Haproxy(String),
    /// They use something of confgen's, with file and line, or can't be read.
    Confgen(String),
}

impl Rejection {
    /// The reason without the name of the program that gave it.
    pub fn reason(&self) -> &str {
        let (Self::Haproxy(words) | Self::Confgen(words)) = self;
        words.trim()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = match self {
            Self::Haproxy(_) => "HAProxy",
            Self::Confgen(_) => "confgen",
        };
        write!(f, "{program} refuses the operator's own files, mend them first: {}", self.reason())
    }
}

impl Validator<'_> {
    /// Checks the operator's files. `files` are the paths for HAProxy: the directory, or single files.
    ///
    /// # Errors
    /// If the check can't be made. A rejection is no error.
    pub fn validate_operator_files(
        &self,
        include: &OperatorFiles,
        files: &[PathBuf],
    ) -> anyhow::Result<OperatorVerdict> {
        // HAProxy accepts such files: two frontends on one address pass `haproxy -c` (2.6).
        if !include.config.conflicts.is_empty() {
            return Ok(Err(Rejection::Confgen(include.config.conflicts.join("; "))));
        }
        // HAProxy rejects files without any listener, and lines that name a missing section.
        let minimal = self.write_minimal_config(&include.config)?;
        let output = match self.check_with(files, minimal.path())? {
            CheckResult::Valid { warnings } => return Ok(Ok(normalize_warnings(&warnings))),
            CheckResult::Rejected { output } => output,
        };
        // The files may need more of the generated file, such as a `userlist`.
        if self.cfg.exists()
            && let CheckResult::Valid { warnings } = self.check_with(files, self.cfg)?
        {
            return Ok(Ok(normalize_warnings(&warnings)));
        }
        Ok(Err(Rejection::Haproxy(join_alerts(&output))))
    }

    /// The filled files that HAProxy rejects, each with its complaint. `staged` maps a file to the path of its new form. Each is
    /// checked with the other files in their old form.
    pub fn validate_filled_files(
        &self,
        include: &OperatorFiles,
        staged: &BTreeMap<PathBuf, PathBuf>,
    ) -> anyhow::Result<BTreeMap<PathBuf, String>> {
        let mut refused = BTreeMap::new();
        for (path, place) in staged {
            let files = list_with_staged(include, &[(path.clone(), place.clone())].into());
            if let Err(rejection) = self.validate_operator_files(include, &files)? {
                refused.insert(path.clone(), replace_staged_name(rejection.reason(), place, path));
            }
        }
        Ok(refused)
    }

    fn check_with(&self, files: &[PathBuf], last: &Path) -> anyhow::Result<CheckResult> {
        Ok(self.checker.check_files(&[files, &[last.to_owned()]].concat())?)
    }

    fn write_minimal_config(&self, operator: &OperatorConfig) -> anyhow::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix(MINIMAL_CONFIG).tempfile_in(self.state_dir)?;
        writeln!(file, "{CHECK_DEFAULTS}{CHECK_FRONTEND}")?;
        // The settings of a service don't matter here: its name tells its kind, and so its mode.
        file.write_all(render_stub_backends(operator, &|id| id.kind == Kind::Tcp, &|_| false).as_bytes())?;
        Ok(file)
    }
}

/// The `defaults` of a configuration that HAProxy only checks. Without the timeouts HAProxy warns.
pub const CHECK_DEFAULTS: &str =
    "defaults\n    mode http\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n";

/// The frontend of a configuration that HAProxy only checks. It has no line feed at its end, for more options of `bind`. A check
/// binds nothing, and HAProxy rejects a configuration without a listener.
pub const CHECK_FRONTEND: &str = "frontend confgen-check\n    bind 127.0.0.1:1";

/// The start of the minimal configuration's name. Its first characters are [`crate::state_dir::TRIAL`], so a start of confgen
/// removes what a killed confgen left.
const MINIMAL_CONFIG: &str = ".trial-least.";

/// Empty sections for all services that the files may name. `is_tcp` tells the mode. `is_there` tells that a section exists and
/// needs no stub.
pub fn render_stub_backends(
    operator: &OperatorConfig,
    is_tcp: &dyn Fn(&ServiceId) -> bool,
    is_there: &dyn Fn(&str) -> bool,
) -> String {
    let mut sections: BTreeMap<String, bool> =
        operator.mentioned_services.iter().map(|id| (id.to_string(), false)).collect();
    sections.extend(operator.referenced_sections().into_iter().map(|(name, named)| (name, named.has_table)));
    let mut text = String::new();
    for (name, has_table) in sections.into_iter().filter(|(name, _)| !is_there(name)) {
        let mode = if parse_section(&name).is_some_and(|id| is_tcp(&id)) { "tcp" } else { "http" };
        let table = if has_table { STUB_TABLE } else { "" };
        text += &format!("backend {name}\n    mode {mode}\n{table}");
    }
    text
}

/// The stick table of a service with `sticky source`, as the templates write it.
const STUB_TABLE: &str = "    stick-table type ipv6 size 100k expire 30m\n";

/// The paths of the operator's files, with the staged path of those that have one.
pub fn list_with_staged(include: &OperatorFiles, staged: &BTreeMap<PathBuf, PathBuf>) -> Vec<PathBuf> {
    include.paths().map(|path| staged.get(path).map_or_else(|| path.to_owned(), Clone::clone)).collect()
}

/// HAProxy's output with a file's final path in place of its staged path.
pub fn replace_staged_name(words: &str, staged: &Path, path: &Path) -> String {
    words.replace(&staged.display().to_string(), &path.display().to_string())
}

/// Warnings without level and process, so that those of two checks can be compared. Warnings about servers' states are left out.
pub fn normalize_warnings(warnings: &[String]) -> BTreeSet<String> {
    const OF_SERVERS: [&str; 2] = ["changed from server-state after a reload", "remains in forced "];
    // The check reads the state file too, and warns about each server that was down or in maint before the last restart.
    let mut all: Vec<String> = Vec::new();
    for line in warnings {
        match all.last_mut().filter(|_| line.starts_with(' ')) {
            Some(last) => last.extend([" ", line.trim_start_matches([' ', '|'])]),
            None => all.push(strip_level(line).trim_start_matches("config : ").to_owned()),
        }
    }
    all.into_iter().filter(|line| !OF_SERVERS.iter().any(|words| line.contains(words))).collect()
}

/// The line without level and process: `config : parsing […]`.
fn strip_level(line: &str) -> &str {
    let after = line.split_once(") : ").filter(|(level, _)| level.starts_with('['));
    after.map_or(line, |(_, words)| words)
}

/// All of HAProxy's complaints in one line. The whole output if it has none.
pub fn join_alerts(output: &str) -> String {
    const CLOSING: [&str; 2] = ["Error(s) found in configuration file", "Fatal errors found in configuration"];
    let mut found: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in output.lines() {
        let is_alert = line.starts_with("[ALERT]");
        let words = strip_level(line).trim().trim_start_matches("config : ").to_owned();
        // 3.0 continues an alert in lines that begin with blanks.
        match found.last_mut().filter(|_| goes_on && line.starts_with(' ')) {
            Some(last) => last.extend([" ", &words]),
            None => {
                goes_on = is_alert && !CLOSING.iter().any(|closing| words.starts_with(closing));
                found.extend(goes_on.then_some(words));
            }
        }
    }
    if found.is_empty() { output.trim().to_owned() } else { found.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::operator_files::SourceFile;
    use crate::operator_files::filled::FilledFiles;
    use crate::operator_files::parse::Environment;
    use crate::state_dir::replace_file;

    #[test]
    fn warnings_about_old_server_states_are_left_out() {
        let warning = |words: &str| format!("[WARNING]  (1) : config : {words}");
        let all = [
            warning("Server http-a/b is DOWN, changed from server-state after a reload. 0 active"),
            warning("Server http-a/b remains in forced drain mode."),
            warning("parsing [x.cfg:1] : 'http-request' placed after"),
            "   | another one".to_owned(),
        ];
        let own: Vec<String> = normalize_warnings(&all).into_iter().collect();
        assert_eq!(own, ["parsing [x.cfg:1] : 'http-request' placed after another one"]);
    }

    #[test]
    fn alerts_are_read_whole() {
        let output = "[NOTICE]   (1) : haproxy version is 3.2\n\
                      [ALERT]    (1) : config : parsing [h.cfg:10] : 'bind *:443' in section 'frontend' : \n\
                      \x20 'crt-list' : inconsistencies\n\
                      [ALERT]    (1) : config : Error(s) found in configuration file : h.cfg\n\
                      [WARNING]  (1) : config : odd\n\
                      [ALERT]    (1) : config : Proxy 'a': unable to find 'b'.\n\
                      [ALERT]    (1) : config : Fatal errors found in configuration.\n";
        let expected = "parsing [h.cfg:10] : 'bind *:443' in section 'frontend' : 'crt-list' : inconsistencies; \
                        Proxy 'a': unable to find 'b'.";
        assert_eq!(join_alerts(output), expected);
        assert_eq!(join_alerts("no such container\n"), "no such container");
    }

    /// What HAProxy says of one file of the operator's, with a generated one beside it or not.
    fn verdict(text: &str, cfg: Option<&str>) -> Result<BTreeSet<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let (conf, path) = (dir.path().join("conf.d"), dir.path().join("conf.d/mine.cfg"));
        fs::create_dir(&conf).unwrap();
        replace_file(&path, text.as_bytes(), 0o600).unwrap();
        let generated = dir.path().join("haproxy.cfg");
        if let Some(cfg) = cfg {
            replace_file(&generated, cfg.as_bytes(), 0o600).unwrap();
        }
        let source = SourceFile { path: path.clone(), real: path, bytes: text.into() };
        let include = OperatorFiles::from_sources(vec![source], &[], &FilledFiles::default(), &Environment::new());
        let checker = Checker::new("haproxy -c".parse().unwrap(), Duration::from_secs(20));
        let judge = Validator { checker: &checker, state_dir: dir.path(), cfg: &generated };
        let verdict = judge.validate_operator_files(&include, &[conf]).unwrap();
        verdict.map_err(|rejection| rejection.reason().replace(dir.path().to_str().unwrap(), ""))
    }

    const HTTP: &str = "defaults\n mode http\n timeout client 1s\n timeout connect 1s\n timeout server 1s\n";

    #[test]
    fn files_are_judged_by_themselves() {
        assert_eq!(verdict("", None), Ok(BTreeSet::new()), "the least is something, and no warning");
        let to_a_service = format!("{HTTP}frontend f\n bind :8000\n default_backend http-a\n");
        assert_eq!(verdict(&to_a_service, None), Ok(BTreeSet::new()), "a service's section will be there");
        let wrong = verdict("frontend f\n bnid :8000\n", None).unwrap_err();
        assert!(wrong.starts_with("parsing [/conf.d/mine.cfg:2] : unknown keyword 'bnid'"), "{wrong}");
        let table = format!(
            "{HTTP}frontend f\n bind :8000\n http-request track-sc0 src table http-a\n use_backend http-b:preview-c\n"
        );
        assert_eq!(verdict(&table, None), Ok(BTreeSet::new()), "its table will be there too");
        let own = format!("{HTTP}frontend http-in\n bind :8000\n default_backend http-a\nbackend http-a\n");
        assert_eq!(verdict(&own, None), Ok(BTreeSet::new()), "sections may be called as a service's are");
        let warned = verdict("listen l\n bind :8000\n", None).unwrap();
        assert!(warned.iter().any(|line| line.contains("missing timeouts for proxy 'l'")), "{warned:?}");
    }

    #[test]
    fn files_that_need_the_generated_file_are_checked_with_it() {
        let needs =
            format!("{HTTP}frontend f\n bind :8000\n acl in http_auth(of-ours)\n http-request deny unless in\n");
        assert!(verdict(&needs, None).is_err());
        assert_eq!(verdict(&needs, Some("userlist of-ours\n")), Ok(BTreeSet::new()));
        assert!(verdict(&needs, Some("# nothing\n")).is_err());
    }
}
