//! What `polykv eval` takes.

mod command;
mod plans;
mod samples;
mod shard;

pub use command::{EvalCommand, MergeArgs};
pub use plans::PlansArgs;
pub use samples::{SampleArgs, TaskName};
pub use shard::Shard;

use super::ModelArgs;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub samples: SampleArgs,
    #[command(flatten)]
    pub plans: PlansArgs,
    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// A folder for predictions.jsonl, metrics.json, run.json and report.html
    ///
    /// Every sample is written when it is done. The same command goes on where an interrupted one was; a folder of another
    /// run is refused.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Run every Nth sample, from the Ith of them, 0 to N-1; `polykv eval merge` puts the parts together
    #[arg(
        long,
        value_name = "I/N",
        requires = "out",
        default_value_t,
        hide_default_value = true,
        help_heading = "Output"
    )]
    pub shard: Shard,
}
