//! Whether a run.json states a run that can be: what is read here is counted, multiplied and reserved memory for later.

use super::{Record, Session};
use crate::registry::registry;
use polykv::{Error, Result};

const MOST_PLANS: usize = 1000;
const MOST_SAMPLES: usize = 10_000_000;
/// Of tokens in a session.
const MOST_TOKENS: usize = 1 << 40;
/// Of a session: a thousand years.
const MOST_SECONDS: f64 = 3.2e10;

impl Record {
    /// # Errors
    /// No plans, two of one name, or one that cannot be; numbers of plans, samples, shards, tokens and seconds out of range.
    pub fn check(&self) -> Result<()> {
        let run = &self.identity;
        between("plans", run.plans.len(), 1, MOST_PLANS)?;
        between("samples", run.samples, 1, MOST_SAMPLES)?;
        between("number of shards", self.shard.count, 1, MOST_SAMPLES)?;
        for (index, plan) in run.plans.iter().enumerate() {
            let name = &plan.info.name;
            let mut others = run.plans.iter().take(index);
            if others.any(|other| other.info.name == *name) {
                let found = format!("'{name}' twice");
                return Err(Error::invalid("run", "plans", found, "names that differ"));
            }
            plan.plan.build(registry())?;
        }
        self.sessions.iter().try_for_each(Session::check)
    }
}

impl Session {
    fn check(&self) -> Result<()> {
        between("samples of a session", self.samples, 0, MOST_SAMPLES)?;
        between("prompt_tokens", self.prompt_tokens, 0, MOST_TOKENS)?;
        between("new_tokens", self.new_tokens, 0, MOST_TOKENS)?;
        match (0.0..=MOST_SECONDS).contains(&self.seconds) {
            true => Ok(()),
            false => {
                let allowed = format!("0 to {MOST_SECONDS}");
                Err(Error::invalid("run", "seconds", self.seconds, allowed))
            }
        }
    }
}

fn between(field: &str, found: usize, least: usize, most: usize) -> Result<()> {
    match (least..=most).contains(&found) {
        true => Ok(()),
        false => Err(Error::invalid(
            "run",
            field,
            found,
            format!("{least} to {most}"),
        )),
    }
}
