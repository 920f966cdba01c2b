//! Which plans `polykv eval` compares.

use crate::args::values::{KvDtype, Phases};
use crate::args::{BudgetArgs, CompressionArgs, PolicyList};
use clap::{ArgGroup, Args};
use polykv::policy::PolicySpec;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(next_help_heading = "Plans")]
#[group(skip)]
#[command(group = ArgGroup::new("budgets").requires("policy"))]
pub struct PlansArgs {
    /// Plan files; may be repeated
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub plan: Vec<PathBuf>,
    /// Policies, each for all layers and at every budget, with parameters behind a colon if wanted: tova,snapkv:window=16
    #[arg(long, value_name = "NAME,…")]
    policy: Vec<PolicyList>,
    /// Entries per layer, on average
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        group = "budgets",
        allow_negative_numbers = true
    )]
    budget: Vec<usize>,
    /// Shares of the prompt, above 0 and at most 1
    #[arg(
        long,
        value_name = "R,…",
        value_delimiter = ',',
        group = "budgets",
        allow_negative_numbers = true
    )]
    budget_ratio: Vec<f64>,
    /// Share of the bytes that the prompt's keys and values take in 16-bit floats, above 0 and at most 1
    #[arg(
        long,
        value_name = "R,…",
        value_delimiter = ',',
        group = "budgets",
        allow_negative_numbers = true
    )]
    budget_byte_ratio: Vec<f64>,
    /// Keys and values of all layers, in units of 1,000,000 bytes
    #[arg(
        long,
        value_name = "M,…",
        value_delimiter = ',',
        group = "budgets",
        allow_negative_numbers = true
    )]
    budget_mb: Vec<f64>,
    /// When the policies evict; the other phase keeps everything [default: both]
    #[arg(
        long,
        value_enum,
        value_name = "PHASE,…",
        value_delimiter = ',',
        requires = "policy"
    )]
    phase: Vec<Phases>,
    /// Layers of plan files that keep everything come on top of the budget
    #[arg(long, requires = "plan")]
    allow_full_extra: bool,
    /// How entries are kept after the prompt, every plan in each format: cache, q8, q4 [default: as the plans state]
    #[arg(long, value_enum, value_name = "FORMAT,…", value_delimiter = ',')]
    kv_dtype: Vec<KvDtype>,
    /// Tokens between two evictions while decoding, every plan with each [default: as the plans state, else 1]
    #[arg(long, value_name = "K,…", value_delimiter = ',')]
    every: Vec<usize>,
    /// Entries per layer on average that no budget falls below, however short a prompt is; what plans state is not used, so that
    /// budgets are equal
    #[arg(long, value_name = "N", default_value = "0")]
    at_least: usize,
}

impl PlansArgs {
    /// The policies of all lists.
    pub fn policies(&self) -> impl Iterator<Item = &PolicySpec> {
        self.policy.iter().flat_map(|list| &list.0)
    }

    /// The budgets of the policies; only one of the four flags can be given.
    pub fn budgets(&self) -> Vec<BudgetArgs> {
        let tokens = self.budget.iter().map(|&tokens| BudgetArgs {
            budget: Some(tokens),
            ..BudgetArgs::default()
        });
        let ratios = self.budget_ratio.iter().map(|&ratio| BudgetArgs {
            budget_ratio: Some(ratio),
            ..BudgetArgs::default()
        });
        let parts = self.budget_byte_ratio.iter().map(|&ratio| BudgetArgs {
            budget_byte_ratio: Some(ratio),
            ..BudgetArgs::default()
        });
        let megabytes = self.budget_mb.iter().map(|&megabytes| BudgetArgs {
            budget_mb: Some(megabytes),
            ..BudgetArgs::default()
        });
        let entries = tokens.chain(ratios);
        entries.chain(parts).chain(megabytes).collect()
    }

    /// What `generate` would be given for each plan: the files, then every policy at every budget in every phase.
    pub fn compressions(&self) -> Vec<CompressionArgs> {
        let one = |plan: Option<&PathBuf>, policy: Option<&PolicySpec>| CompressionArgs {
            plan: plan.cloned(),
            policy: policy.cloned(),
            budget: BudgetArgs::default(),
            allocator: None,
            phase: None,
            set: Vec::new(),
            allow_full_extra: self.allow_full_extra,
            kv_dtype: None,
            every: None,
            at_least: Some(self.at_least),
        };
        let mut all: Vec<_> = self.plan.iter().map(|file| one(Some(file), None)).collect();
        let phases = match self.phase.as_slice() {
            [] => &[Phases::Both],
            given => given,
        };
        for policy in self.policies() {
            for budget in self.budgets() {
                all.extend(phases.iter().map(|&phase| CompressionArgs {
                    budget,
                    phase: Some(phase),
                    ..one(None, Some(policy))
                }));
            }
        }
        let all = with_each(all, &self.kv_dtype, |plan, &format| {
            plan.kv_dtype = Some(format);
        });
        with_each(all, &self.every, |plan, &tokens| plan.every = Some(tokens))
    }
}

/// Every plan with each of the values, or as it is if there are none.
fn with_each<T>(
    all: Vec<CompressionArgs>,
    values: &[T],
    set: impl Fn(&mut CompressionArgs, &T),
) -> Vec<CompressionArgs> {
    if values.is_empty() {
        return all;
    }
    let with = |plan: &CompressionArgs| {
        let plans = values.iter().map(|value| {
            let mut plan = plan.clone();
            set(&mut plan, value);
            plan
        });
        plans.collect::<Vec<_>>()
    };
    all.iter().flat_map(with).collect()
}
