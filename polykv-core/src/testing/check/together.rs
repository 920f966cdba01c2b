//! Whether a policy does with a decoded token what its rule says.

use super::{Check, kept, read, text};
use crate::Phase;
use crate::cache::{KvCache, in_arenas};
use crate::policy::TokenRule;
use crate::testing::Inputs;

/// Sequences that share slots.
const SEEDS: [u64; 2] = [1, 2];

impl Check<'_> {
    /// Two sequences in shared slots give what each gives alone.
    pub(super) fn together(&self) -> Result<(), String> {
        let phases = match self.policy.token_rule() {
            None => return Ok(()),
            Some(TokenRule::Forgets) => &Phase::BOTH[..1],
            Some(_) => &Phase::BOTH,
        };
        let plan = self.plan(self.budget, phases);
        let tokens = self.prompt + self.steps;
        let rows = SEEDS.map(|seed| Inputs::seeded(tokens, seed, 0));
        let (mut caches, mut runs) = (Vec::new(), Vec::new());
        for row in &rows {
            let (cache, run) =
                self.after_prompt(plan.clone(), std::slice::from_ref(row), self.prompt)?;
            caches.push(cache);
            runs.push(run);
        }
        for i in self.prompt..tokens {
            let mut together: Vec<&mut KvCache> = caches.iter_mut().collect();
            let (output, errors) = in_arenas(&mut together, 0, self.part(&rows, i..i + 1));
            if let Some(error) = errors.into_iter().flatten().next() {
                return Err(text(error));
            }
            for (row, (cache, run)) in caches.iter().zip(&mut runs).enumerate() {
                run.outputs.push(read(output.clone().narrow(0, row, 1))?);
                run.kept.push(kept(cache, 0).map_err(text)?);
            }
        }
        for (run, seed) in runs.iter().zip(SEEDS) {
            let alone = self.run(plan.clone(), &[seed], self.prompt)?;
            run.equals(&alone, self.tolerance).map_err(|reason| {
                format!("beside another sequence, by its token rule: {reason}")
            })?;
        }
        Ok(())
    }
}
