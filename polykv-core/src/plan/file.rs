//! The plan file: a plan as YAML, policies by name.

use super::{LayerPlan, LayerRange, MAX_LAYERS, Plan, Rule, Share};
use crate::budget::Budget;
use crate::error::At;
use crate::phase::Phase;
use crate::policy::{Params, Policies, Policy};
use crate::registry::Registry;
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// The version of the schema that this code reads and writes.
pub const SCHEMA: u32 = 1;

/// Plan files above this size are refused.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// How deep lists and maps of a plan file may lie in each other.
const MAX_DEPTH: usize = 64;

/// What a plan file says. [`PlanFile::build`] makes a [`Plan`] of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PlanFile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What reports call the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Fingerprint of the model that the plan was made for; a plan without one runs on any model with its number of
    /// layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The model's layers.
    pub layers: usize,
    /// Entries per KV head that each phase may keep.
    #[serde(with = "serde_yaml_ng::with::singleton_map")]
    pub budget: Budget,
    /// See [`Plan::allow_full_extra`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_full_extra: bool,
    /// The name of the allocator that splits the total anew for each prompt; the rules then state no shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<String>,
    /// A rule for each layer; none at all keeps everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefill: Vec<FileRule>,
    /// A rule for each layer; none at all keeps everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decode: Vec<FileRule>,
}

/// What a range of layers does in one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileRule {
    /// The layers.
    pub layers: LayerRange,
    /// A policy's name, or [`Policies::KEEP`].
    pub policy: String,
    /// The policy's parameters; those left out take their defaults.
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

impl PlanFile {
    /// The file that states a plan. Parameters that the registry's policy of that name has by default are left out.
    pub fn of(plan: &Plan, registry: &Registry) -> Self {
        let rules = |phase| {
            let mut rules: Vec<FileRule> = Vec::new();
            for (layer, rule) in plan.rules(phase).enumerate() {
                let next = FileRule::of(layer, rule, &registry.policies);
                match rules.last_mut() {
                    Some(last) if last.same_but_layers(&next) => last.layers.last = layer,
                    _ => rules.push(next),
                }
            }
            rules
        };
        Self {
            schema: SCHEMA,
            name: None,
            model: None,
            layers: plan.layers.len(),
            budget: plan.budget,
            allow_full_extra: plan.allow_full_extra,
            online: plan
                .online
                .as_ref()
                .map(|allocator| allocator.name().to_string()),
            prefill: rules(Phase::Prefill),
            decode: rules(Phase::Decode),
        }
    }

    /// Reads YAML. Names and numbers are checked by [`PlanFile::build`].
    ///
    /// # Errors
    /// Text that is no YAML of schema 1, naming the field.
    pub fn from_yaml(text: &str) -> Result<Self> {
        let text = text.trim_start_matches('\u{feff}');
        check_depth(text)?;
        let file: Self = serde_yaml_ng::from_str(text)
            .map_err(|e| Error::plan("content", format!("not a plan ({e})"), "plan schema 1"))?;
        match file.schema {
            SCHEMA => Ok(file),
            other => Err(Error::plan("schema", other, SCHEMA)),
        }
    }

