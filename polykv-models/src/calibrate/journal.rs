//! What has been measured so far, in memory and, where a folder is given, line by line on disk: an interrupted calibration
//! loses at most one example.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod shape;

pub use shape::Shape;

use super::{CalibrateOptions, Example};
use crate::LoadedModel;
use polykv_core::calibrate::{ExampleLosses, Measured};
use polykv_core::files::lines::{self, Appender};
use polykv_core::{Error, Plan, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NAME: &str = "measurements.jsonl";

/// Where a calibration writes what it measures: the file measurements.jsonl of a folder, which is made if it is not there.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The folder.
    pub folder: PathBuf,
    /// Go on with what is there; without it a file that is there is refused. Routes, allocators and searches may differ from
    /// those of the run that began it, everything that the measurements depend on may not.
    pub resume: bool,
    /// Folders with the journals of parts, see [`measure_part`](super::measure_part): what they hold is taken over.
    pub parts: Vec<PathBuf>,
    /// What identifies the weights, such as the [`digest`](crate::digest()) of the model's files.
    pub weights: String,
    /// Name of the backend, such as `cpu` or `cuda`.
    pub backend: String,
}

/// A line after the first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Record {
    Measured {
        example: usize,
        signals: Measured,
    },
    /// The counts of an example, see [`counts`](super::heads::counts).
    Heads {
        example: usize,
        counts: Vec<Vec<usize>>,
    },
    /// The losses of a whole plan, named by its fingerprint.
    Losses {
        plan: String,
        losses: ExampleLosses,
    },
}

/// Everything that was measured, as it is read back from JSON: a calibration that was interrupted goes on with the very same
/// numbers.
#[derive(Debug)]
pub struct Journal {
    file: Option<(PathBuf, Appender)>,
    shape: Shape,
    measured: BTreeMap<usize, Measured>,
    heads: BTreeMap<usize, Vec<Vec<usize>>>,
    losses: BTreeMap<String, ExampleLosses>,
}

impl Journal {
    /// A new journal, or the one that is there.
    ///
    /// # Errors
    /// A journal that is there although it shall not be; one of another calibration, with the setting that differs; lines
    /// that are damaged or do not fit the calibration. A last line that was cut off is dropped.
    pub fn open(
        model: &LoadedModel,
        options: &CalibrateOptions,
        examples: &[Example],
    ) -> Result<Self> {
        let mut journal = Self {
            file: None,
            shape: Shape::new(options, model.model.config().layers.len(), examples),
            measured: BTreeMap::new(),
            heads: BTreeMap::new(),
            losses: BTreeMap::new(),
        };
        let Some(place) = &options.journal else {
            return Ok(journal);
        };
        let folder = &place.folder;
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join(NAME);
        let known = lines::read(&path)?;
        if !place.resume && !known.is_empty() {
            let found = "there from another run";
            let allowed = "a folder without it, or --resume to go on with it";
            return Err(Error::invalid(folder.display(), NAME, found, allowed));
        }
        let header = header(model, options, place, examples);
        if let Some(first) = known.first() {
            check_header(&path, first, &header)?;
        }
        journal.take_all(&path, &known)?;
        let mut appender = Appender::open(&path, &known)?;
        if known.is_empty() {
            appender.append([&header.to_string()])?;
        }
        for part in &place.parts {
            let path = part.join(NAME);
            let lines = lines::read(&path)?;
            let Some(first) = lines.first() else {
                let allowed = "what a part of the calibration has written";
                return Err(Error::invalid(part.display(), NAME, "not there", allowed));
            };
            check_header(&path, first, &header)?;
            let before = journal.measured.len();
            journal.take_all(&path, &lines)?;
            if journal.measured.len() > before {
                appender.append(lines.iter().skip(1))?;
            }
        }
        journal.file = Some((path, appender));
        Ok(journal)
    }

    /// The model's layers.
    pub fn layers(&self) -> usize {
        self.shape.layers
    }

    /// Whether an example has been measured.
    pub fn knows(&self, example: usize) -> bool {
        self.measured.contains_key(&example)
    }

    /// In the order of the examples.
    pub fn measured(&self) -> Vec<Measured> {
        self.measured.values().cloned().collect()
    }

    /// The counts of an example's heads, if they are known.
    pub fn heads(&self, example: usize) -> Option<&Vec<Vec<usize>>> {
        self.heads.get(&example)
    }

    /// # Errors
    /// A file that cannot be written.
    pub fn add_heads(&mut self, example: usize, counts: Vec<Vec<usize>>) -> Result<()> {
        self.add(&Record::Heads { example, counts })
    }

    /// The losses of a whole plan, if it has been evaluated.
    pub fn losses(&self, plan: &Plan) -> Option<&ExampleLosses> {
        self.losses.get(&plan.fingerprint())
    }

    /// # Errors
    /// Numbers that are not finite, a file that cannot be written.
    pub fn add_measured(&mut self, example: usize, signals: Measured) -> Result<()> {
        self.add(&Record::Measured { example, signals })
    }

