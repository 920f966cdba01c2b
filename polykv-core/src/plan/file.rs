//! The plan file: a plan as YAML, with policies and allocators by name.

mod heads;
mod kv;
mod rule;

pub use heads::FileHeads;
pub use kv::FileCodes;
pub use rule::FileRule;

use super::{LayerPlan, LayerRange, MAX_LAYERS, Plan, Rule};
use crate::budget::Budget;
use crate::codes::Codes;
use crate::error::At;
use crate::phase::Phase;
use crate::policy::Policies;
use crate::registry::Registry;
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The version of the schema that this code reads and writes.
pub const SCHEMA: u32 = 1;

/// The most bytes of a plan file; larger files are refused.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// How deep lists and maps of a plan file may be nested.
const MAX_DEPTH: usize = 64;

/// The content of a plan file. [`PlanFile::build`] makes a [`Plan`] of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PlanFile {
    /// The version of the schema, [`SCHEMA`].
    pub schema: u32,
    /// The plan's name in reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The fingerprint of the model that the plan was made for. A plan without one runs on every model with as many layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The number of the model's layers.
    pub layers: usize,
    /// How many entries per KV head the layers may keep in each phase.
    #[serde(with = "serde_yaml_ng::with::singleton_map")]
    pub budget: Budget,
    /// Entries per layer on average that the budget never falls below, see [`Plan::at_least`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub at_least: usize,
    /// Whether layers that keep everything come on top of the budget instead of being charged to it. The other layers then
    /// share the part of the budget that they would have if every layer had its share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_full_extra: bool,
    /// The name of the allocator that splits the budget anew for each prompt; no rule may then state a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<String>,
    /// Rules for the eviction after the prompt, one for each layer; without any rule everything is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefill: Vec<FileRule>,
    /// Rules for the evictions while decoding, one for each layer; without any rule everything is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decode: Vec<FileRule>,
    /// Tokens between two evictions while decoding, see [`Plan::every`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub every: usize,
    /// Layers that keep their entries in codes; the others keep them in the type of the cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv: Vec<FileCodes>,
    /// Layers that divide their budgets over their KV heads by parts; in the others the policy decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<FileHeads>,
}

fn one() -> usize {
    1
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

impl PlanFile {
    /// The content of a file for this plan, without a name and a model. Parameters are left out where they are the defaults
    /// of the policy that `registry` has under the same name.
    #[must_use]
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
            every: plan.every,
            at_least: plan.at_least,
            kv: kv::of(plan),
            heads: heads::of(plan),
        }
    }

    /// The same plan with the entries of all layers in these codes.
    #[must_use]
    pub fn with_kv(mut self, codes: Codes) -> Self {
        let layers = LayerRange::all(self.layers);
        self.kv = vec![FileCodes { layers, codes }];
        self
    }

    /// Parses YAML. Names and numbers are only checked by [`PlanFile::build`].
    ///
    /// # Errors
    /// Text that is no YAML of schema 1 or is nested too deeply. The error names the field.
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
    /// A file that cannot be read, is no regular file or has more than [`MAX_FILE_BYTES`], and what [`PlanFile::from_yaml`]
    /// refuses.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_capped_text(path, MAX_FILE_BYTES)?;
        Self::from_yaml(&text).at(path.display())
    }

    /// Writes a plan file. Whoever reads it at the same time gets the old content or the new one, never a part.
    ///
    /// # Errors
    /// A folder that cannot be written, see [`files::write_whole`].
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_whole(path, self.to_yaml().as_bytes())
    }

    /// The plan as YAML, fields in a fixed order.
    pub fn to_yaml(&self) -> String {
        // Every field is a plain scalar, list or map with string keys, which YAML can always hold.
        serde_yaml_ng::to_string(self).unwrap_or_default()
    }

    /// A fingerprint of the content: the first 8 bytes of the SHA-256 of its YAML, as 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.to_yaml().as_bytes());
        digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The rules of one phase, as in the file.
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

    /// Whether any layer evicts in a phase.
    pub fn evicts(&self, phase: Phase) -> bool {
        self.rules(phase).iter().any(|rule| !rule.keeps())
    }

    /// Builds the plan, with policies and allocators looked up by name in `registry`.
    ///
    /// # Errors
    /// Unknown names, wrong parameters, layers without a rule or with two, shares and sums of entries that do not fit the
    /// budget, and what [`Plan::check`] refuses. The error names the field, the value found and the values allowed.
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
            every: self.every,
            at_least: self.at_least,
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
        kv::build(&self.kv, &mut plan)?;
        heads::build(&self.heads, &mut plan)?;
        plan.check()?;
        Ok(plan)
    }

    /// Checks that the plan is for a model with `layers` layers and this fingerprint.
    ///
    /// # Errors
    /// Another number of layers, and another fingerprint if the file states one.
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
                let allowed = format!("layers 0 to {}", self.layers.saturating_sub(1));
                return Err(Error::plan(field("layers"), range, allowed));
            }
            let built = rule.build(policies, field)?;
            let slots = layers.iter_mut().enumerate();
            for (layer, slot) in slots.skip(range.first).take(range.count()) {
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

    /// Checks that the entries that rules state sum to the budget, or to at most the budget where some layers keep everything:
    /// what these need is only known with a prompt.
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

/// Refuses text that is nested deeper than any plan needs, before it is parsed: the parser's memory and time grow with the
/// depth.
fn check_depth(text: &str) -> Result<()> {
    let mut depth = 0usize;
    let deepest = text.bytes().map(|byte| {
        match byte {
            b'[' | b'{' => depth = depth.saturating_add(1),
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth
    });
    let flow = deepest.max().unwrap_or(0);
    // A block is nested deeper than its indentation only by several dashes in one line.
    let block = text.lines().map(|line| {
        let text = line.trim_start_matches([' ', '-', '?']);
        line.len().saturating_sub(text.len()) / 2
    });
    match flow.max(block.max().unwrap_or(0)) {
        found if found > MAX_DEPTH => {
            let field = "depth of lists and maps";
            Err(Error::plan(field, found, format!("at most {MAX_DEPTH}")))
        }
        _ => Ok(()),
    }
}
