//! What `polykv plan` takes.

use super::{CompressionArgs, Dtype, values};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(subcommand)]
    pub action: PlanAction,
}

/// What a shuffle leaves in its layer.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kept {
    Budgets,
    Route,
}

#[derive(Debug, Subcommand)]
pub enum PlanAction {
    /// Checks a plan file and shows it as a table
    Show {
        file: PathBuf,
        /// Print one JSON object instead
        #[arg(long)]
        json: bool,
        /// Draw the plan into this .svg or .png file as well: layers and phases, colour by policy, height by budget
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Lists the layers in which two plans differ
    Diff {
        a: PathBuf,
        b: PathBuf,
        /// Print one JSON object instead
        #[arg(long)]
        json: bool,
    },
    /// Writes a plan with the same rules in permuted layers: a control for the plan
    Shuffle {
        file: PathBuf,
        /// Seed of the order
        #[arg(long, value_name = "N", default_value = "0")]
        seed: u64,
        /// What stays in its layer: budgets (only policies move) or route (only budgets move) [default: both move]
        #[arg(long, value_name = "WHAT")]
        keep: Option<Kept>,
        /// A file for the plan instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Writes a plan with the worst policy of each layer and the same budgets: a control for the plan
    Invert {
        file: PathBuf,
        /// What calibration measured [default: profile.json beside the plan]
        #[arg(long, value_name = "FILE")]
        profile: Option<PathBuf>,
        /// A file for the plan instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Computes the cache's memory from a model's config, without its weights
    Memory(Box<MemoryArgs>),
}

#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// A folder with config.json, a GGUF file, or the name of a published shape
    #[arg(short, long, value_name = "MODEL")]
    pub model: String,
    /// Tokens of the prompt
    #[arg(short, long, value_name = "N", value_parser = values::at_least_one())]
    pub prompt: usize,
    /// Tokens decoded after it, as far as the model's context allows
    #[arg(short = 'n', long, value_name = "N", default_value = "128")]
    pub new_tokens: usize,
    /// Sequences side by side
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = values::at_least_one())]
    pub batch: usize,
    /// How weights and cache are stored: native computes with the blocks of a GGUF file as they are; q8 is for the CPU; q8, q4k
    /// and native go with an f16 cache; auto is native for a file with blocks on the CPU, else f32
    #[arg(long, default_value = "auto", value_parser = values::dtypes())]
    pub dtype: Dtype,
    #[command(flatten)]
    pub compression: CompressionArgs,
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}