    /// # Errors
    /// Numbers that are not finite, a file that cannot be written.
    pub fn add_losses(&mut self, plan: &Plan, losses: ExampleLosses) -> Result<()> {
        let plan = plan.fingerprint();
        self.add(&Record::Losses { plan, losses })
    }

    fn add(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record)
            .map_err(|e| Error::Failed(format!("a measurement as JSON: {e}")))?;
        // Before it is written: JSON has no infinity, and a file with it could not be read again.
        self.take(&line).map_err(|(found, _)| {
            Error::NotFinite(format!("a measurement cannot be written: it is {found}"))
        })?;
        match &mut self.file {
            Some((_, file)) => file.append([&line]),
            None => Ok(()),
        }
    }

    /// Takes all lines after the first in.
    ///
    /// # Errors
    /// A line that does not fit the calibration, by its number.
    fn take_all(&mut self, path: &Path, lines: &[String]) -> Result<()> {
        for (number, line) in (1usize..).zip(lines).skip(1) {
            self.take(line).map_err(|(found, allowed)| {
                let field = format!("line {number}");
                Error::invalid(path.display(), field, found, allowed)
            })?;
        }
        Ok(())
    }

    /// Takes a line in, or says what is wrong with it and what is allowed.
    fn take(&mut self, line: &str) -> std::result::Result<(), (String, String)> {
        let record: Record = serde_json::from_str(line).map_err(|e| {
            let found = format!("no measurement ({e})");
            (found, "lines that calibrate has written".to_string())
        })?;
        match record {
            Record::Measured { example, signals } => {
                self.shape.check_measured(example, &signals)?;
                self.measured.insert(example, signals);
            }
            Record::Heads { example, counts } => {
                self.shape.check_heads(example, &counts)?;
                self.heads.insert(example, counts);
            }
            Record::Losses { plan, losses } => {
                self.shape.check_losses(&losses)?;
                self.losses.insert(plan, losses);
            }
        }
        Ok(())
    }
}

/// What a journal of another time holds for a calibration of these examples: see [`crate::doors`].
#[cfg(feature = "testing")]
pub(crate) fn read(
    path: &Path,
    options: &CalibrateOptions,
    layers: usize,
    examples: &[Example],
) -> Result<Vec<Measured>> {
    let mut journal = Journal {
        file: None,
        shape: Shape::new(options, layers, examples),
        measured: BTreeMap::new(),
        heads: BTreeMap::new(),
        losses: BTreeMap::new(),
    };
    journal.take_all(path, &lines::read(path)?)?;
    Ok(journal.measured())
}

/// Everything that the numbers depend on: the first line. A resumed run must have the same.
fn header(
    model: &LoadedModel,
    options: &CalibrateOptions,
    place: &JournalOptions,
    examples: &[Example],
) -> Value {
    let candidates = options.candidates.iter();
    let keys: Vec<String> = candidates.map(|candidate| candidate.policy.key()).collect();
    let (text, evidence) = options.kinds();
    let mut header = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "fingerprint": model.model.config().fingerprint(),
        "weights": place.weights,
        "backend": place.backend,
        "dtype": model.model.storage().name(),
        "policies": keys,
        "phases": options.phases,
        "budget": options.budget,
        "likelihoods": options.likelihoods(),
        "examples": text.then_some(options.examples),
        "evidence": evidence.then_some(options.evidence),
        "length": options.length,
        "continuation": options.continuation,
        "question_after": options.question_after,
        "seed": options.seed,
        "tokens": digest_of(examples),
    });
    // Journals from before there were formats are of the cache's type.
    if options.kv != [None]
        && let Some(fields) = header.as_object_mut()
    {
        fields.insert("kv".into(), json!(options.kv));
    }
    if options.heads
        && let Some(fields) = header.as_object_mut()
    {
        fields.insert("heads".into(), json!(true));
    }
    header
}

/// Data that changed under the same name is noticed.
fn digest_of(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    for example in examples {
        for tokens in [&example.prompt, &example.continuation] {
            hash.update((tokens.len() as u64).to_le_bytes());
            for token in tokens {
                hash.update(token.to_le_bytes());
            }
        }
    }
    short(hash)
}

fn short(hash: Sha256) -> String {
    let digest = hash.finalize();
    let bytes = digest.iter().take(8);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn check_header(path: &Path, line: &str, wanted: &Value) -> Result<()> {
    let found: Value = serde_json::from_str(line).unwrap_or_default();
    // Numbers as they are after a round trip.
    let wanted: Value = serde_json::from_str(&wanted.to_string()).unwrap_or_default();
    let fields = [&wanted, &found].into_iter().filter_map(Value::as_object);
    let mut keys = fields.flat_map(|fields| fields.keys());
    match keys.find(|key| found.get(key.as_str()) != wanted.get(key.as_str())) {
        Some(key) => {
            let other = found.get(key.as_str()).unwrap_or(&Value::Null);
            let value = wanted.get(key.as_str()).unwrap_or(&Value::Null);
            let allowed = format!("{value}, or another folder");
            Err(Error::invalid(path.display(), key, other, allowed))
        }
        None => Ok(()),
    }
}
