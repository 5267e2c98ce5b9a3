//! A program's options as a page of the documentation: a table for each heading of `--help`, and a section for each
//! subcommand with its own options. Pure.

use clap::{Arg, Command};

/// Renders the page. It leaves out the options that `clap` adds (`--help`, `--version`).
pub fn render_options_page(command: &Command) -> String {
    let name = command.get_name();
    let mut page = format!(
        "<!-- Printed by the test `the_page_of_options_is_the_code`; UPDATE_EXPECT=1 writes it anew. -->\n\
         # Options of {name}\n\n\
         From the same definitions as `{name} --help`, which has examples too. An option beats its variable. How it ends:\n\
         [exit codes](exit-codes.md).\n"
    );
    page += &render_about(name, command);
    page += &render_tables(&visible_arguments(command));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let full = format!("{name} {}", sub.get_name());
        page += &format!("\n## {full}\n");
        page += &render_about(&full, sub);
        page += &render_subcommand_options(command, sub);
    }
    page
}

fn render_about(name: &str, command: &Command) -> String {
    let about =
        command.get_long_about().or(command.get_about()).map(|about| format!("\n{about}\n")).unwrap_or_default();
    let usage = command.clone().bin_name(name).render_usage().to_string();
    let usage: Vec<String> = usage.trim_start_matches("Usage:").lines().map(|line| quote_code(line.trim())).collect();
    format!("{about}\n{}\n", usage.join(", "))
}

/// Renders the subcommand's own options, and a sentence about those that it shares.
fn render_subcommand_options(parent: &Command, sub: &Command) -> String {
    let (above, all) = (visible_arguments(parent), visible_arguments(sub));
    let own: Vec<&Arg> = all.iter().copied().filter(|arg| !is_among(arg, &above)).collect();
    let (shared, missing): (Vec<&Arg>, Vec<&Arg>) = above
        .iter()
        .copied()
        .filter(|arg| !arg.is_positional())
        .partition(|arg| arg.is_global_set() || is_among(arg, &all));
    let (name, too) = (parent.get_name(), if own.is_empty() { "" } else { " too" });
    let rest = match (shared.len(), missing.len()) {
        (0, _) => String::new(),
        (_, 0) => format!("\nIt has the options of `{name}`{too}.\n"),
        // The shorter list is the better sentence.
        (few, many) if few < many => format!("\nIt has {} of `{name}`{too}.\n", spell_options(&shared)),
        _ => format!("\nIt has the options of `{name}`{too} except {}.\n", spell_options(&missing)),
    };
    render_tables(&own) + &rest
}

/// True if an equal row is among the others. Names alone don't tell: a subcommand may have its own default.
fn is_among(arg: &Arg, others: &[&Arg]) -> bool {
    others.iter().any(|other| render_row(other) == render_row(arg))
}

fn spell_options(args: &[&Arg]) -> String {
    args.iter().map(|arg| spell_option(arg, &[])).collect::<Vec<_>>().join(", ")
}

fn visible_arguments(command: &Command) -> Vec<&Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set()).collect()
}

/// Renders a table for each heading, in the order in which the headings first occur.
fn render_tables(args: &[&Arg]) -> String {
    let mut headings: Vec<&str> = Vec::new();
    for heading in args.iter().map(|arg| heading_of(arg)) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut text = String::new();
    for name in &headings {
        if headings.len() > 1 {
            text += &format!("\n**{name}**\n");
        }
        text += "\n| option | variable | default | |\n|---|---|---|---|\n";
        text.extend(args.iter().filter(|arg| heading_of(arg) == *name).map(|arg| render_row(arg)));
    }
    text
}

fn heading_of(arg: &Arg) -> &str {
    arg.get_help_heading().unwrap_or(if arg.is_positional() { "Arguments" } else { "Options" })
}

fn render_row(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split("\n\n").map(str::trim).collect::<Vec<_>>().join(". ").replace('\n', " ");
    // Some defaults are computed after parsing. Their help text names them.
    let (help, computed) = match help.strip_suffix(']').and_then(|help| help.rsplit_once(" [default: ")) {
        Some((help, default)) => (help.to_owned(), Some(default.to_owned())),
        None => (help, None),
    };
    let fixed = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
    let default = computed.unwrap_or_else(|| quote_code(&fixed));
    let variable = arg.get_env().map(|name| quote_code(&name.to_string_lossy())).unwrap_or_default();
    let cells = [spell_option(arg, &value_names(arg)), variable, default, help + &render_possible_values(arg)];
    let cells =
        // A bare `|` would end the cell.
        cells.map(|cell| if cell.is_empty() { " ".to_owned() } else { format!(" {} ", cell.replace('|', "\\|")) });
    format!("|{}|\n", cells.join("|"))
}

fn quote_code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// `--output FORMAT`, `-o`. An argument has only its name.
fn spell_option(arg: &Arg, values: &[&str]) -> String {
    let long = arg.get_long().map(|long| format!("--{long}"));
    let words: Vec<&str> = long.iter().map(String::as_str).chain(values.iter().copied()).collect();
    let short = arg.get_short().map(|short| format!(", `-{short}`")).unwrap_or_default();
    quote_code(&words.join(" ")) + &short
}

/// Value names in the option's spelling. Empty for a flag.
fn value_names(arg: &Arg) -> Vec<&str> {
    let names = arg.get_value_names().filter(|_| arg.get_action().takes_values()).unwrap_or_default();
    names.iter().map(clap::builder::Str::as_str).collect()
}

/// Accepted words, with their help. Empty if any value is accepted.
fn render_possible_values(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let values = arg.get_possible_values();
    let values = values.iter().filter(|value| !value.is_hide_set());
    let words: Vec<String> = values.map(render_possible_value).collect();
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}

fn render_possible_value(value: &clap::builder::PossibleValue) -> String {
    match value.get_help() {
        Some(help) => format!("`{}` ({help})", value.get_name()),
        None => quote_code(value.get_name()),
    }
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn command() -> Command {
        let every = Arg::new("every").long("every").env("TOOL_EVERY").value_name("TIME").default_value("10s");
        let every = every.help("How often; a|b");
        let quiet = Arg::new("quiet")
            .long("quiet")
            .short('q')
            .action(ArgAction::SetTrue)
            .help("Say nothing [default: it depends]");
        let hidden = Arg::new("hidden").long("hidden").hide(true);
        let own = Arg::new("file").value_name("FILE").help("The file");
        let sub = Command::new("drain").about("Takes out").args([every.clone(), own]);
        let secret = Command::new("secret").hide(true);
        Command::new("tool").about("Does things").args([every, quiet, hidden]).subcommands([sub, secret])
    }

    #[test]
    fn options_with_variable_and_default_and_what_subcommands_share() {
        let page = render_options_page(&command());
        for part in [
            "\nDoes things\n",
            "| `--every TIME` | `TOOL_EVERY` | `10s` | How often; a\\|b |\n",
            "| `--quiet`, `-q` | | it depends | Say nothing |\n",
            "## tool drain\n\nTakes out\n",
            "| `FILE` | | | The file |\n",
            "It has the options of `tool` too except `--quiet`, `-q`.\n",
        ] {
            assert!(page.contains(part), "{part:?} is missing: {page}");
        }
        assert!(!page.contains("hidden") && !page.contains("secret"), "{page}");
        assert_eq!(page.matches("TOOL_EVERY").count(), 1, "{page}");
    }
}
