//! `polykv pull`: models with a name, built in or of the hub.

use crate::args::{PullArgs, Pullable};
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
        Some(name) => pull(name, args.revision.as_deref())?,
    };
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

fn pull(name: &Pullable, revision: Option<&str>) -> polykv::Result<String> {
    let mut bar = progress::Pull::default();
    let mut step = |step| bar.step(step);
    let path = match (name, revision) {
        (Pullable::BuiltIn(alias), None) => hub::pull(alias, &mut step)?,
        (Pullable::Hub(repo), None) => hub::pull_repo(repo, &mut step)?,
        (Pullable::Hub(repo), Some(revision)) => {
            hub::pull_repo(&repo.clone().at(revision)?, &mut step)?
        }
        (Pullable::BuiltIn(alias), Some(revision)) => {
            let allowed = "none: only models of the hub, ORG/NAME, have revisions";
            let place = format!("model {}", alias.name);
            return Err(Error::invalid(place, "revision", revision, allowed));
        }
    };
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
