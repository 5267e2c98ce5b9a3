//! Reads the command line and its variables, in the same way for every program. It knows no option.
//!
//! An empty value counts as no value, for every option: `NAME=` in the environment, `--name=` and `--name ''` on the
//! command line. Scripts and Compose files write `${NAME}` without knowing if it is set.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command, FromArgMatches};

use crate::{output, variable};

/// Reads this process's command line and variables.
///
/// # Errors
/// The exit code, after help, version or a complaint was printed. It is `usage` for a complaint.
pub fn read_options<T: FromArgMatches>(command: Command, usage: u8) -> Result<T, ExitCode> {
    let name = command.get_name().to_owned();
    let read = T::from_arg_matches(&read_matches(command, usage)?);
    read.map_err(|error| output::flush_and_return(print_clap_message(&error, &name, usage)))
}

/// Reads them without putting them into a type, for a program that changes the defaults first.
///
/// # Errors
/// As [`read_options`].
pub fn read_matches(command: Command, usage: u8) -> Result<ArgMatches, ExitCode> {
    let (name, args) = (command.get_name().to_owned(), std::env::args_os().collect());
    parse_args(command, args, variable::is_set_and_empty)
        .map_err(|error| output::flush_and_return(print_clap_message(&error, &name, usage)))
}

/// Parses a command line. `is_empty` tells if a variable is set and empty.
///
/// # Errors
/// clap's, which also stands for help and version.
pub fn parse_args(
    command: Command,
    args: Vec<OsString>,
    is_empty: impl Fn(&OsStr) -> bool,
) -> Result<ArgMatches, clap::Error> {
    let with_variables = command.clone();
    let args = drop_empty_values(args, &value_options(&command));
    let matches = without_variables(command, &is_empty).try_get_matches_from(args.clone());
    match matches {
        // Help names all variables, also those that are empty now.
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Err(with_variables.try_get_matches_from(args).err().unwrap_or(error))
        }
        matches => matches,
    }
}

/// All variables of a program's options, with the name of the option.
pub fn list_variables(command: &Command) -> BTreeSet<(String, String)> {
    let own = command.get_arguments().filter_map(|arg| Some((arg.get_env()?, arg.get_id())));
    let own = own.map(|(name, id)| (name.to_string_lossy().into_owned(), id.to_string()));
    own.chain(command.get_subcommands().flat_map(list_variables)).collect()
}

/// Variables of a program's options that hold a secret or lead to one: those with values that `--help` hides, or with a
/// telling name.
pub fn secret_variables(command: &Command) -> BTreeSet<String> {
    // Not every USER: a system user, as in CONFGEN_HAPROXY_USER, is no secret. etcd's has its password behind a colon.
    const WORDS: [&str; 5] = ["PASSWORD", "TOKEN", "_KEY", "SECRET", "ETCDCTL_USER"];
    let args = command.get_arguments().filter_map(|arg| Some((arg, arg.get_env()?.to_string_lossy().into_owned())));
    let own = args.filter(|(arg, name)| arg.is_hide_env_values_set() || WORDS.iter().any(|word| name.contains(word)));
    own.map(|(_, name)| name).chain(command.get_subcommands().flat_map(secret_variables)).collect()
}

/// The command without the variables that are set and empty.
fn without_variables(command: Command, is_empty: &dyn Fn(&OsStr) -> bool) -> Command {
    let command =
        command.mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&'static str>) } else { arg });
    command.mut_subcommands(|sub| without_variables(sub, is_empty))
}

/// Names of all options that take a value: `--color`, `-o`.
fn value_options(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter(|arg| takes_value(arg)).flat_map(spellings);
    own.chain(command.get_subcommands().flat_map(value_options)).collect()
}

/// True for an option that needs a value. One with an optional value takes no following argument.
fn takes_value(arg: &Arg) -> bool {
    let needs_one = arg.get_num_args().is_none_or(|number| number.min_values() > 0);
    !arg.is_positional() && arg.get_action().takes_values() && needs_one
}

