//! What can be typed. Everything that clap can know is refused here, with exit code 2.

mod bench;
mod calibrate;
mod chat;
mod eval;
mod examples;
mod plan;
mod policies;
#[cfg(feature = "serve")]
mod serve;
mod values;

pub use bench::{BenchArgs, Depths, Format};
pub use calibrate::{CalibrateArgs, Objective};
pub use chat::ChatArgs;
pub use eval::{EvalArgs, EvalCommand, MergeArgs, SampleArgs, Shard, TaskName};
pub use plan::{Kept, MemoryArgs, PlanAction, PlanArgs};
pub use policies::PolicyList;
#[cfg(feature = "serve")]
pub use serve::ServeArgs;
#[cfg(feature = "hub")]
pub use values::Pullable;
pub use values::{Dtype, KvDtype, Phases, Setting};

use clap::error::ErrorKind;
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use polykv::DeviceSpec;
use polykv::models::chat::Argument;
use polykv::policy::{Policies, PolicySpec};
use std::path::PathBuf;

/// Runs language models with a KV cache that each layer compresses in its own way.
#[derive(Debug, Parser)]
#[command(name = "polykv", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answers a prompt under a plan
    ///
    /// Without --plan and --policy the whole cache is kept. The defaults of the sampling are greedy; --top-k, --top-p
    /// and --min-p act at a temperature above 0.
    #[command(after_long_help = examples::GENERATE)]
    Generate(Box<GenerateArgs>),
    /// Talks with a model: every turn appends to the compressed cache
    ///
    /// Lines are messages; those that begin with / are commands, see /help. A line that ends with \\ goes on in the next one.
    /// Ctrl-C ends the answer, Ctrl-D the conversation. Messages can come from a pipe, one per line. Past the model's context
    /// the conversation goes on where the plan has a budget and the model's positions allow it.
    #[command(after_long_help = examples::CHAT)]
    Chat(Box<ChatArgs>),
    /// Serves a model to many callers at once, by OpenAI's interface over HTTP
    ///
    /// Answers of all callers are generated together, each with a compressed cache of its own under the plan that its request
    /// names. A page at / compares plans. See docs/serving.md.
    #[cfg(feature = "serve")]
    #[command(after_long_help = examples::SERVE)]
    Serve(Box<ServeArgs>),
    /// Compares plans with the full cache: perplexity, hidden numbers, next-token distributions
    ///
    /// The full cache is always the first row. Samples come from the seed.
    #[command(after_long_help = examples::EVAL)]
    Eval(EvalCommand),
    /// Fetches a model and prints its path; lists the built-in ones without a name
    ///
    /// Models of the Hugging Face hub are fetched with the token in HF_TOKEN, or in the file that `hf auth login`
    /// writes, and from HF_ENDPOINT where that is set. A pull that was interrupted goes on where it was.
    #[cfg(feature = "hub")]
    #[command(after_long_help = examples::PULL)]
    Pull(PullArgs),
    /// Measures speed and memory of a model under FullKV and under plans
    #[command(after_long_help = examples::BENCH)]
    Bench(Box<BenchArgs>),
    /// Finds a plan for a model: which policy each layer runs in each phase, and how many entries it keeps
    ///
    /// Every policy is tried in every layer alone, at the budget, on windows of plain text (--data) and on questions about
    /// facts hidden in a made-up text (--objective evidence or both). The route takes the best one per layer and phase;
    /// --refine goes on from there with the whole plan in effect. Keep the data apart from what the plan is tested on.
    #[command(after_long_help = examples::CALIBRATE)]
    Calibrate(Box<CalibrateArgs>),
    /// Shows, compares and changes plan files
    #[command(after_long_help = examples::PLAN)]
    Plan(PlanArgs),
    /// Lists the devices with what they have, and tests every operator on them
    Doctor(DoctorArgs),
    /// Prints a script that completes commands and flags in a shell
    #[command(after_long_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Writes the manual pages, one for each command
    Man(ManArgs),
    /// Prints docs/reference.md
    #[command(hide = true)]
    Reference,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// A folder, such as ~/.local/share/man/man1
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    #[command(flatten)]
    pub compression: CompressionArgs,
    #[command(flatten)]
    pub protection: ProtectionArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub session: SessionArgs,
    /// Print one JSON object instead of text and statistics
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Print no statistics after the text
    #[arg(long, help_heading = "Output")]
    pub no_stats: bool,
    /// Show the rules of the plan in the statistics
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
    /// Write a page that shows which tokens of the prompt the layers kept
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    pub show_kept: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A folder, a GGUF file, a built-in name (see `polykv pull`), or ORG/NAME or ORG/NAME:FILE.gguf of the hub
    #[arg(short, long, value_name = "MODEL")]
    pub model: String,
    /// Branch, tag or commit of ORG/NAME
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// auto, cpu, wgpu or cuda, the last two with an index if wanted: cuda:1
    #[arg(long, default_value = "auto")]
    pub device: DeviceSpec,
    /// How weights and cache are stored: native computes with the blocks of a GGUF file as they are; q8 is for the CPU; q8, q4k
    /// and native go with an f16 cache; auto is native for a file with blocks on the CPU, else f32
    #[arg(long, default_value = "auto", value_parser = values::dtypes())]
    pub dtype: Dtype,
    /// Use only what is on this machine
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
#[group(skip)]
#[command(group = ArgGroup::new("prompts").args(["prompt", "file"]).required(true).multiple(true))]
pub struct PromptArgs {
    /// The prompt, or - for standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the prompt, or - for standard input; goes before the text of --prompt
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Feed the text as it is, without the model's chat template, after the tokenizer's begin token if it has one
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// A variable for the model's chat template, such as enable_thinking=false: JSON or a text; may be repeated
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "raw")]
    pub template_arg: Vec<Argument>,
    /// The start of the answer, given to the model and not printed
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub answer_prefix: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Compression")]
#[group(skip)]
#[command(group = ArgGroup::new("budgets").requires("policy"))]
pub struct CompressionArgs {
    /// A plan file: policy and budget of each layer and phase
    #[arg(long, value_name = "FILE", conflicts_with_all = ["policy", "budgets", "allocator", "phase", "set"])]
    pub plan: Option<PathBuf>,
    /// One policy for all layers, with parameters behind a colon if wanted (snapkv:window=16); needs a budget, except full
    #[arg(long, value_name = "NAME", value_parser = policies::OnePolicy::parser())]
    pub policy: Option<PolicySpec>,
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// How the total is split over layers [default: uniform, or what the policy's own method uses]
    #[arg(long, value_name = "NAME", value_parser = values::ready_allocators(), requires = "policy")]
    pub allocator: Option<String>,
    /// When to evict; the other phase keeps everything
    #[arg(long, value_enum, requires = "policy")]
    pub phase: Option<Phases>,
    /// A parameter of the policy that is awkward behind its name, such as policies=tova:0.5,h2o:0.5; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "policy")]
    pub set: Vec<Setting>,
    /// Layers that keep everything come on top of the budget
    #[arg(long)]
    pub allow_full_extra: bool,
    /// Entries per layer on average that the budget never falls below, however short the prompt is [default: as the plan states,
    /// else 0]
    #[arg(long, value_name = "N")]
    pub at_least: Option<usize>,
    /// How entries are kept after the prompt: cache in the type that goes with --dtype, q8 and q4 in codes of so many bits
    /// [default: as the plan states, else cache]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub kv_dtype: Option<KvDtype>,
    /// Tokens between two evictions while decoding: a layer over its budget is cut to so many entries fewer, less one [default: as
    /// the plan states, else 1]
    #[arg(long, value_name = "K")]
    pub every: Option<usize>,
}

