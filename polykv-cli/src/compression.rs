//! From the compression flags to a plan: one path for plan files and for `--policy`.

use crate::args::{BudgetArgs, CompressionArgs, KvDtype, Phases};
use crate::registry::registry;
use polykv::models::ModelConfig;
use polykv::policy::{Policies, PolicySpec};
use polykv::{
    Allocator, At, Budget, Codes, EntryCost, Error, Phase, Plan, PlanFile, Policy, Result, Spans,
};
use std::path::Path;
use std::sync::Arc;

/// How errors name the flags.
const COMMAND_LINE: &str = "command line";

/// A plan as far as it can be known without the model.
#[derive(Debug)]
pub enum Source {
    Full,
    File {
        place: String,
        file: Box<PlanFile>,
        plan: Plan,
    },
    Uniform {
        /// The policy with its parameters, as it is typed.
        name: String,
        /// None keeps everything.
        policy: Option<Arc<dyn Policy>>,
        budget: Budget,
        phases: &'static [Phase],
        /// The allocator, if it splits per prompt.
        online: Option<Arc<dyn Allocator>>,
        allow_full_extra: bool,
    },
    /// Another one with a change.
    Changed {
        source: Box<Source>,
        change: Change,
    },
}

/// What flags change in any plan.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// All entries are in codes.
    Codes(Codes),
    /// Evictions while decoding are so many tokens apart.
    Every(usize),
    /// The budget is never less than so many entries per layer.
    AtLeast(usize),
}

impl Source {
    /// Reads and checks what the flags say.
    ///
    /// # Errors
    /// A plan file that is refused, a budget or a parameter out of range.
    pub fn read(args: &CompressionArgs) -> Result<Self> {
        let codes = args.kv_dtype.and_then(KvDtype::codes);
        let changes = [
            codes.map(Change::Codes),
            args.every.map(Change::Every),
            args.at_least.map(Change::AtLeast),
        ];
        Ok(Self::read_policies(args)?.changed(changes))
    }

    /// The same with some changes.
    #[must_use]
    pub fn changed(self, changes: impl IntoIterator<Item = Option<Change>>) -> Self {
        let changed = |source, change| Self::Changed {
            source: Box::new(source),
            change,
        };
        changes.into_iter().flatten().fold(self, changed)
    }

    fn read_policies(args: &CompressionArgs) -> Result<Self> {
        if let Some(path) = &args.plan {
            return Self::file(path, args.allow_full_extra);
        }
        let Some(mut spec) = args.policy.clone() else {
            return Ok(Self::Full);
        };
        for setting in &args.set {
            spec.params
                .set_yaml(&setting.key, &setting.value)
                .map_err(|reason| {
                    let field = format!("--set {}", setting.key);
                    Error::invalid(COMMAND_LINE, field, format!("'{}'", setting.value), reason)
                })?;
        }
        let allocator = match &args.allocator {
            Some(name) => registry().allocators.get(name).at(COMMAND_LINE)?,
            None => registry().allocators.of_policy(&spec.policy),
        };
        Ok(Self::Uniform {
            name: spec.to_string(),
            policy: policy(&spec)?,
            budget: budget(&args.budget)?,
            phases: args.phase.unwrap_or_default().list(),
            online: Some(allocator).filter(|allocator| allocator.basis().is_online()),
            allow_full_extra: args.allow_full_extra,
        })
    }

    /// A short name for tables: the plan's own, its file's, or the policy and its budget.
    pub fn name(&self) -> String {
        match self {
            Self::Full => "full".into(),
            Self::Changed { source, change } => match change {
                Change::Codes(codes) => format!("{} {codes}", source.name()),
                Change::Every(tokens) => format!("{} every {tokens}", source.name()),
                Change::AtLeast(0) => source.name(),
                Change::AtLeast(entries) => format!("{} at least {entries}", source.name()),
            },
            Self::File { place, file, .. } => file.name.clone().unwrap_or_else(|| {
                let stem = Path::new(place).file_stem();
                stem.map_or(place.clone(), |stem| stem.to_string_lossy().into_owned())
            }),
            Self::Uniform {
                name,
                budget,
                phases,
                ..
            } => {
                let budget = match budget {
                    Budget::Tokens(tokens) => tokens.to_string(),
                    Budget::Total(total) => format!("{total} in all"),
                    Budget::Ratio(ratio) => format!("ratio {ratio}"),
                    Budget::ByteRatio(ratio) => format!("bytes {ratio}"),
                    Budget::Bytes(bytes) => format!("{bytes} B"),
                };
                match phases {
                    [phase] => format!("{name} {budget} {phase}"),
                    _ => format!("{name} {budget}"),
                }
            }
        }
    }

    /// A plan file.
    ///
    /// # Errors
    /// What [`PlanFile::read`] and [`PlanFile::build`] refuse.
    pub fn file(path: &Path, allow_full_extra: bool) -> Result<Self> {
        let mut file = PlanFile::read(path)?;
        file.allow_full_extra |= allow_full_extra;
        Ok(Self::File {
            place: path.display().to_string(),
            plan: file.build(registry()).at(path.display())?,
            file: Box::new(file),
        })
    }

