//! The flags of `polykv bench`.

use super::{Dtype, KvDtype, PolicyList, values};
use clap::{ArgGroup, Args, ValueEnum};
use polykv::DeviceSpec;
use std::path::PathBuf;
use std::str::FromStr;

/// Each test runs under FullKV and under every plan that is given.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("models").args(["model", "random_weights"]).required(true))]
pub struct BenchArgs {
    /// A folder, a GGUF file, a built-in name (see `polykv pull`), or ORG/NAME or ORG/NAME:FILE.gguf of the hub
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,
    /// A published shape with seeded weights made on the device; needs no file
    #[arg(long, value_name = "SHAPE", value_parser = values::shapes())]
    pub random_weights: Option<String>,
    /// Branch, tag or commit of ORG/NAME
    #[arg(long, value_name = "REVISION", conflicts_with = "random_weights")]
    pub revision: Option<String>,
    /// auto, cpu, wgpu or cuda, the last two with an index if wanted: cuda:1
    #[arg(long, default_value = "auto")]
    pub device: DeviceSpec,
    /// How weights and cache are stored: native computes with the blocks of a GGUF file as they are; q8 is for the CPU; q8, q4k
    /// and native go with an f16 cache; auto is native for a file with blocks on the CPU, else f32
    #[arg(long, default_value = "auto", value_parser = values::dtypes())]
    pub dtype: Dtype,
    /// Use only what is on this machine
    #[arg(long, conflicts_with = "random_weights")]
    pub offline: bool,
    /// Tokens of the prompt whose prefill is timed; 0 for none
    #[arg(short, long, value_name = "N", default_value = "512")]
    pub prompt: usize,
    /// Tokens whose decoding is timed; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value = "128")]
    pub new_tokens: usize,
    /// Tokens of the prompt before the decoded ones; 0 stands for a prompt of one token, and 100+800 for two sequences that decode
    /// together, each in a cache of its own [default: those of 0,2048,8192 that fit the model's context]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',')]
    pub depth: Vec<Depths>,
    /// Sequences side by side, of each depth
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = values::rows())]
    pub batch: usize,
    /// Repeats of every row; the rows take turns
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = values::at_least_one())]
    pub repeat: usize,
    /// Tokens of the prompt per pass through a layer
    #[arg(long, value_name = "N", default_value = "512", value_parser = values::at_least_one())]
    pub chunk: usize,
    /// Seed of the prompts' tokens and of random weights
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Plan files, one group of rows each
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub plan: Vec<PathBuf>,
    /// Policies, each at every --budget, with parameters behind a colon if wanted: tova,snapkv:window=16
    #[arg(long, value_name = "NAME,…", requires = "budget")]
    pub policy: Vec<PolicyList>,
    /// Entries per layer, on average
    #[arg(long, value_name = "N,…", value_delimiter = ',', requires = "policy")]
    pub budget: Vec<usize>,
    /// How entries are kept after the prompt, every plan and FullKV in each format: cache, q8, q4
    #[arg(long, value_enum, value_name = "FORMAT,…", value_delimiter = ',')]
    pub kv_dtype: Vec<KvDtype>,
    /// Tokens between two evictions while decoding, every plan with each [default: as the plans state, else 1]
    #[arg(long, value_name = "K,…", value_delimiter = ',')]
    pub every: Vec<usize>,
    /// How the rows are printed
    #[arg(short, long, value_enum, default_value = "md")]
    pub output: Format,
}

/// Tokens before the decoded ones, of each of the sequences that decode together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depths(pub Vec<usize>);

impl FromStr for Depths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split('+').map(|part| {
            let wrong = |_| format!("'{part}' is not a number of tokens");
            part.trim().parse().map_err(wrong)
        });
        let depths: Vec<usize> = parts.collect::<Result<_, _>>()?;
        match depths.len() {
            1..=MOST_DEPTHS => Ok(Self(depths)),
            found => Err(format!(
                "{found} sequences, where at most {MOST_DEPTHS} may be"
            )),
        }
    }
}

/// The most sequences of different depths that decode together.
const MOST_DEPTHS: usize = 256;

/// Forms of the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table
    Md,
    /// One JSON array
    Json,
    /// One JSON object per line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
}
