//! Completions that the program answers itself, so that they know what its store holds.

use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;

use clap::{Arg, Command};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{CompleteEnv, Shells};
use program::text::is_hidden;

/// Answers if a shell asks for completions, which it does by this variable. `None` if none asks.
///
/// Every failure answers nothing, because a shell would print it into the operator's line.
pub fn complete_if_asked(variable: &'static str, command: &Command) -> Option<ExitCode> {
    let name = command.get_name().to_owned();
    let asked = CompleteEnv::with_factory(|| command.clone()).var(variable).completer(name);
    let directory = std::env::current_dir().ok();
    match asked.try_complete(std::env::args_os(), directory.as_deref()) {
        Ok(false) => None,
        Ok(true) | Err(_) => Some(ExitCode::SUCCESS),
    }
}

/// The script that has a shell ask the program for completions, by this variable.
pub(crate) fn render_registration(variable: &str, name: &str, shell: &str) -> io::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let shell = shells.completer(shell).ok_or_else(|| io::Error::other(format!("no completions for {shell}")))?;
    let mut script = Vec::new();
    shell.write_registration(variable, name, name, name, &mut script)?;
    if shell.is("zsh") {
        // zsh loads a file of its completion folders as a function, and expects completions from that first call.
        let function = name.replace('-', "_");
        let call = format!("[[ $funcstack[1] == _{name} ]] && _clap_dynamic_completer_{function} \"$@\"\n");
        script.extend_from_slice(call.as_bytes());
    }
    Ok(script)
}

/// Completes an argument with these values, which are listed when a shell asks for them.
#[must_use]
pub fn complete_with_values(arg: Arg, list_values: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Arg {
    arg.add(ArgValueCandidates::new(move || {
        list_values().into_iter().filter(|value| !value.chars().any(is_hidden)).map(CompletionCandidate::new).collect()
    }))
}

/// Completes an argument with paths.
#[must_use]
pub fn complete_with_paths(arg: Arg) -> Arg {
    // A file's name may hold anything. Hidden characters would reach the operator's terminal.
    let is_visible = |it: &CompletionCandidate| !it.get_value().to_string_lossy().chars().any(is_hidden);
    arg.add(ArgValueCompleter::new(move |current: &OsStr| -> Vec<CompletionCandidate> {
        PathCompleter::any().complete(current).into_iter().filter(is_visible).collect()
    }))
}
