//! `polykv eval` and its one subcommand. clap's derive has no "arguments, or a subcommand instead of all of them".

use super::EvalArgs;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};
use std::path::PathBuf;

const MERGE: &str = "merge";

#[derive(Debug)]
pub enum EvalCommand {
    Run(Box<EvalArgs>),
    Merge(MergeArgs),
}

/// Puts the folders of all shards of a run together
///
/// Refused unless they are shards of one run that together hold every sample once.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The folders that the shards were written to
    #[arg(value_name = "DIR", required = true, num_args = 1..)]
    pub shards: Vec<PathBuf>,
    /// A new folder for the whole run
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Print metrics.json instead of a table
    #[arg(long)]
    pub json: bool,
}

impl FromArgMatches for EvalCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        match matches.subcommand() {
            Some((_, merge)) => MergeArgs::from_arg_matches(merge).map(Self::Merge),
            None => EvalArgs::from_arg_matches(matches).map(|args| Self::Run(Box::new(args))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for EvalCommand {
    fn augment_args(command: Command) -> Command {
        EvalArgs::augment_args(command)
            .subcommand(MergeArgs::augment_args(Command::new(MERGE)))
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