    /// Reads a plan file.
    ///
    /// # Errors
    /// Text that is no plan, a file that cannot be read, is no regular file, or is larger than [`MAX_FILE_BYTES`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_capped_text(path, MAX_FILE_BYTES)?;
        Self::from_yaml(&text).at(path.display())
    }

    /// Writes the plan; a reader never sees half a file.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_whole(path, self.to_yaml().as_bytes())
    }

    /// The plan as YAML, fields in a fixed order.
    pub fn to_yaml(&self) -> String {
        // Every field is a plain scalar, list or map with string keys, which YAML can always hold.
        serde_yaml_ng::to_string(self).unwrap_or_default()
    }

    /// A short fingerprint of the content, 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.to_yaml().as_bytes());
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The rules of one phase.
    pub fn rules(&self, phase: Phase) -> &[FileRule] {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The rules of one phase layer by layer, from the first to the last; layers without a rule keep everything.
    pub fn by_layer(&self, phase: Phase) -> Vec<FileRule> {
        let one = |layer| LayerRange {
            first: layer,
            last: layer,
        };
        let rule = |layer: usize| {
            let mut rules = self.rules(phase).iter();
            let found = rules.find(|rule| (rule.layers.first..=rule.layers.last).contains(&layer));
            match found {
                Some(rule) => FileRule {
                    layers: one(layer),
                    ..rule.clone()
                },
                None => FileRule::new(one(layer), Policies::KEEP),
            }
        };
        (0..self.layers).map(rule).collect()
    }

    /// Whether some layer evicts in a phase.
    pub fn evicts(&self, phase: Phase) -> bool {
        self.rules(phase).iter().any(|rule| !rule.keeps())
    }

    /// The plan, with policies and allocators looked up by name.
    ///
    /// # Errors
    /// Everything that can be wrong without a prompt or a model: names, parameters, ranges of layers, shares, sums. The
    /// error names the field, the value found and the values allowed.
    pub fn build(&self, registry: &Registry) -> Result<Plan> {
        if self.layers == 0 || self.layers > MAX_LAYERS {
            let allowed = format!("1 to {MAX_LAYERS}");
            return Err(Error::plan("layers", self.layers, allowed));
        }
        self.budget.check()?;
        let online = self.online.as_deref().map(|name| {
            let online = registry
                .allocators
                .names(|allocator| allocator.basis().is_online());
            match online.contains(&name) {
                true => registry.allocators.get(name),
                false => Err(Error::plan(
                    "online",
                    format!("'{name}'"),
                    online.join(", "),
                )),
            }
        });
        let mut plan = Plan {
            budget: self.budget,
            allow_full_extra: self.allow_full_extra,
            online: online.transpose()?,
            layers: vec![LayerPlan::KEEP; self.layers],
        };
        for phase in Phase::BOTH {
            if let (Some(name), true) = (&self.online, self.states_shares(phase)) {
                let found = format!("{name} beside tokens or shares in the rules");
                return Err(Error::plan("online", found, "one or the other"));
            }
            plan.set_rules(phase, self.build_phase(phase, &registry.policies)?);
            self.check_sum(phase)?;
        }
        plan.check()?;
        Ok(plan)
    }

    /// Checks that the plan belongs to a model.
    ///
    /// # Errors
    /// A different number of layers or another model's fingerprint.
    pub fn check_model(&self, layers: usize, fingerprint: &str) -> Result<()> {
        if self.layers != layers {
            let allowed = format!("{layers}, the model's");
            return Err(Error::plan("layers", self.layers, allowed));
        }
        match &self.model {
            Some(model) if model != fingerprint => {
                let allowed = format!("'{fingerprint}', the model in use");
                Err(Error::plan("model", format!("'{model}'"), allowed))
            }
            _ => Ok(()),
        }
    }

    fn states_shares(&self, phase: Phase) -> bool {
        let mut rules = self.rules(phase).iter();
        rules.any(|rule| rule.tokens.is_some() || rule.share.is_some())
    }

    fn build_phase(&self, phase: Phase, policies: &Policies) -> Result<Vec<Rule>> {
        let mut layers: Vec<Option<(usize, Rule)>> = vec![None; self.layers];
        for (index, rule) in self.rules(phase).iter().enumerate() {
            let field = |name: &str| format!("{phase}[{index}].{name}");
            let range = &rule.layers;
            if range.last >= self.layers {
                let allowed = format!("layers 0 to {}", self.layers - 1);
                return Err(Error::plan(field("layers"), range, allowed));
            }
            let built = rule.build(policies, field)?;
            let slots = layers.iter_mut().enumerate();
            for (layer, slot) in slots.take(range.last + 1).skip(range.first) {
                if let Some((other, _)) = slot.replace((index, built.clone())) {
                    let found = format!("{range}, which repeats layer {layer} of {phase}[{other}]");
                    return Err(Error::plan(field("layers"), found, "each layer once"));
                }
            }
        }
        if self.rules(phase).is_empty() {
            return Ok(vec![Rule::Keep; self.layers]);
        }
        let rules = layers.into_iter().enumerate().map(|(layer, slot)| {
            slot.map(|(_, rule)| rule).ok_or_else(|| {
                let found = format!("without a rule for layer {layer}");
                let allowed = format!("one rule for each of the {} layers, or none", self.layers);
                Error::plan(phase, found, allowed)
            })
        });
        rules.collect()
    }

    /// Tokens of rules must add up to the total; a phase with layers that keep everything can only be checked once a
    /// prompt is known.
    fn check_sum(&self, phase: Phase) -> Result<()> {
        let (evicting, full): (Vec<_>, Vec<_>) =
            self.rules(phase).iter().partition(|rule| !rule.keeps());
        let fixed = evicting.iter().filter(|rule| rule.tokens.is_some()).count();
        if fixed == 0 {
            return Ok(());
        }
        if fixed < evicting.len() {
            let found = "tokens in some rules and shares in others";
            return Err(Error::plan(phase, found, "tokens in all rules or in none"));
        }
        let (total, spelled) = match self.budget {
            Budget::Tokens(average) => (
                average.saturating_mul(self.layers),
                format!("{} layers times {average}", self.layers),
            ),
            Budget::Total(total) => (total, "budget.total".to_string()),
            _ => {
                let found = "tokens in the rules beside a budget in another unit";
                return Err(Error::plan(phase, found, "budget.tokens or budget.total"));
            }
        };
        let sum = evicting
            .iter()
            .map(|rule| rule.tokens.unwrap_or(0).saturating_mul(rule.layers.count()))
            .fold(0, usize::saturating_add);
        let mixed = !full.is_empty();
        if sum == total || (mixed && sum <= total) {
            return Ok(());
        }
        let most = if mixed { "at most " } else { "" };
        let field = format!("sum of {phase} tokens");
        Err(Error::budget(
            field,
            sum,
            format!("{most}{total}, {spelled}"),
        ))
    }
}

