//! The manual page of `vdectl`: a section for each command, from clap's definition, and what clap knows nothing of.

use clap::{Arg, Command, CommandFactory};
use clap_mangen::Man;
use vdectl::cli::Cli;

/// What follows the commands.
const REST: &str = include_str!("vdectl_rest.roff");

/// The page.
pub fn page() -> anyhow::Result<Vec<u8>> {
    let mut cli = Cli::command().after_help("").disable_help_subcommand(true);
    cli.build();
    let man = Man::new(cli.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut text = String::from(".SH SYNOPSIS\n\\fBvdectl\\fR \\fICOMMAND\\fR ...\n");
    text.push_str(".SH DESCRIPTION\n");
    text.push_str(&plain(&cli.get_long_about().unwrap_or_default().to_string()));
    text.push_str(".SH COMMANDS\n");
    cli.get_subcommands().for_each(|command| section(command, &mut text));
    page.extend_from_slice(text.as_bytes());
    page.extend_from_slice(REST.as_bytes());
    Ok(page)
}

/// A command with its arguments; below it, those that it has.
fn section(command: &Command, text: &mut String) {
    // What a user types, without the word before it.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace(" [OPTIONS]", "");
    text.push_str(&format!(".SS {}\n", escaped(&usage)));
    text.push_str(&plain(&format!("{}.", command.get_about().unwrap_or_default())));
    command.get_arguments().filter(|arg| arg.get_id() != "help").for_each(|arg| argument(arg, text));
    command.get_subcommands().for_each(|below| section(below, text));
}

fn argument(arg: &Arg, text: &mut String) {
    let values: Vec<String> =
        arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let takes = arg.get_action().takes_values();
    // One that may be left out stands in brackets.
    let optional = takes && arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    let value = match optional && arg.get_long().is_some() {
        true => format!("[{}]", values.join(" ")),
        false => values.join(" "),
    };
    let name = match arg.get_long() {
        Some(long) if !takes => format!("\\fB{}\\fR", escaped(&format!("--{long}"))),
        Some(long) => format!("\\fB{}\\fR \\fI{}\\fR", escaped(&format!("--{long}")), escaped(&value)),
        None => format!("\\fI{}\\fR", escaped(&value)),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = match (takes, default.join(" ")) {
        (true, default) if !default.is_empty() => format!(" [default: {default}]"),
        _ => String::new(),
    };
    text.push_str(&format!(".TP\n{name}\n{}", plain(&format!("{help}{default}"))));
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Paragraphs, of which no line can be taken for a request of roff.
fn plain(text: &str) -> String {
    let mut page = String::new();
    for line in escaped(text).lines() {
        match line {
            "" => page.push_str(".PP\n"),
            line if line.starts_with(['.', '\'']) => page.push_str(&format!("\\&{line}\n")),
            line => page.push_str(&format!("{line}\n")),
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_names_every_command_and_option() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        let mut commands = Vec::from_iter(Cli::command().get_subcommands().cloned());
        while let Some(command) = commands.pop() {
            assert!(
                page.contains(&format!("vdectl {}", command.get_name())) || page.contains(command.get_name())
            );
            for long in command.get_arguments().filter_map(Arg::get_long) {
                assert!(page.contains(&format!("\\fB{}\\fR", escaped(&format!("--{long}")))), "{long}");
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
