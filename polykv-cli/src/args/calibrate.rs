//! What `polykv calibrate` takes.

use super::{BudgetArgs, KvDtype, ModelArgs, Phases, PolicyList, Shard, values};
use crate::compression;
use crate::registry::registry;
use clap::{ArgGroup, Args, ValueEnum};
use polykv::models::calibrate::{self, CalibrateOptions, CandidatePolicy, Direction, Signal};
use polykv::{At, Error, Result};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub examples: ExampleArgs,
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// A folder for plan.yaml, profile.json with every number, and measurements.jsonl, which --resume reads
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: PathBuf,
    /// Go on with what an interrupted run left in the folder; routes and allocators may differ from that run's
    #[arg(long, help_heading = "Output")]
    pub resume: bool,
    /// Measure only every Nth example, from the Ith of them, 0 to N-1, and end there; --shards goes on from all parts
    #[arg(long, value_name = "I/N", conflicts_with_all = ["shards", "json"], help_heading = "Output")]
    pub shard: Option<Shard>,
    /// Folders of runs with --shard and the same other flags, whose measurements are taken over
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Output")]
    pub shards: Vec<PathBuf>,
    /// Print profile.json instead of a table
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Examples")]
#[group(skip)]
pub struct ExampleArgs {
    /// Text files, and folders whose .txt and .md files are read; any length
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// What a plan has to keep
    #[arg(long, value_enum, default_value = "text")]
    pub objective: Objective,
    /// Windows of the text
    #[arg(long, value_name = "N", default_value = "8")]
    pub examples: usize,
    /// Questions about hidden facts
    #[arg(long, value_name = "N", default_value = "12")]
    pub evidence: usize,
    /// Tokens that are compressed
    #[arg(long, value_name = "N", default_value = "1024")]
    pub length: usize,
    /// Tokens of the text after them
    #[arg(long, value_name = "N", default_value = "128")]
    pub continuation: usize,
    /// Run questions over the compressed text instead of compressing them too
    #[arg(long)]
    pub question_after: bool,
    /// Seed of the examples and of the order in which --refine tries layers
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
}

/// Which examples count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Objective {
    /// The likelihood of a text's continuation: the paper's
    Text,
    /// The likelihood of an answer that is hidden in the text
    Evidence,
    /// Both: the loss beyond the best policy on either, on a common scale
    Both,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Plan")]
#[group(skip)]
#[command(group = ArgGroup::new("budgets").required(true))]
pub struct ChoiceArgs {
    /// The policies to choose from, with parameters if wanted: h2o,tova,snapkv:window=64 [default: all published ones
    /// that do without a second run of the prompt]
    #[arg(long, value_name = "NAME,…")]
    pub policies: Option<PolicyList>,
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// The formats in which layers may keep their entries: one, or under a budget in bytes several to choose from, which share
    /// the bytes
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT,…",
        value_delimiter = ',',
        default_value = "cache"
    )]
    pub kv_dtype: Vec<KvDtype>,
    /// Give every KV head a part of the budget of its own, by what repeating the examples attends to; layers' budgets follow
    #[arg(long)]
    pub heads: bool,
    /// What the route follows: the attention output's cosine with the full cache's, or perplexity (which takes minutes
    /// more)
    #[arg(long, value_enum, default_value = "cosine")]
    pub signal: SignalName,
    /// The best policy of each layer, or as a control the worst
    #[arg(long, value_enum, default_value = "forward")]
    pub route: RouteName,
    /// How the total is split over layers
    #[arg(long, value_name = "NAME", value_parser = values::allocators(), default_value = "uniform")]
    pub allocator: String,
    /// What --allocator calibrated follows: the entropy of the attention, the worst policy's perplexity, or what more entries
    /// in a layer do for the whole plan (which takes a second search after that of --refine)
    #[arg(long, value_enum, default_value = "entropy")]
    pub budget_signal: BudgetSignal,
    /// The phases that evict; the other one keeps everything and costs nothing here
    #[arg(long, value_enum, default_value = "both")]
    pub phase: Phases,
    /// Improve the route of each phase by up to N evaluations of whole plans on the examples
    #[arg(long, value_name = "N", default_value = "0")]
    pub refine: usize,
    /// Which phase's route is refined; decode evaluations run token by token and take longer
    #[arg(long, value_enum, default_value = "both")]
    pub refine_phase: Phases,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SignalName {
    Cosine,
    Ppl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RouteName {
    Forward,
    Inverse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BudgetSignal {
    Entropy,
    Ppl,
    Effect,
}

impl CalibrateArgs {
    /// What the library is asked for, checked; without a journal, which needs the model.
    ///
    /// # Errors
    /// Policies, budgets and combinations that are refused, by their flags.
    pub fn options(&self) -> Result<CalibrateOptions> {
        let (examples, choice) = (&self.examples, &self.choice);
        let place = "command line";
        let candidates = match &choice.policies {
            Some(given) => {
                let specs = given.0.iter().cloned();
                let built = specs.map(|spec| CandidatePolicy::build(spec, &registry().policies));
                built.collect::<Result<Vec<_>>>()
            }
            None => CandidatePolicy::published(&registry().policies).map(|mut all| {
                all.retain(|one| !choice.heads || one.policy.can_be_divided());
                all
            }),
        };
        let budget = compression::budget(&choice.budget)?;
        let mut options = CalibrateOptions::new(candidates.at(place)?, budget);
        options.kv = choice.kv_dtype.iter().map(|kv| kv.codes()).collect();
        options.heads = choice.heads;
        options.phases = choice.phase.list().to_vec();
        options.objective = examples.objective.into();
        options.examples = examples.examples;
        options.evidence = examples.evidence;
        options.length = examples.length;
        options.continuation = examples.continuation;
        options.question_after = examples.question_after;
        options.seed = examples.seed;
        options.signal = match choice.signal {
            SignalName::Cosine => Signal::Cosine,
            SignalName::Ppl => Signal::Ppl,
        };
        options.route = match choice.route {
            RouteName::Forward => Direction::Forward,
            RouteName::Inverse => Direction::Inverse,
        };
        options.allocator = registry().allocators.get(&choice.allocator).at(place)?;
        options.budget_signal = match choice.budget_signal {
            BudgetSignal::Entropy => calibrate::BudgetSignal::Entropy,
            BudgetSignal::Ppl => calibrate::BudgetSignal::Ppl,
            BudgetSignal::Effect => calibrate::BudgetSignal::Effect,
        };
        options.refine = choice.refine;
        options.refine_phases = choice.refine_phase.list().to_vec();
        options.registry = registry().clone();
        options.check().map_err(as_flag)?;
        Ok(options)
    }
}

impl From<Objective> for polykv::models::calibrate::Objective {
    fn from(objective: Objective) -> Self {
        match objective {
            Objective::Text => Self::Text,
            Objective::Evidence => Self::Evidence,
            Objective::Both => Self::Both,
        }
    }
}

/// A refused option by the name of its flag.
fn as_flag(error: Error) -> Error {
    match error {
        Error::Invalid {
            field,
            found,
            allowed,
            ..
        } => {
            let flag = match field.as_str() {
                "kv" => "--kv-dtype".into(),
                field => format!("--{}", field.replace('_', "-")),
            };
            Error::invalid("command line", flag, found, allowed)
        }
        other => other,
    }
}