/// Spans of the prompt that no policy evicts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Compression")]
pub struct ProtectionArgs {
    /// Never evict the first N tokens of the prompt; they are charged to the budget
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub protect_prefix: usize,
    /// Never evict the system message; its tokens are charged to the budget
    #[arg(long, requires = "system")]
    pub protect_system: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Session")]
pub struct SessionArgs {
    /// Go on from this file of --save-session: the prompt comes after what it holds, under its plan
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// Write the cache and the tokens so far into this file, to go on with --session
    #[arg(long, value_name = "FILE")]
    pub save_session: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub struct SamplingArgs {
    /// Most tokens to generate [default: 128, in a chat 1024]
    #[arg(short = 'n', long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Temperature; 0 takes the most likely token
    #[arg(
        long,
        value_name = "T",
        default_value = "0",
        allow_negative_numbers = true
    )]
    pub temp: f32,
    /// Sample among the k most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample among the most likely tokens that together reach this probability
    #[arg(
        long,
        value_name = "P",
        default_value = "1",
        allow_negative_numbers = true
    )]
    pub top_p: f32,
    /// Sample among tokens with this share of the most likely one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Above 1 makes recent tokens less likely
    #[arg(
        long,
        value_name = "X",
        default_value = "1",
        allow_negative_numbers = true
    )]
    pub repeat_penalty: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
    /// Tokens of the prompt per pass through a layer; bounds the memory for activations
    #[arg(long, value_name = "N", default_value = "512", value_parser = values::at_least_one())]
    pub chunk: usize,
    /// What happens at the end of the model's context, with a budget: packed moves the keys that are kept to consecutive
    /// positions and goes on [default: the generation ends]
    #[arg(long, value_name = "HOW")]
    pub beyond_context: Option<BeyondContext>,
    /// End at this text, which is not printed; may be repeated
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub stop: Vec<String>,
}

