//! What must hold for every policy.

mod together;

use super::compare::{Case, compare, kept};
use super::inputs::{DIM, HEADS, Inputs, KV_HEADS, Windows, facts, shape, tensor};
use super::maths::max_difference;
use super::reference::Reference;
use crate::allocate::least_budget;
use crate::cache::KvCache;
use crate::ops::{is_cube, read_error};
use crate::plan::Plan;
use crate::policy::{HeadBudgets, Params, Policies, Policy};
use crate::{Budget, Error, ErrorKind, LayerShape, Phase};
use burn::tensor::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Checks the policy named `name` with each of its [`variants`](crate::policy::PolicyEntry::variants) on a device; see
/// [`check_policy`] for what is checked. On a GPU only the first variant is checked: kernels are what differs there, and
/// software adapters compile slowly.
///
/// # Errors
/// The first check that fails, with the variant.
pub fn check(policies: &Policies, name: &str, device: &Device) -> Result<(), String> {
    let entry = policies
        .get(name)
        .ok_or_else(|| format!("no policy '{name}' is registered"))?;
    if entry.variants.is_empty() {
        return Err(format!("policy {name} has no variants to try"));
    }
    let count = match is_cube(device) {
        true => 1,
        false => entry.variants.len(),
    };
    for variant in &entry.variants[..count] {
        let wrong = |reason: String| format!("policy {name} {variant}: {reason}");
        let params = Params::from_yaml(variant).map_err(wrong)?;
        let policy = policies.build(name, &params).map_err(text).map_err(wrong)?;
        check_policy(&policy, device).map_err(wrong)?;
    }
    Ok(())
}

/// Checks a policy that evicts in the prefill, in the decode phase and in both:
///
/// - a layer keeps as many entries as its budget or as the tokens so far, whichever is less, on average over its heads and in
///   each of them unless the policy divides the budget ([`Policy::heads`]); no entry twice, and all that the
///   policy protects;
/// - a prompt in chunks gives the same outputs and entries as the prompt at once;
/// - under a budget that covers everything, outputs are those of a cache that keeps everything;
/// - each row of a batch gives the same as when it runs alone;
/// - two runs give the same;
/// - sequences that take a token together give the same, if the policy has a [`TokenRule`](crate::policy::TokenRule);
/// - a NaN query that makes scores NaN, by the policy's definition if there is one, is an error of kind
///   [`ErrorKind::NotFinite`]: by the end of the prompt, and while decoding by [`KvCache::report`]; after a NaN query that does
///   not, as many entries stay as should;
/// - if the policy has an [`Oracle`](super::Oracle), outputs and kept entries equal those of the naive cache, also where
///   a layer has a window smaller or larger than the budget and logits have a soft-cap.
///
/// # Errors
/// The first check that fails, in words.
pub fn check_policy(policy: &Arc<dyn Policy>, device: &Device) -> Result<(), String> {
    let check = Check::new(policy, device)?;
    let phases: &[&[Phase]] = match check.quick {
        true => &[&Phase::BOTH],
        false => &[&Phase::BOTH[..1], &Phase::BOTH[1..], &Phase::BOTH],
    };
    for phases in phases {
        let names: Vec<String> = phases.iter().map(ToString::to_string).collect();
        let wrong = |reason: String| format!("in {}: {reason}", names.join(" and "));
        check.counts(phases).map_err(wrong)?;
        if policy.oracle().is_some() {
            check.reference(phases).map_err(wrong)?;
        }
    }
    check.chunks()?;
    check.everything()?;
    check.rows()?;
    check.again()?;
    check.together()?;
    check.not_finite()
}

/// The policies of a list, each built with each of its variants.
///
/// # Errors
/// A variant that does not build.
pub fn variants(policies: &Policies) -> crate::Result<Vec<Arc<dyn Policy>>> {
    let entries = policies.iter();
    let all = entries.flat_map(|entry| {
        let variants = entry.variants.iter();
        variants.map(|text| {
            let params = Params::from_yaml(text)
                .map_err(|reason| Error::plan("variants", format!("'{text}'"), reason))?;
            policies.build(&entry.name, &params)
        })
    });
    all.collect()
}

fn text(error: Error) -> String {
    error.to_string()
}

