//! `polykv pull`: models with a name, built in or of the hub.

use crate::args::{PullArgs, Pullable};
use crate::output::{console, progress, table};
use polykv::Error;
use polykv::models::hub;
use std::path::PathBuf;

/// # Errors
/// What keeps the model from being fetched; with `--verify`, a file that is not as it was pulled.
pub fn run(args: &PullArgs) -> anyhow::Result<()> {
    let text = match &args.name {
        None => list(),
        Some(name) => {
            let path = pull(name, args.revision.as_deref(), args.verify)?;
            path.display().to_string()
        }
    };
    console::print(&text)
}

fn pull(name: &Pullable, revision: Option<&str>, verify: bool) -> polykv::Result<PathBuf> {
    let mut bar = progress::Pull::default();
    let mut step = |step| bar.step(step);
    let checked = |verify: &dyn Fn() -> polykv::Result<PathBuf>| {
        let checking = progress::spinner("checking the files");
        let result = verify();
        checking.finish_and_clear();
        result
    };
    match (name, revision) {
        (Pullable::BuiltIn(alias), None) if verify => checked(&|| hub::verify(alias)),
        (Pullable::BuiltIn(alias), None) => hub::pull(alias, &mut step),
        (Pullable::BuiltIn(alias), Some(revision)) => {
            let allowed = "none: only models of the hub, ORG/NAME, have revisions";
            let place = format!("model {}", alias.name);
            Err(Error::invalid(place, "revision", revision, allowed))
        }
        (Pullable::Hub(repo), revision) => {
            let repo = match revision {
                Some(revision) => repo.clone().at(revision)?,
                None => repo.clone(),
            };
            match verify {
                true => checked(&|| hub::verify_repo(&repo)),
                false => hub::pull_repo(&repo, &mut step),
            }
        }
    }
}

fn list() -> String {
    let mut table = table(&["name", "model", "from"]);
    for alias in hub::ALIASES {
        let packages = alias.wheels.iter();
        let packages = packages.map(|wheel| format!("{} {}", wheel.package, wheel.version));
        let packages: Vec<_> = packages.collect();
        let from = match &packages[..] {
            [package] => format!("Python package {package}"),
            [first, .., last] => {
                format!("{} Python packages, {first} to {last}", packages.len())
            }
            [] => String::new(),
        };
        table.add_row([alias.name, alias.description, &from]);
    }
    let terms = hub::ALIASES.iter();
    let terms = terms.filter_map(|alias| Some(format!("\n\n{}: {}", alias.name, alias.terms?)));
    table.to_string() + &terms.collect::<String>()
}
