//! The plan file: which policy and how many entries each layer gets in each phase.

mod layers;
mod range;
mod resolve;

pub use range::{LayerRange, LayerSet};
pub use resolve::{LayerRules, PhaseRule, Resolved};

use crate::allocate::{self, Basis};
use crate::budget::Budget;
use crate::policy::{self, Params, Phase};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::Path;

/// The version of the plan file's schema that this code reads and writes.
pub const SCHEMA: u32 = 1;

/// Plan files above this size are refused.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

const MAX_LAYERS: usize = 1024;

/// A static plan, independent of any prompt. [`Plan::resolve`] turns it into budgets for one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub schema: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Fingerprint of the model that the plan was made for; a plan without one runs on any model with its number of
    /// layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub layers: usize,
    /// Average entries per layer and KV head, in either phase.
    #[serde(with = "serde_yaml_ng::with::singleton_map")]
    pub budget: Budget,
    /// Full layers come on top of the budget instead of being charged to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_full_extra: bool,
    /// Token rules need not add up to the total: for trials of single layers' budgets, never in a file.
    #[serde(skip)]
    pub unbalanced: bool,
    /// The allocator that splits the total anew for each prompt; the rules then state no shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<String>,
    pub prefill: Vec<Rule>,
    pub decode: Vec<Rule>,
}

/// What a range of layers does in one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub layers: LayerRange,
    pub policy: String,
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
    /// Entries of each of these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Relative share of each of these layers in the total, 1 if neither is given. A phase uses shares or tokens
    /// throughout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

impl Rule {
    pub fn new(layers: LayerRange, policy: impl Into<String>) -> Self {
        Self {
            layers,
            policy: policy.into(),
            params: Params::new(),
            tokens: None,
            share: None,
        }
    }
}

impl Plan {
    /// One policy and one budget in every layer: what `--policy` and `--budget` mean. The phase that `phases` leaves
    /// out keeps everything.
    pub fn uniform(
        layers: usize,
        policy: &str,
        params: Params,
        budget: Budget,
        phases: &[Phase],
    ) -> Self {
        let rules = |phase| {
            let mut rule = Rule::new(LayerRange::all(layers), "full");
            if phases.contains(&phase) {
                rule.policy = policy.to_string();
                rule.params = params.clone();
            }
            vec![rule]
        };
        Self {
            schema: SCHEMA,
            name: None,
            model: None,
            layers,
            budget,
            allow_full_extra: false,
            unbalanced: false,
            online: None,
            prefill: rules(Phase::Prefill),
            decode: rules(Phase::Decode),
        }
    }

    /// Everything is kept everywhere.
    pub fn full(layers: usize) -> Self {
        Self::uniform(layers, "full", Params::new(), Budget::Ratio(1.0), &[])
    }

    /// Reads and validates YAML; `place` names it in errors.
    ///
    /// # Errors
    /// Refuses anything that is not a valid plan, naming the field.
    pub fn from_yaml(place: &str, text: &str) -> Result<Self> {
        let plan: Self = serde_yaml_ng::from_str(text).map_err(|e| {
            Error::invalid(
                place,
                "content",
                format!("not a plan ({e})"),
                "plan schema 1",
            )
        })?;
        plan.validate(place)?;
        Ok(plan)
    }

