//! What has been measured so far, line by line on disk: an interrupted calibration loses at most one example.

use crate::args::{CalibrateArgs, Objective};
use crate::journal::{self as lines, Appender};
use polykv::calibrate::{Candidate, ExampleLosses, Measured};
use polykv::models::LoadedModel;
use polykv::models::calibrate::Example;
use polykv::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NAME: &str = "measurements.jsonl";

/// A line after the first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    Measured {
        example: usize,
        signals: Measured,
    },
    /// Of a whole plan, named by its hash.
    Losses {
        plan: String,
        losses: ExampleLosses,
    },
}

#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    lines: Appender,
    measured: BTreeMap<usize, Measured>,
    losses: BTreeMap<String, ExampleLosses>,
}

/// What the numbers depend on. The first line; a resumed run must have the same.
pub fn header(
    args: &CalibrateArgs,
    model: &LoadedModel,
    candidates: &[Candidate],
    examples: &[Example],
) -> Value {
    let given = &args.examples;
    let names: Vec<String> = candidates.iter().map(ToString::to_string).collect();
    let (text, evidence) = (
        given.objective != Objective::Evidence,
        given.objective != Objective::Text,
    );
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.model.model,
        "fingerprint": model.model.config().fingerprint(),
        "policies": names,
        "phases": args.choice.phase.list(),
        "budget": [args.choice.budget.budget.map(|n| n as f64), args.choice.budget.budget_ratio, args.choice.budget.budget_mb],
        "likelihoods": super::report::likelihoods(&args.choice),
        "examples": text.then_some(given.examples),
        "evidence": evidence.then_some(given.evidence),
        "length": given.length,
        "continuation": given.continuation,
        "question_after": given.question_after,
        "seed": given.seed,
        "tokens": format!("{:016x}", digest(examples)),
    })
}

/// FNV-1a of all tokens: data that changed under the same name is noticed.
fn digest(examples: &[Example]) -> u64 {
    let tokens = examples
        .iter()
        .flat_map(|own| own.prompt.iter().chain(&own.continuation));
    let bytes = tokens.flat_map(|token| token.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Journal {
    /// A new journal in a folder, or with `resume` the one that is there.
    ///
    /// # Errors
    /// A journal that is there without `resume`; one of another calibration, with the setting that differs; lines that are
    /// none. A last line that was cut off is dropped.
    pub fn open(folder: &Path, header: &Value, resume: bool) -> Result<Self> {
        let path = folder.join(NAME);
        let text = lines::read(&path)?;
        if !resume && !text.is_empty() {
            let found = "there from another run";
            let allowed = "--resume, or a folder without it";
            return Err(Error::invalid(folder.display(), NAME, found, allowed));
        }
        let mut journal = Self {
            lines: Appender::open(&path, text.len())?,
            path,
            measured: BTreeMap::new(),
            losses: BTreeMap::new(),
        };
        let mut lines = text.lines();
        match lines.next() {
            Some(first) => journal.check_header(first, header)?,
            None => journal.write(&header.to_string())?,
        }
        for (index, line) in lines.enumerate() {
            journal.take(index + 2, line)?;
        }
        Ok(journal)
    }

    /// Writes a record and takes it in as it will be read again.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record)
            .map_err(|e| Error::Failed(format!("a measurement as JSON: {e}")))?;
        self.write(&line)?;
        self.take(0, &line)
    }

    pub fn knows(&self, example: usize) -> bool {
        self.measured.contains_key(&example)
    }

    /// In the order of the examples.
    pub fn measured(&self) -> Vec<Measured> {
        self.measured.values().cloned().collect()
    }

    pub fn losses(&self, plan: &str) -> Option<&ExampleLosses> {
        self.losses.get(plan)
    }

    fn write(&mut self, line: &str) -> Result<()> {
        self.lines.append(&format!("{line}\n"))
    }

    fn take(&mut self, number: usize, line: &str) -> Result<()> {
        let record: Record = serde_json::from_str(line).map_err(|e| {
            let found = format!("no measurement ({e})");
            let allowed = "lines that calibrate has written";
            Error::invalid(
                self.path.display(),
                format!("line {number}"),
                found,
                allowed,
            )
        })?;
        match record {
            Record::Measured { example, signals } => {
                self.measured.insert(example, signals);
            }
            Record::Losses { plan, losses } => {
                self.losses.insert(plan, losses);
            }
        }
        Ok(())
    }

    fn check_header(&self, line: &str, wanted: &Value) -> Result<()> {
        let found: Value = serde_json::from_str(line).unwrap_or_default();
        // Numbers as they are after a round trip.
        let wanted: Value = serde_json::from_str(&wanted.to_string()).unwrap_or_default();
        let fields = wanted.as_object().into_iter().flatten();
        match fields
            .into_iter()
            .find(|(key, value)| found.get(key.as_str()) != Some(*value))
        {
            Some((key, value)) => {
                let other = found.get(key.as_str()).unwrap_or(&Value::Null);
                let allowed = format!("{value}, or another folder");
                Err(Error::invalid(self.path.display(), key, other, allowed))
            }
            None => Ok(()),
        }
    }
}
