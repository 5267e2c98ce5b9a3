//! `NAME man`, `NAME completions SHELL` and the page in `docs/` for every command, from the same definitions as
//! `--help`. It defines no option.

mod completions;
mod markdown;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use program::{options, output};

pub use completions::{complete_if_asked, complete_with_paths, complete_with_values};
pub use markdown::render_options_page;

/// The completions that a program prints.
#[derive(Clone, Copy, Debug)]
pub enum Completions {
    /// All of them are in the script.
    Static,
    /// The script has the shell ask the program, by this variable ([`complete_if_asked`]).
    Asked(&'static str),
}

/// Prints the page or the completions if the command line begins with `man` or `completions`. `None` otherwise. No
/// command uses either word for anything else.
pub fn print_if_asked(command: Command, completions: Completions) -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = command.get_name().to_owned();
    let code = run_if_asked(command, args, completions)?.unwrap_or_else(|error| {
        output::print_message(&format!("{name}: {error}"));
        ExitCode::FAILURE
    });
    Some(output::flush_and_return(code))
}

/// Exit code for wrong usage of `man` and `completions`, in all programs.
const USAGE: u8 = 2;

fn run_if_asked(command: Command, args: Vec<OsString>, completions: Completions) -> Option<io::Result<ExitCode>> {
    let word = args.get(1).and_then(|arg| arg.to_str())?;
    if !matches!(word, "man" | "completions") {
        return None;
    }
    let name = command.get_name().to_owned();
    let shell = Arg::new("SHELL").required(true).value_parser(value_parser!(Shell));
    let dir = Arg::new("DIR").value_parser(value_parser!(PathBuf));
    let dir =
        dir.help("Writes a page for the command and one for each subcommand there, instead of printing the first");
    let asking = Command::new(command.get_name().to_owned())
        .subcommand(Command::new("completions").about("Prints the completions for a shell").arg(shell))
        .subcommand(Command::new("man").about("Prints the man page, in roff").arg(dir));
    // No variable counts here, so none can be empty.
    match options::parse_args(asking, args, |_| false) {
        Ok(matches) => Some(print_page(command, &matches, completions).map(|()| ExitCode::SUCCESS)),
        Err(error) => Some(Ok(options::print_clap_message(&error, &name, USAGE))),
    }
}

fn print_page(mut command: Command, matches: &ArgMatches, completions: Completions) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    match matches.subcommand() {
        Some(("completions", matches)) => match (matches.get_one::<Shell>("SHELL"), completions) {
            (None, _) => {}
            (Some(shell), Completions::Static) => {
                clap_complete::generate(*shell, &mut command, name, &mut text);
            }
            (Some(shell), Completions::Asked(variable)) => {
                text = completions::render_registration(variable, &name, &shell.to_string())?;
            }
        },
        Some((_, matches)) => match matches.get_one::<PathBuf>("DIR") {
            Some(dir) => clap_mangen::generate_to(command, dir)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))?,
            None => clap_mangen::Man::new(command).render(&mut text)?,
        },
        None => {}
    }
    output::print_answer(&String::from_utf8_lossy(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command::new("tool").about("Does things").subcommand(Command::new("drain").about("Takes out"))
    }

    #[test]
    fn a_page_for_each_subcommand() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["tool", "man", dir.path().to_str().unwrap()].map(OsString::from).to_vec();
        run_if_asked(command(), args, Completions::Static).unwrap().unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(page("tool.1").contains("Does things") && page("tool-drain.1").contains("Takes out"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let args = ["tool", "man", "/no/such/directory"].map(OsString::from).to_vec();
        let error = run_if_asked(command(), args, Completions::Static).unwrap().unwrap_err();
        assert!(error.to_string().starts_with("/no/such/directory: "), "{error}");
    }

    #[test]
    fn other_words_are_the_commands_own() {
        let run = |args| run_if_asked(command(), args, Completions::Static);
        assert!(run(["tool", "drain"].map(OsString::from).to_vec()).is_none());
        assert!(run(vec!["tool".into()]).is_none());
    }
}
