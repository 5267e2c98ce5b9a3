//! HAProxy's own word on the operator's files by themselves: whose fault it is, where a whole is refused. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use discovery::{Kind, ServiceId};
use haproxy::check::{CheckResult, Checker};

use crate::desired::names::parse_section;
use crate::operator_files::OperatorFiles;
use crate::operator_files::parse::OperatorConfig;

/// Who judges.
pub struct Validator<'a> {
    /// HAProxy.
    pub checker: &'a Checker,
    /// For files that are only tried.
    pub state_dir: &'a Path,
    /// The generated file as it lies there.
    pub cfg: &'a Path,
}

/// HAProxy's warnings of the operator's files, or the reason why they are not taken. It does not depend on the generated file.
pub type OperatorVerdict = Result<BTreeSet<String>, Rejection>;

/// The reason why the operator's files are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// HAProxy would not start with them, in its words.
    Haproxy(String),
    /// They take something of confgen's, by file and line, or can't be read.
    Confgen(String),
}

impl Rejection {
    /// The reason alone.
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
    /// Judges the operator's files. `files` are what HAProxy is given of them: their directory, or one by one.
    ///
    /// HAProxy refuses to check nothing at all: it is given the least that is something, with an empty section for each
    /// service that the files may name. Where that won't do, since they need more of the generated file, the one that lies
    /// there is tried.
    pub fn validate_operator_files(
        &self,
        include: &OperatorFiles,
        files: &[PathBuf],
    ) -> anyhow::Result<OperatorVerdict> {
        if !include.config.conflicts.is_empty() {
            return Ok(Err(Rejection::Confgen(include.config.conflicts.join("; "))));
        }
        let least = self.write_minimal_config(&include.config)?;
        let with = |last: &Path| self.checker.check_files(&[files, &[last.to_owned()]].concat());
        let output = match with(least.path())? {
            CheckResult::Valid { warnings } => return Ok(Ok(normalize_warnings(&warnings))),
            CheckResult::Rejected { output } => output,
        };
        if self.cfg.exists()
            && let CheckResult::Valid { warnings } = with(self.cfg)?
        {
            return Ok(Ok(normalize_warnings(&warnings)));
        }
        Ok(Err(Rejection::Haproxy(join_alerts(&output))))
    }

    /// Which of these files HAProxy refuses as they would be filled, each staged in another place.
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

    fn write_minimal_config(&self, operator: &OperatorConfig) -> anyhow::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix(MINIMAL_CONFIG).tempfile_in(self.state_dir)?;
        writeln!(file, "{CHECK_DEFAULTS}{CHECK_FRONTEND}")?;
        // Only the kind of a service is known here.
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

/// Empty sections for all that the files may name. `is_tcp` says which services carry TCP, `is_there` which sections have no
/// need of one.
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

/// As a service's section has it with `sticky source`.
const STUB_TABLE: &str = "    stick-table type ipv6 size 100k expire 30m\n";

/// The operator's files one by one, some of them in other places.
pub fn list_with_staged(include: &OperatorFiles, staged: &BTreeMap<PathBuf, PathBuf>) -> Vec<PathBuf> {
    include.paths().map(|path| staged.get(path).map_or_else(|| path.to_owned(), Clone::clone)).collect()
}

/// HAProxy's words, with a staged file called by the name it will have.
pub fn replace_staged_name(words: &str, staged: &Path, path: &Path) -> String {
    words.replace(&staged.display().to_string(), &path.display().to_string())
}

/// Warnings without what tells one run of HAProxy from another, but for those about a server's state before the last
/// restart: the check reads the state file too, and says so of each server that is down or taken out.
pub fn normalize_warnings(warnings: &[String]) -> BTreeSet<String> {
    const OF_SERVERS: [&str; 2] = ["changed from server-state after a reload", "remains in forced "];
    let mut all: Vec<String> = Vec::new();
    for line in warnings {
        match all.last_mut().filter(|_| line.starts_with(' ')) {
            Some(last) => last.extend([" ", line.trim_start_matches([' ', '|'])]),
            None => all.push(strip_level(line).trim_start_matches("config : ").to_owned()),
        }
    }
    all.into_iter().filter(|line| !OF_SERVERS.iter().any(|words| line.contains(words))).collect()
}

/// The line without its level and process: `config : parsing […]`.
fn strip_level(line: &str) -> &str {
    let after = line.split_once(") : ").filter(|(level, _)| level.starts_with('['));
    after.map_or(line, |(_, words)| words)
}

/// Everything that HAProxy says is wrong, in one line. 3.0 goes on in lines that begin with blanks.
pub fn join_alerts(output: &str) -> String {
    const CLOSING: [&str; 2] = ["Error(s) found in configuration file", "Fatal errors found in configuration"];
    let mut found: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in output.lines() {
        let is_alert = line.starts_with("[ALERT]");
        let words = strip_level(line).trim().trim_start_matches("config : ").to_owned();
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
    fn what_haproxy_says_of_old_states_is_no_warning() {
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
    fn what_needs_the_generated_file_is_tried_with_it() {
        let needs =
            format!("{HTTP}frontend f\n bind :8000\n acl in http_auth(of-ours)\n http-request deny unless in\n");
        assert!(verdict(&needs, None).is_err());
        assert_eq!(verdict(&needs, Some("userlist of-ours\n")), Ok(BTreeSet::new()));
        assert!(verdict(&needs, Some("# nothing\n")).is_err());
    }
}