/// A policy under a small budget.
struct Check<'a> {
    policy: &'a Arc<dyn Policy>,
    device: &'a Device,
    budget: usize,
    prompt: usize,
    steps: usize,
    /// The largest difference that rounding in another order may make.
    tolerance: f64,
    /// Fewer steps and phases.
    quick: bool,
}

/// The results of a run: the outputs of the prompt and of every step, `[rows][heads][tokens][dim]`, and the positions that were
/// kept after each.
struct Run {
    outputs: Vec<Vec<f32>>,
    kept: Vec<Vec<Vec<usize>>>,
}

impl Run {
    /// # Errors
    /// Says what differs.
    fn equals(&self, other: &Self, tolerance: f64) -> Result<(), String> {
        for (step, (found, wanted)) in self.outputs.iter().zip(&other.outputs).enumerate() {
            let apart = max_difference(found, wanted);
            if apart > tolerance {
                return Err(format!("outputs of step {step} differ by {apart:.1e}"));
            }
        }
        for (step, (found, wanted)) in self.kept.iter().zip(&other.kept).enumerate() {
            if found != wanted {
                return Err(format!("{found:?} stay for {wanted:?} after step {step}"));
            }
        }
        match (self.outputs.len(), self.kept.len()) == (other.outputs.len(), other.kept.len()) {
            true => Ok(()),
            false => Err("the runs differ in length".into()),
        }
    }
}

impl<'a> Check<'a> {
    fn new(policy: &'a Arc<dyn Policy>, device: &'a Device) -> Result<Self, String> {
        let budget = least_budget(&**policy).map_err(text)?.max(12);
        let quick = is_cube(device);
        Ok(Self {
            policy,
            device,
            budget,
            prompt: budget + if quick { 25 } else { 33 },
            steps: if quick { 6 } else { 3 * budget + 4 },
            tolerance: if quick { 1e-4 } else { 1e-5 },
            quick,
        })
    }

    fn plan(&self, budget: usize, phases: &[Phase]) -> Plan {
        Plan::uniform(1, self.policy.clone(), Budget::Tokens(budget), phases)
    }

    /// Runs a prompt in chunks and the steps after it, with a row for each seed.
    fn run(&self, plan: Plan, seeds: &[u64], chunk: usize) -> Result<Run, String> {
        let tokens = self.prompt + self.steps;
        let rows: Vec<Inputs> = seeds
            .iter()
            .map(|&seed| Inputs::seeded(tokens, seed, 0))
            .collect();
        let (mut cache, mut run) = self.after_prompt(plan, &rows, chunk)?;
        for i in self.prompt..tokens {
            let [q, k, v] = self.part(&rows, i..i + 1);
            let output = cache.decode(0, q, k, v).map_err(text)?;
            run.outputs.push(read(output)?);
            run.kept.push(kept(&cache, 0).map_err(text)?);
        }
        cache.check().map_err(text)?;
        Ok(run)
    }

    /// A cache of these rows after their prompt.
    fn after_prompt(
        &self,
        plan: Plan,
        rows: &[Inputs],
        chunk: usize,
    ) -> Result<(KvCache, Run), String> {
        let mut cache = self.cache(plan, rows.len())?;
        let mut outputs = Vec::new();
        let mut prompt = cache.prompt(self.prompt).map_err(text)?;
        for start in (0..self.prompt).step_by(chunk) {
            let [q, k, v] = self.part(rows, start..self.prompt.min(start + chunk));
            outputs.push(prompt.attend(0, q, k, v).map_err(text)?);
        }
        if prompt.layers_to_repeat() > 0 {
            let [q, k, v] = self.part(rows, 0..self.prompt);
            prompt.repeat(0, q, k, v).map_err(text)?;
        }
        prompt.end_layer(0).map_err(text)?;
        prompt.finish().map_err(text)?;
        let run = Run {
            outputs: vec![read(Tensor::cat(outputs, 2))?],
            kept: vec![kept(&cache, 0).map_err(text)?],
        };
        Ok((cache, run))
    }

    fn cache(&self, plan: Plan, batch: usize) -> Result<KvCache, String> {
        let shape = LayerShape { batch, ..shape() };
        let mut cache = KvCache::new(plan, shape, self.device).map_err(text)?;
        cache.set_facts(&facts(1, self.device));
        Ok(cache)
    }

