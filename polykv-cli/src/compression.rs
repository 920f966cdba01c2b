//! From the compression flags to a plan: one path for plan files and for `--policy`.

use crate::args::{BudgetArgs, CompressionArgs, Phases};
use polykv::allocate::{self, Allocator};
use polykv::models::ModelConfig;
use polykv::policy::{self, Params};
use polykv::{Budget, Error, LayerShape, Phase, Plan, Result, Spans};
use std::path::Path;

/// How errors name the flags.
const COMMAND_LINE: &str = "command line";

/// A plan as far as it can be known without the model.
#[derive(Debug)]
pub enum Source {
    Full,
    File {
        place: String,
        plan: Box<Plan>,
    },
    Uniform {
        policy: String,
        params: Params,
        budget: Budget,
        phases: &'static [Phase],
        /// The allocator, if it splits per prompt.
        online: Option<String>,
        allow_full_extra: bool,
    },
}

impl Source {
    /// Reads and checks what the flags say.
    ///
    /// # Errors
    /// A plan file that is refused, a budget or a parameter out of range.
    pub fn read(args: &CompressionArgs) -> Result<Self> {
        if let Some(path) = &args.plan {
            return Self::file(path, args.allow_full_extra);
        }
        let Some(policy) = args.policy.clone() else {
            return Ok(Self::Full);
        };
        let budget = budget(&args.budget)?;
        let set = args.set.iter();
        let params: Params = set.map(|s| (s.key.clone(), s.value.clone())).collect();
        policy::build(COMMAND_LINE, &policy, &params)?;
        let allocator = match &args.allocator {
            Some(name) => allocate::by_name(name)?,
            None => allocate::of_policy(&policy),
        };
        Ok(Self::Uniform {
            online: online(allocator),
            policy,
            params,
            budget,
            phases: args.phase.unwrap_or_default().list(),
            allow_full_extra: args.allow_full_extra,
        })
    }

    /// A short name for tables: the plan's own, its file's, or the policy and its budget.
    pub fn name(&self) -> String {
        match self {
            Self::Full => "full".into(),
            Self::File { place, plan } => plan.name.clone().unwrap_or_else(|| {
                let stem = Path::new(place).file_stem();
                stem.map_or(place.clone(), |stem| stem.to_string_lossy().into_owned())
            }),
            Self::Uniform {
                policy,
                budget,
                phases,
                ..
            } => {
                let budget = match budget {
                    Budget::Tokens(tokens) => tokens.to_string(),
                    Budget::Ratio(ratio) => format!("ratio {ratio}"),
                    Budget::Bytes(bytes) => format!("{bytes} B"),
                };
                match phases {
                    [phase] => format!("{policy} {budget} {phase}"),
                    _ => format!("{policy} {budget}"),
                }
            }
        }
    }

    /// A plan file.
    ///
    /// # Errors
    /// What [`Plan::read`] refuses.
    pub fn file(path: &Path, allow_full_extra: bool) -> Result<Self> {
        let mut plan = Plan::read(path)?;
        plan.allow_full_extra |= allow_full_extra;
        Ok(Self::File {
            place: path.display().to_string(),
            plan: Box::new(plan),
        })
    }

    /// A policy with its default parameters in all layers and both phases.
    ///
    /// # Errors
    /// A budget of zero.
    pub fn uniform(policy: &str, budget: Budget) -> Result<Self> {
        budget.validate(COMMAND_LINE)?;
        Ok(Self::Uniform {
            online: online(allocate::of_policy(policy)),
            policy: policy.to_string(),
            params: Params::new(),
            budget,
            phases: Phases::Both.list(),
            allow_full_extra: false,
        })
    }

    /// The plan for a model.
    ///
    /// # Errors
    /// A plan for another model, or a budget beyond the model's context.
    pub fn plan(self, config: &ModelConfig) -> Result<Placed> {
        let (place, plan) = match self {
            Self::Full => (COMMAND_LINE.to_string(), Plan::full(config.layers)),
            Self::File { place, plan } => (place, *plan),
            Self::Uniform {
                policy,
                params,
                budget,
                phases,
                online,
                allow_full_extra,
            } => {
                let plan = Plan::uniform(config.layers, &policy, params, budget, phases);
                (
                    COMMAND_LINE.to_string(),
                    Plan {
                        online,
                        allow_full_extra,
                        ..plan
                    },
                )
            }
        };
        plan.check_model(&place, config.layers, &config.fingerprint())?;
        if let Budget::Tokens(tokens) = plan.budget
            && tokens > config.max_positions
        {
            let allowed = format!("at most {}, the model's context", config.max_positions);
            return Err(Error::invalid(place, "budget.tokens", tokens, allowed));
        }
        Ok(Placed { place, plan })
    }
}

/// A plan with the name that errors give to where it came from.
#[derive(Debug)]
pub struct Placed {
    pub place: String,
    pub plan: Plan,
}

impl Placed {
    /// Whether the plan can be carried out for a prompt, before anything is computed.
    ///
    /// # Errors
    /// What [`Plan::resolve`] refuses.
    pub fn check(&self, prompt: usize, shape: LayerShape) -> Result<()> {
        self.check_protected(prompt, shape, &Spans::default())
    }

    /// As [`Self::check`], with spans that no policy may evict.
    ///
    /// # Errors
    /// As [`Self::check`]; a budget that the spans exceed.
    pub fn check_protected(&self, prompt: usize, shape: LayerShape, spans: &Spans) -> Result<()> {
        let cost = shape.cost(self.plan.layers);
        let resolved = self.plan.resolve(&self.place, prompt, cost)?;
        resolved.check_spans(&self.place, spans)
    }
}

fn online(allocator: &dyn Allocator) -> Option<String> {
    allocator
        .basis()
        .is_online()
        .then(|| allocator.name().to_string())
}

/// The budget of the flags, all of the prompt if none is given.
///
/// # Errors
/// A budget out of range.
pub fn budget(args: &BudgetArgs) -> Result<Budget> {
    let budget = match (args.budget, args.budget_ratio, args.budget_mb) {
        (Some(tokens), ..) => Budget::Tokens(tokens),
        (_, Some(ratio), _) => Budget::Ratio(ratio),
        (.., Some(mb)) if !(mb > 0.0 && mb <= 1e12) => {
            let allowed = "above 0, at most 1e12";
            return Err(Error::invalid(COMMAND_LINE, "budget in MB", mb, allowed));
        }
        (.., Some(mb)) => Budget::Bytes((mb * 1e6) as u64),
        // Only policy full comes without a budget.
        (None, None, None) => Budget::Ratio(1.0),
    };
    budget.validate(COMMAND_LINE)?;
    Ok(budget)
}