    /// Reads and validates a plan file.
    ///
    /// # Errors
    /// As [`Plan::from_yaml`]; also a file that cannot be read or is larger than [`MAX_FILE_BYTES`].
    pub fn read(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|e| Error::io(path, e))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            let found = format!("more than {MAX_FILE_BYTES} bytes");
            return Err(Error::invalid(
                &place,
                "size",
                found,
                format!("at most {MAX_FILE_BYTES} bytes"),
            ));
        }
        Self::from_yaml(&place, &text)
    }

    /// Writes the plan, through a temporary name: a reader never sees half a file.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = Path::new(&name);
        std::fs::File::create(part)
            .and_then(|mut file| file.write_all(self.to_yaml().as_bytes()))
            .and_then(|()| std::fs::rename(part, path))
            .map_err(|e| Error::io(path, e))
    }

    /// The plan as YAML, fields in a fixed order.
    pub fn to_yaml(&self) -> String {
        // Every field is a plain scalar, list or map with string keys, which YAML can always hold.
        serde_yaml_ng::to_string(self).unwrap_or_default()
    }

    /// A short fingerprint of the plan's content.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.to_yaml().as_bytes());
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The rules of one phase.
    pub fn rules(&self, phase: Phase) -> &[Rule] {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// Everything that can be checked without a prompt or a model.
    ///
    /// # Errors
    /// Names the field, the value found and the value allowed.
    pub fn validate(&self, place: &str) -> Result<()> {
        if self.schema != SCHEMA {
            return Err(Error::invalid(place, "schema", self.schema, SCHEMA));
        }
        if self.layers == 0 || self.layers > MAX_LAYERS {
            let allowed = format!("1 to {MAX_LAYERS}");
            return Err(Error::invalid(place, "layers", self.layers, allowed));
        }
        self.budget.validate(place)?;
        self.validate_online(place)?;
        for phase in [Phase::Prefill, Phase::Decode] {
            self.validate_phase(place, phase)?;
        }
        Ok(())
    }

    /// Checks that the plan belongs to a model.
    ///
    /// # Errors
    /// A different number of layers or another model's fingerprint.
    pub fn check_model(&self, place: &str, layers: usize, fingerprint: &str) -> Result<()> {
        if self.layers != layers {
            let allowed = format!("{layers}, the model's");
            return Err(Error::invalid(place, "layers", self.layers, allowed));
        }
        match &self.model {
            Some(model) if model != fingerprint => {
                let allowed = format!("'{fingerprint}', the model in use");
                Err(Error::invalid(
                    place,
                    "model",
                    format!("'{model}'"),
                    allowed,
                ))
            }
            _ => Ok(()),
        }
    }

    fn validate_online(&self, place: &str) -> Result<()> {
        let Some(name) = &self.online else {
            return Ok(());
        };
        let known = allocate::REGISTRY.iter();
        let online: Vec<&str> = known
            .filter(|(_, allocator)| allocator.basis().is_online())
            .map(|(name, _)| *name)
            .collect();
        if !online.contains(&name.as_str()) {
            let found = format!("'{name}'");
            return Err(Error::invalid(place, "online", found, online.join(", ")));
        }
        if allocate::by_name(name)?.basis() == Basis::Layers {
            for rule in self.prefill.iter().filter(|rule| rule.policy != "full") {
                if !policy::build(place, &rule.policy, &rule.params)?.narrows() {
                    let found = format!("{name} beside policy {}", rule.policy);
                    let allowed = "an allocator that need not see the layers first, or in the prefill a policy that \
                                   neither merges nor chooses in stages";
                    return Err(Error::invalid(place, "online", found, allowed));
                }
            }
        }
        let mut rules = self.prefill.iter().chain(&self.decode);
        match rules.any(|rule| rule.tokens.is_some() || rule.share.is_some()) {
            true => {
                let found = format!("{name} beside tokens or shares in the rules");
                Err(Error::invalid(place, "online", found, "one or the other"))
            }
            false => Ok(()),
        }
    }

    fn validate_phase(&self, place: &str, phase: Phase) -> Result<()> {
        let mut owner = vec![None; self.layers];
        for (index, rule) in self.rules(phase).iter().enumerate() {
            let field = |name: &str| format!("{phase}[{index}].{name}");
            let range = &rule.layers;
            if range.last >= self.layers {
                let allowed = format!("layers 0 to {}", self.layers - 1);
                return Err(Error::invalid(place, field("layers"), range, allowed));
            }
            for (layer, owner) in owner
                .iter_mut()
                .enumerate()
                .take(range.last + 1)
                .skip(range.first)
            {
                if let Some(other) = owner.replace(index) {
                    let found = format!("{range}, which repeats layer {layer} of {phase}[{other}]");
                    return Err(Error::invalid(
                        place,
                        field("layers"),
                        found,
                        "each layer once",
                    ));
                }
            }
            let policy = policy::build(place, &rule.policy, &rule.params)?;
            match (rule.tokens, rule.share) {
                (Some(_), Some(_)) => {
                    let found = "given beside share";
                    return Err(Error::invalid(
                        place,
                        field("tokens"),
                        found,
                        "tokens or share",
                    ));
                }
                (Some(_), None) if !policy.evicts() => {
                    let found = "given for policy full";
                    return Err(Error::invalid(place, field("tokens"), found, "no budget"));
                }
                (Some(tokens), None) if tokens < policy.protect(tokens).count().max(1) => {
                    let least = policy.protect(tokens).count().max(1);
                    let allowed = format!("at least {least}, what policy {} protects", rule.policy);
                    return Err(Error::invalid(place, field("tokens"), tokens, allowed));
                }
                (None, Some(share)) if !(share.is_finite() && share > 0.0 && share <= 1e6) => {
                    return Err(Error::invalid(
                        place,
                        field("share"),
                        share,
                        "above 0, at most 1e6",
                    ));
                }
                _ => {}
            }
        }
        if let Some(layer) = owner.iter().position(Option::is_none) {
            let found = format!("without a rule for layer {layer}");
            let allowed = format!("one rule for each of the {} layers", self.layers);
            return Err(Error::invalid(place, phase, found, allowed));
        }
        self.validate_sum(place, phase)
    }

    /// Token rules must add up to the total; a phase with full layers can only be checked once a prompt is known.
    fn validate_sum(&self, place: &str, phase: Phase) -> Result<()> {
        let rules = self.rules(phase);
        let evicting: Vec<&Rule> = rules.iter().filter(|rule| rule.policy != "full").collect();
        let fixed = evicting.iter().filter(|rule| rule.tokens.is_some()).count();
        if fixed == 0 || self.unbalanced {
            return Ok(());
        }
        if fixed < evicting.len() {
            let found = "tokens in some rules and shares in others";
            return Err(Error::invalid(
                place,
                phase,
                found,
                "tokens in all rules or in none",
            ));
        }
        let Budget::Tokens(average) = self.budget else {
            let found = "tokens in the rules beside a budget in another unit";
            return Err(Error::invalid(place, phase, found, "budget.tokens"));
        };
        let total = average.saturating_mul(self.layers);
        let sum: usize = evicting
            .iter()
            .map(|rule| rule.tokens.unwrap_or(0).saturating_mul(rule.layers.count()))
            .fold(0, usize::saturating_add);
        let mixed = evicting.len() < rules.len();
        if sum == total || (mixed && sum <= total) {
            return Ok(());
        }
        let allowed = format!(
            "{}{total}, {} layers times {average}",
            if mixed { "at most " } else { "" },
            self.layers
        );
        Err(Error::invalid(
            place,
            format!("sum of {phase} tokens"),
            sum,
            allowed,
        ))
    }
}

#[cfg(test)]
mod tests;