/// Names of an option with their dashes.
fn spellings(arg: &Arg) -> Vec<String> {
    let long = arg.get_long_and_visible_aliases().into_iter().flatten().map(|name| format!("--{name}"));
    let short = arg.get_short_and_visible_aliases().into_iter().flatten().map(|name| format!("-{name}"));
    long.chain(short).collect()
}

/// Removes options with an empty value. Everything after `--` belongs to the app and stays.
fn drop_empty_values(args: Vec<OsString>, options: &BTreeSet<String>) -> Vec<OsString> {
    let mut kept = Vec::with_capacity(args.len());
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        if arg == "--" {
            kept.push(arg);
            break;
        }
        let text = arg.to_str().unwrap_or_default();
        if text.strip_suffix('=').is_some_and(|name| options.contains(name)) {
            continue;
        }
        if options.contains(text) {
            match args.next() {
                Some(value) if value.is_empty() => {}
                value => kept.extend([arg].into_iter().chain(value)),
            }
            continue;
        }
        kept.push(arg);
    }
    kept.extend(args);
    kept
}

/// Prints help and version to standard output, complaints to standard error. Returns the exit code: `usage` for a
/// complaint, 1 if standard output can't be written. `name` is the program's.
pub fn print_clap_message(error: &clap::Error, name: &str, usage: u8) -> ExitCode {
    let text = error.render();
    let (is_complaint, stderr, stdout) = (error.use_stderr(), io::stderr(), io::stdout());
    let colors = if is_complaint { output::takes_colors(&stderr) } else { output::takes_colors(&stdout) };
    let text = if colors { text.ansi().to_string() } else { text.to_string() };
    if is_complaint {
        output::stderr().queue_line(text.into_bytes());
        return ExitCode::from(usage);
    }
    match output::print_answer(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_message(&format!("{name}: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let color = Arg::new("color").long("color").short('c').env("PROGRAM_TEST_COLOR");
        let force = Arg::new("force").long("force").action(clap::ArgAction::SetTrue).env("PROGRAM_TEST_FORCE");
        let port = Arg::new("port").long("port").env("PROGRAM_TEST_PORT").value_parser(clap::value_parser!(u16));
        let rest = Arg::new("rest").last(true).num_args(0..);
        let sub = Command::new("sub").arg(port.clone());
        Command::new("tool").args([color, force, port, rest]).subcommand(sub)
    }

    fn parsed(words: &[&str]) -> Result<ArgMatches, clap::Error> {
        let words = std::iter::once("tool").chain(words.iter().copied()).map(OsString::from).collect();
        parse_args(command(), words, |_| false)
    }

    #[test]
    fn an_empty_value_on_the_command_line_is_none() {
        for words in [&["--color="][..], &["--color", ""], &["-c", ""], &["--port", "", "--force"], &["sub", "--port="]]
        {
            let matches = parsed(words).unwrap();
            assert_eq!(matches.get_one::<String>("color"), None, "{words:?}");
            assert_eq!(matches.get_one::<u16>("port"), None, "{words:?}");
        }
        let matches = parsed(&["--color", "blue", "--", "--color", "", "--port="]).unwrap();
        assert_eq!(matches.get_one::<String>("color").unwrap(), "blue");
        let rest: Vec<_> = matches.get_many::<String>("rest").unwrap().collect();
        assert_eq!(rest, ["--color", "", "--port="], "what belongs to the app stays");
        assert!(parsed(&["--color", " "]).is_ok(), "blanks on the command line are somebody's value");
        assert!(parsed(&["--color"]).is_err(), "no value at all is a mistake");
    }

    #[test]
    fn an_empty_variable_is_none_and_help_still_names_it() {
        let all = list_variables(&command());
        assert_eq!(all.len(), 3, "{all:?}");
        let command = without_variables(command(), &|name| name == "PROGRAM_TEST_PORT");
        assert!(!list_variables(&command).iter().any(|(name, _)| name == "PROGRAM_TEST_PORT"));
        let words = ["tool", "--help"].map(OsString::from).to_vec();
        let help = parse_args(self::command(), words, |_| true).unwrap_err().render().to_string();
        assert!(help.contains("PROGRAM_TEST_PORT"), "{help}");
    }
}