    /// A policy in all layers and both phases.
    ///
    /// # Errors
    /// A budget of zero, and parameters out of range.
    pub fn uniform(spec: &PolicySpec, budget: Budget) -> Result<Self> {
        budget.check().at(COMMAND_LINE)?;
        let allocator = registry().allocators.of_policy(&spec.policy);
        Ok(Self::Uniform {
            name: spec.to_string(),
            policy: policy(spec)?,
            budget,
            phases: Phases::Both.list(),
            online: Some(allocator).filter(|allocator| allocator.basis().is_online()),
            allow_full_extra: false,
        })
    }

    /// The plan for a model.
    ///
    /// # Errors
    /// A plan for another model, or a budget beyond the model's context.
    pub fn plan(self, config: &ModelConfig) -> Result<Placed> {
        let (place, file, plan) = match self {
            Self::Changed { source, change } => {
                let mut placed = source.plan(config)?;
                match change {
                    Change::Codes(codes) => {
                        placed.file = placed.file.with_kv(codes);
                        placed.plan = placed.plan.with_kv(codes);
                    }
                    Change::Every(tokens) => {
                        placed.file.every = tokens;
                        placed.plan.every = tokens;
                        placed.plan.check().at(COMMAND_LINE)?;
                    }
                    Change::AtLeast(entries) => {
                        placed.file.at_least = entries;
                        placed.plan.at_least = entries;
                        placed.plan.check().at(COMMAND_LINE)?;
                    }
                }
                return Ok(placed);
            }
            Self::Full => stated(Plan::full(config.layers.len())),
            Self::File { place, file, plan } => (place, *file, plan),
            Self::Uniform {
                name: _,
                policy,
                budget,
                phases,
                online,
                allow_full_extra,
            } => {
                let mut plan = match policy {
                    Some(policy) => Plan::uniform(config.layers.len(), policy, budget, phases),
                    None => Plan::full(config.layers.len()),
                };
                plan.budget = budget;
                plan.online = online;
                plan.allow_full_extra = allow_full_extra;
                stated(plan)
            }
        };
        plan.check().at(&place)?;
        file.check_model(config.layers.len(), &config.fingerprint())
            .at(&place)?;
        if let Budget::Tokens(tokens) = plan.budget
            && tokens > config.max_positions
        {
            let allowed = format!("at most {}, the model's context", config.max_positions);
            return Err(Error::budget("budget.tokens", tokens, allowed).at(place));
        }
        Ok(Placed { place, file, plan })
    }
}

/// A policy of the flags, none for keeping everything.
fn policy(spec: &PolicySpec) -> Result<Option<Arc<dyn Policy>>> {
    match spec.policy == Policies::KEEP && spec.params.is_empty() {
        true => Ok(None),
        false => spec.build(&registry().policies).map(Some).at(COMMAND_LINE),
    }
}

/// A plan of the flags as a file would state it.
fn stated(plan: Plan) -> (String, PlanFile, Plan) {
    let file = PlanFile::of(&plan, registry());
    (COMMAND_LINE.to_string(), file, plan)
}

/// A plan with what states it and the name that errors give to where it came from.
#[derive(Debug)]
pub struct Placed {
    pub place: String,
    pub file: PlanFile,
    pub plan: Plan,
}

impl Placed {
    /// Whether the plan can be carried out for a prompt, before anything is computed.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses.
    pub fn check(&self, prompt: usize, cost: &EntryCost) -> Result<()> {
        self.check_protected(prompt, cost, &Spans::default())
    }

    /// Whether the plan can be carried out for a prompt with spans that no policy may evict.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses; a budget that the spans exceed.
    pub fn check_protected(&self, prompt: usize, cost: &EntryCost, spans: &Spans) -> Result<()> {
        let resolved = self.plan.resolve(prompt, cost).at(&self.place)?;
        resolved.check_spans(spans).at(&self.place)
    }
}

/// The budget of the flags, all of the prompt if none is given.
///
/// # Errors
/// A budget out of range.
pub fn budget(args: &BudgetArgs) -> Result<Budget> {
    // Only policy full comes without a budget.
    let mut budget = Budget::Ratio(1.0);
    if let Some(tokens) = args.budget {
        budget = Budget::Tokens(tokens);
    } else if let Some(ratio) = args.budget_ratio {
        budget = Budget::Ratio(ratio);
    } else if let Some(ratio) = args.budget_byte_ratio {
        budget = Budget::ByteRatio(ratio);
    } else if let Some(mb) = args.budget_mb {
        if !(mb > 0.0 && mb <= 1e12) {
            let allowed = "above 0, at most 1e12";
            return Err(Error::invalid(COMMAND_LINE, "budget in MB", mb, allowed));
        }
        budget = Budget::Bytes((mb * 1e6) as u64);
    }
    budget.check().at(COMMAND_LINE)?;
    Ok(budget)
}