    fn part(&self, rows: &[Inputs], range: Range<usize>) -> [Tensor<4>; 3] {
        let mut parts: [Vec<Tensor<4>>; 3] = Default::default();
        for row in rows {
            let row = row.part(range.clone(), self.device);
            parts
                .iter_mut()
                .zip(row)
                .for_each(|(all, part)| all.push(part));
        }
        parts.map(|rows| Tensor::cat(rows, 0))
    }

    /// Checks that as many entries stay as should, and all that the policy protects.
    fn counts(&self, phases: &[Phase]) -> Result<(), String> {
        let run = self.run(self.plan(self.budget, phases), &[1], self.prompt)?;
        let protect = self.policy.protect(self.budget);
        let mut held = 0;
        for (step, heads) in run.kept.iter().enumerate() {
            let seen = self.prompt + step;
            let (phase, new) = match step {
                0 => (Phase::Prefill, self.prompt),
                _ => (Phase::Decode, 1),
            };
            held += new;
            if phases.contains(&phase) {
                held = held.min(self.budget);
            }
            let together: usize = heads.iter().map(Vec::len).sum();
            let even = self.policy.heads() == HeadBudgets::Even;
            if together != held * heads.len() {
                return Err(format!(
                    "{together} entries stay for {held} of {seen} tokens in {} heads",
                    heads.len()
                ));
            }
            for head in heads {
                if even && head.len() != held {
                    return Err(format!(
                        "{} entries stay for {held} of {seen} tokens",
                        head.len()
                    ));
                }
                let safe = (0..protect.sinks.min(seen))
                    .chain(seen.saturating_sub(protect.recent)..seen)
                    .find(|p| head.binary_search(p).is_err());
                if let Some(lost) = safe {
                    return Err(format!(
                        "the protected position {lost} of {seen} is gone: {head:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn reference(&self, phases: &[Phase]) -> Result<(), String> {
        let plan = Plan::uniform(2, self.policy.clone(), Budget::Tokens(self.budget), phases);
        let chunks: &[usize] = match self.quick {
            true => &[self.prompt],
            false => &[self.prompt, 7],
        };
        for &chunk in chunks {
            let case = Case {
                prompt: self.prompt,
                steps: self.steps,
                chunk,
                ..Case::new(plan.clone())
            };
            self.equals_reference(&case)?;
        }
        // A budget of two layers, of which one has a window that is smaller or larger than it.
        for window in [self.budget / 2, self.budget + 9] {
            let windows = Windows {
                layers: vec![Some(window), None],
                softcap: Some(1.5),
            };
            let case = Case {
                prompt: self.prompt,
                steps: self.steps,
                chunk: chunks[chunks.len() - 1],
                windows,
                ..Case::new(plan.clone())
            };
            let same = self.equals_reference(&case);
            same.map_err(|reason| format!("a window of {window} tokens: {reason}"))?;
        }
        Ok(())
    }

    fn equals_reference(&self, case: &Case) -> Result<(), String> {
        let difference = compare(case, self.device).map_err(text)?;
        match difference.output <= self.tolerance && difference.kept == 0 {
            true => Ok(()),
            false => Err(format!(
                "outputs differ by {:.1e} from the reference, {} entries are kept by one of the two only",
                difference.output, difference.kept
            )),
        }
    }

    fn chunks(&self) -> Result<(), String> {
        let plan = self.plan(self.budget, &Phase::BOTH);
        let whole = self.run(plan.clone(), &[1], self.prompt)?;
        let chunks: &[usize] = if self.quick { &[7] } else { &[1, 7] };
        for &chunk in chunks {
            let parts = self.run(plan.clone(), &[1], chunk)?;
            let same = parts.equals(&whole, self.tolerance);
            same.map_err(|reason| format!("chunks of {chunk} tokens: {reason}"))?;
        }
        Ok(())
    }

    fn everything(&self) -> Result<(), String> {
        let full = self.run(Plan::full(1), &[1], self.prompt)?;
        let plan = self.plan(self.prompt + self.steps, &Phase::BOTH);
        // Attention that policies look at may be added up in another order.
        let same = self
            .run(plan, &[1], self.prompt)?
            .equals(&full, self.tolerance / 10.0);
        same.map_err(|reason| format!("a budget that covers everything: {reason}"))
    }

    fn rows(&self) -> Result<(), String> {
        let plan = self.plan(self.budget, &Phase::BOTH);
        let seeds = [3, 4];
        let together = self.run(plan.clone(), &seeds, self.prompt)?;
        for (row, seed) in seeds.into_iter().enumerate() {
            let alone = self.run(plan.clone(), &[seed], self.prompt)?;
            let outputs = together.outputs.iter();
            let kept = together.kept.iter();
            let batched = Run {
                outputs: outputs
                    .map(|all| all[row * all.len() / 2..][..all.len() / 2].to_vec())
                    .collect(),
                kept: kept
                    .map(|all| all[row * KV_HEADS..][..KV_HEADS].to_vec())
                    .collect(),
            };
            let same = batched.equals(&alone, self.tolerance);
            same.map_err(|reason| format!("row {row} of a batch: {reason}"))?;
        }
        Ok(())
    }

    fn again(&self) -> Result<(), String> {
        let plan = self.plan(self.budget, &Phase::BOTH);
        let first = self.run(plan.clone(), &[1], self.prompt)?;
        let tolerance = if self.quick { self.tolerance } else { 0.0 };
        let same = self.run(plan, &[1], self.prompt)?.equals(&first, tolerance);
        same.map_err(|reason| format!("another run: {reason}"))
    }

    /// Checks a NaN in the last query of the prompt, and one in a decode step.
    fn not_finite(&self) -> Result<(), String> {
        let inputs = Inputs::seeded(self.prompt + 1, 1, 0);
        let spoiled = vec![vec![f64::NAN; DIM]; HEADS];
        let nan = tensor(std::slice::from_ref(&spoiled), self.device);
        for phase in Phase::BOTH {
            let plan = self.plan(self.budget, &Phase::BOTH);
            let mut reference = Reference::new(&plan, 0).map_err(text)?;
            let mut cache = self.cache(plan, 1)?;
            let last = match phase {
                Phase::Prefill => self.prompt - 1,
                Phase::Decode => self.prompt,
            };
            let has_oracle = self.policy.oracle().is_some();
            let mut expected = false;
            if has_oracle {
                reference.begin(self.prompt).map_err(text)?;
                for i in 0..=last {
                    if i == self.prompt {
                        reference.evict(Phase::Prefill).map_err(text)?;
                    }
                    let q = if i == last { &spoiled } else { &inputs.q[i] };
                    reference.step(q, &inputs.k[i], &inputs.v[i]);
                }
                let scores = reference.scores(phase).map_err(text)?;
                let mut scores = scores.iter().flatten().flatten();
                expected = scores.any(|score| score.is_nan());
            }
            let mut run = || -> crate::Result<()> {
                let mut prompt = cache.prompt(self.prompt)?;
                let healthy = last.min(self.prompt);
                let [q, k, v] = inputs.part(0..healthy, self.device);
                prompt.attend(0, q, k, v)?;
                if healthy < self.prompt {
                    let [_, k, v] = inputs.part(healthy..self.prompt, self.device);
                    prompt.attend(0, nan.clone(), k, v)?;
                }
                if prompt.layers_to_repeat() > 0 {
                    let [q, k, v] = inputs.part(0..self.prompt, self.device);
                    prompt.repeat(0, q, k, v)?;
                }
                prompt.end_layer(0)?;
                prompt.finish()?;
                if phase == Phase::Decode {
                    let [_, k, v] = inputs.part(last..last + 1, self.device);
                    cache.decode(0, nan.clone(), k, v)?;
                    cache.report()?;
                }
                Ok(())
            };
            match run() {
                Err(error) if error.kind() == ErrorKind::NotFinite => {
                    if has_oracle && !expected {
                        return Err(format!(
                            "a NaN query in {phase}, which the definition ignores: {error}"
                        ));
                    }
                }
                Err(error) => return Err(format!("a NaN query in {phase}: {error}")),
                Ok(()) if expected => {
                    return Err(format!("a NaN query in {phase} went unnoticed"));
                }
                Ok(()) => {
                    let held = kept(&cache, 0).map_err(text)?;
                    let together: usize = held.iter().map(Vec::len).sum();
                    if together != self.budget * held.len() {
                        return Err(format!("after a NaN query in {phase} {held:?} stay"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn read(tensor: Tensor<4>) -> Result<Vec<f32>, String> {
    let values = tensor.try_into_vec_as().map_err(read_error);
    values.map_err(text)
}
