//! What describes the command line, made from what clap knows of it: completions, manual pages, and docs/reference.md.

use crate::args::{Cli, ManArgs};
use crate::output::console;
use anyhow::Context;
use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use std::fmt::Write;

/// # Errors
/// A standard output that is closed.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "polykv", &mut script);
    console::print(&String::from_utf8(script)?)
}

/// One page for each command.
///
/// # Errors
/// A folder that cannot be made or written to.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let place = || args.dir.display().to_string();
    std::fs::create_dir_all(&args.dir).with_context(place)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).with_context(place)
}

/// All commands as Markdown.
///
/// # Errors
/// A standard output that is closed.
pub fn reference() -> anyhow::Result<()> {
    let mut root = Cli::command();
    root.build();
    let mut text = String::from(
        "# Command reference\n\nMade by `polykv reference` from the program's own help; a test compares it.\n",
    );
    for command in root.get_subcommands() {
        describe(command, "polykv", 2, &mut text)?;
    }
    console::print(&text)
}

fn describe(command: &Command, parent: &str, level: usize, text: &mut String) -> std::fmt::Result {
    if command.is_hide_set() || command.get_name() == "help" {
        return Ok(());
    }
    let name = format!("{parent} {}", command.get_name());
    write!(text, "\n{} {name}\n\n", "#".repeat(level))?;
    let about = command.get_long_about().or_else(|| command.get_about());
    writeln!(text, "{}", plain(about))?;
    let mut headings: Vec<Option<&str>> = Vec::new();
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    for arg in command.get_arguments().filter(shown) {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    // Without a heading come those of the command itself.
    headings.sort_by_key(|heading| heading.is_some());
    for heading in headings {
        let own = command.get_arguments().filter(shown);
        write!(
            text,
            "\n| {} | |\n|---|---|\n",
            heading.unwrap_or("Arguments")
        )?;
        for arg in own.filter(|arg| arg.get_help_heading() == heading) {
            writeln!(text, "| {} | {} |", signature(arg), help(arg))?;
        }
    }
    if let Some(examples) = command.get_after_long_help() {
        let examples = examples.to_string();
        let examples = examples.strip_prefix("Examples:\n").unwrap_or(&examples);
        let examples: Vec<&str> = examples
            .lines()
            .map(|line| line.strip_prefix("  ").unwrap_or(line))
            .collect();
        write!(text, "\n```sh\n{}\n```\n", examples.join("\n"))?;
    }
    for command in command.get_subcommands() {
        describe(command, &name, level + 1, text)?;
    }
    Ok(())
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// How an argument is typed.
fn signature(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let value = names.join(" ");
    if arg.is_positional() {
        return format!("`{value}`");
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let flags: Vec<String> = short.into_iter().chain(long).collect();
    let value = match arg.get_action().takes_values() {
        true => format!(" {value}"),
        false => String::new(),
    };
    cell(&format!("`{}{value}`", flags.join(", ")))
}

fn help(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let mut text = plain(help).replace("\n\n", " ").replace('\n', " ");
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        text.push_str(&format!("; one of {}", values.join(", ")));
    }
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let takes = arg.get_action().takes_values();
    if takes && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        text.push_str(&format!("; default {}", defaults.join(", ")));
    }
    cell(&text)
}

/// A text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
