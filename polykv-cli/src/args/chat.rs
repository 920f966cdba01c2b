//! What `polykv chat` takes.

use super::{CompressionArgs, ModelArgs, SamplingArgs};
use clap::Args;
use polykv::models::chat::Argument;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// System message; no policy evicts it
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Prompt"
    )]
    pub system: Option<String>,
    /// Policies may evict the system message
    #[arg(long, requires = "system", help_heading = "Prompt")]
    pub evict_system: bool,
    /// A variable for the model's chat template, such as enable_thinking=false: JSON or a text; may be repeated
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Prompt")]
    pub template_arg: Vec<Argument>,
    #[command(flatten)]
    pub compression: CompressionArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Go on from this file if it is there, under its plan, and write the conversation into it at the end
    #[arg(long, value_name = "FILE", help_heading = "Session")]
    pub session: Option<PathBuf>,
    /// Print statistics after every answer
    #[arg(long, help_heading = "Output")]
    pub stats: bool,
}