/// How a generation goes on beyond the model's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BeyondContext {
    Packed,
}

#[cfg(feature = "hub")]
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A built-in name, or ORG/NAME or ORG/NAME:FILE.gguf of the Hugging Face hub
    pub name: Option<Pullable>,
    /// Branch, tag or commit of ORG/NAME
    #[arg(long, value_name = "REVISION", requires = "name")]
    pub revision: Option<String>,
    /// Fetch nothing: compare every file that is there with the size and SHA-256 sum of its pull
    #[arg(long, requires = "name")]
    pub verify: bool,
}

/// The budget of policies, in one of its units.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct BudgetArgs {
    /// Entries per layer, on average
    #[arg(
        long,
        value_name = "N",
        group = "budgets",
        allow_negative_numbers = true
    )]
    pub budget: Option<usize>,
    /// Share of the prompt, above 0 and at most 1
    #[arg(
        long,
        value_name = "R",
        group = "budgets",
        allow_negative_numbers = true
    )]
    pub budget_ratio: Option<f64>,
    /// Share of the bytes that the prompt's keys and values take in 16-bit floats, above 0 and at most 1
    #[arg(
        long,
        value_name = "R",
        group = "budgets",
        allow_negative_numbers = true
    )]
    pub budget_byte_ratio: Option<f64>,
    /// Keys and values of all layers, in units of 1,000,000 bytes
    #[arg(
        long,
        value_name = "M",
        group = "budgets",
        allow_negative_numbers = true
    )]
    pub budget_mb: Option<f64>,
}

impl BudgetArgs {
    fn is_given(&self) -> bool {
        let parts = self.budget_ratio.or(self.budget_byte_ratio);
        self.budget.is_some() || parts.or(self.budget_mb).is_some()
    }
}

impl Cli {
    /// What depends on several arguments at once, beyond what clap's own rules can say.
    ///
    /// # Errors
    /// As clap reports them.
    pub fn checked(self) -> Result<Self, clap::Error> {
        let compression = match &self.command {
            Command::Generate(args) => {
                check_stdin(&args.prompt)?;
                &args.compression
            }
            Command::Chat(args) => &args.compression,
            #[cfg(feature = "serve")]
            Command::Serve(args) => &args.compression,
            Command::Plan(PlanArgs {
                action: PlanAction::Memory(args),
            }) => &args.compression,
            Command::Eval(EvalCommand::Run(args)) => {
                check_read(&args.samples)?;
                let budgets = args.plans.budgets();
                for policy in args.plans.policies() {
                    check_budget(policy, &budgets.first().copied().unwrap_or_default())?;
                }
                return Ok(self);
            }
            _ => return Ok(self),
        };
        if let Some(policy) = &compression.policy {
            check_budget(policy, &compression.budget)?;
        }
        Ok(self)
    }
}

fn check_stdin(prompt: &PromptArgs) -> Result<(), clap::Error> {
    let file = prompt.file.as_deref().and_then(|file| file.to_str());
    if prompt.prompt.as_deref() == Some("-") && file == Some("-") {
        let text = "--prompt and --file cannot both be '-': there is one standard input";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, text));
    }
    Ok(())
}

fn check_read(samples: &SampleArgs) -> Result<(), clap::Error> {
    let Some((flag, tasks)) = samples.unread() else {
        return Ok(());
    };
    let name = |task: &TaskName| {
        task.to_possible_value()
            .map(|value| value.get_name().to_string())
    };
    let tasks: Vec<_> = tasks.iter().filter_map(name).collect();
    let text = format!(
        "the task does not read {flag}, which is for {}",
        tasks.join(" and ")
    );
    Err(Cli::command().error(ErrorKind::ArgumentConflict, text))
}

fn check_budget(policy: &PolicySpec, budget: &BudgetArgs) -> Result<(), clap::Error> {
    if budget.is_given() || policy.policy == Policies::KEEP {
        return Ok(());
    }
    let text = format!("--policy {policy} needs --budget, --budget-ratio or --budget-mb");
    Err(Cli::command().error(ErrorKind::MissingRequiredArgument, text))
}