impl FileRule {
    /// A rule without parameters or a share.
    pub fn new(layers: LayerRange, policy: impl Into<String>) -> Self {
        Self {
            layers,
            policy: policy.into(),
            params: Params::new(),
            tokens: None,
            share: None,
        }
    }

    fn of(layer: usize, rule: &Rule, policies: &Policies) -> Self {
        let range = LayerRange {
            first: layer,
            last: layer,
        };
        let Rule::Evict { policy, share } = rule else {
            return Self::new(range, Policies::KEEP);
        };
        let (tokens, share) = match *share {
            Share::Entries(entries) => (Some(entries), None),
            Share::Part(part) => (None, (part != 1.0).then_some(part)),
        };
        let defaults = policies.build(policy.name(), &Params::new());
        let defaults = defaults.map_or_else(|_| Params::new(), |policy| policy.params());
        Self {
            params: policy.params().without(&defaults),
            tokens,
            share,
            ..Self::new(range, policy.name())
        }
    }

    /// Whether these layers keep everything.
    pub fn keeps(&self) -> bool {
        self.policy == Policies::KEEP
    }

    fn same_but_layers(&self, other: &Self) -> bool {
        let layers = other.layers;
        Self {
            layers,
            ..self.clone()
        } == *other
    }

    fn build(&self, policies: &Policies, field: impl Fn(&str) -> String) -> Result<Rule> {
        if self.tokens.is_some() && self.share.is_some() {
            let found = "given beside share";
            return Err(Error::plan(field("tokens"), found, "tokens or share"));
        }
        if let Some(share) = self.share
            && !(share.is_finite() && share > 0.0 && share <= 1e6)
        {
            return Err(Error::plan(field("share"), share, "above 0, at most 1e6"));
        }
        if self.keeps() {
            let given = [
                ("tokens", self.tokens.is_some(), "no budget"),
                ("share", self.share.is_some(), "no share"),
                ("params", !self.params.is_empty(), "no parameters"),
            ];
            return match given.into_iter().find(|(_, given, _)| *given) {
                Some((name, _, allowed)) => {
                    let found = format!("given for policy {}", self.policy);
                    Err(Error::plan(field(name), found, allowed))
                }
                None => Ok(Rule::Keep),
            };
        }
        let policy: Arc<dyn Policy> = policies.build(&self.policy, &self.params)?;
        if let Some(tokens) = self.tokens {
            let least = policy.protect(tokens).count().max(1);
            if tokens < least {
                let allowed = format!("at least {least}, what policy {} protects", self.policy);
                return Err(Error::budget(field("tokens"), tokens, allowed));
            }
        }
        let share = match self.tokens {
            Some(tokens) => Share::Entries(tokens),
            None => Share::Part(self.share.unwrap_or(1.0)),
        };
        Ok(Rule::Evict { policy, share })
    }
}

/// The parser keeps every level that is open, and takes time for each: text that no plan needs is refused unread.
fn check_depth(text: &str) -> Result<()> {
    let mut depth = 0usize;
    let deepest = text.bytes().map(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth
    });
    let flow = deepest.max().unwrap_or(0);
    // Blocks lie deeper than their indentation only by dashes in one line.
    let block = text.lines().map(|line| {
        let indent = line.len() - line.trim_start_matches([' ', '-', '?']).len();
        indent / 2
    });
    match flow.max(block.max().unwrap_or(0)) {
        found if found > MAX_DEPTH => {
            let field = "depth of lists and maps";
            Err(Error::plan(field, found, format!("at most {MAX_DEPTH}")))
        }
        _ => Ok(()),
    }
}
