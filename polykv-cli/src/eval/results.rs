//! The predictions of a run, in memory and, where a folder is given, in predictions.jsonl.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use super::record::{Record, Session};
use crate::output::{self, console, eval as report, report as page};
use polykv::models::eval::{Prediction, Summary};
use polykv::{Error, Result};
use polykv_core::files::lines::{self, Appender};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub const NAME: &str = "predictions.jsonl";
/// How often run.json is written during the work: what a killed session's record may lack.
const SAVE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Results {
    record: Record,
    folder: Option<(PathBuf, Appender)>,
    predictions: Vec<Prediction>,
    /// Samples of this shard that are still to be run.
    todo: Vec<usize>,
    begun: Instant,
    saved: Instant,
}

/// What predictions.jsonl holds: only whole samples count.
#[derive(Debug, Default)]
pub struct Known {
    pub predictions: Vec<Prediction>,
    /// The objects of each sample, one per plan, as they are.
    pub samples: Vec<(usize, Vec<String>)>,
}

impl Results {
    /// Results that go into a folder, or with `None` nowhere; of a folder that holds part of this very run, what is there
    /// is taken over.
    ///
    /// # Errors
    /// A folder of another run, with what differs; predictions that are not of this run; a folder that cannot be written.
    pub fn open(folder: Option<&Path>, record: Record) -> Result<Self> {
        let todo = record.shard.samples(record.identity.samples);
        let now = Instant::now();
        let mut results = Self {
            record,
            folder: None,
            predictions: Vec::new(),
            todo,
            begun: now,
            saved: now,
        };
        if let Some(folder) = folder {
            results.take_over(folder)?;
        }
        Ok(results)
    }

    fn take_over(&mut self, folder: &Path) -> Result<()> {
        let old = Record::read(folder)?;
        let path = folder.join(NAME);
        match old {
            Some(old) => {
                self.record.check_same(folder, &old)?;
                if old.shard != self.record.shard {
                    let allowed = format!("{}, or another folder", self.record.shard);
                    return Err(Error::invalid(
                        folder.display(),
                        "shard",
                        old.shard,
                        allowed,
                    ));
                }
                self.record.commands = old.commands;
                self.record.sessions = old.sessions;
            }
            None if path.metadata().is_ok_and(|file| file.len() > 0) => {
                let found = "there without the run.json of its run";
                return Err(Error::invalid(
                    folder.display(),
                    NAME,
                    found,
                    "an empty folder",
                ));
            }
            None => {}
        }
        let known = Known::read(folder, &self.record)?;
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let lines = Appender::open(&path, known.samples.iter().flat_map(|(_, lines)| lines))?;
        self.todo.drain(..known.samples.len());
        self.predictions = known.predictions;
        self.record.write(folder)?;
        self.folder = Some((folder.to_path_buf(), lines));
        Ok(())
    }

    pub fn todo(&self) -> Vec<usize> {
        self.todo.clone()
    }

    pub fn predictions(&self) -> &[Prediction] {
        &self.predictions
    }

    /// The start of a session, if there is anything to do.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn begin(&mut self) -> Result<()> {
        if self.todo.is_empty() {
            return Ok(());
        }
        self.begun = Instant::now();
        self.saved = self.begun;
        let started = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
        self.record.sessions.push(Session {
            started: started
                .and_then(|now| now.format(&Rfc3339).ok())
                .unwrap_or_default(),
            seconds: 0.0,
            samples: 0,
            prompt_tokens: 0,
            new_tokens: 0,
        });
        match &self.folder {
            Some((folder, _)) => self.record.write(folder),
            None => Ok(()),
        }
    }

    /// Writes a sample's predictions and takes them in as they will be read again: a resumed run has the very same numbers.
    ///
    /// # Errors
    /// A file that cannot be written, a score that is not a finite number.
    pub fn add(&mut self, predictions: &[Prediction]) -> Result<()> {
        let mut lines = Vec::new();
        for one in predictions {
            let line = serde_json::to_string(one)
                .map_err(|e| Error::Failed(format!("a prediction as JSON: {e}")))?;
            let reread = serde_json::from_str(&line).map_err(|e| {
                Error::Failed(format!(
                    "{}, {}: scores that cannot be written ({e})",
                    one.id, one.plan
                ))
            })?;
            self.predictions.push(reread);
            lines.push(line);
        }
        if let Some(session) = self.record.sessions.last_mut() {
            session.seconds = round(self.begun.elapsed().as_secs_f64());
            let prompt_tokens = predictions.first().map_or(0, |one| one.prompt_tokens);
            let new_tokens = predictions.iter().map(|one| one.new_tokens).sum();
            session.samples = session.samples.saturating_add(1);
            session.prompt_tokens = session.prompt_tokens.saturating_add(prompt_tokens);
            session.new_tokens = session.new_tokens.saturating_add(new_tokens);
        }
        if let Some((folder, file)) = &mut self.folder {
            file.append(&lines)?;
            if self.saved.elapsed() > SAVE {
                self.record.write(folder)?;
                self.saved = Instant::now();
            }
        }
        Ok(())
    }

    /// Sums up, writes what belongs to the folder, and prints.
    ///
    /// # Errors
    /// A folder or a standard output that cannot be written.
    pub fn finish(self, json: bool) -> anyhow::Result<()> {
        let folder = self.folder.as_ref().map(|(folder, _)| folder.as_path());
        finish(&self.record, &self.predictions, folder, json)
    }
}

/// Prints the summary of a run's predictions. With a folder it also writes run.json, metrics.json and report.html there.
///
/// # Errors
/// Files that cannot be written.
pub fn finish(
    record: &Record,
    predictions: &[Prediction],
    folder: Option<&Path>,
    json: bool,
) -> anyhow::Result<()> {
    let summary = Summary::new(
        &record.identity.task,
        &record.sets,
        &record.plans(),
        predictions,
    );
    let metrics = serde_json::to_string(&report::Metrics::new(record, &summary))?;
    if let Some(folder) = folder {
        record.write(folder)?;
        output::write_whole(&folder.join("metrics.json"), format!("{metrics}\n"))?;
        output::write_whole(&folder.join("report.html"), page::page(record, &summary))?;
    }
    let shown = match json {
        true => metrics,
        false => report::table(record, &summary),
    };
    console::print(&shown)
}

impl Known {
    /// Reads the predictions of a folder, which must be those of the first samples of a run's shard, in this order.
    ///
    /// # Errors
    /// Lines that are not, or that are damaged, with their number. The last sample may be cut off anywhere and is left out
    /// then.
    pub fn read(folder: &Path, record: &Record) -> Result<Self> {
        let path = folder.join(NAME);
        let plans = &record.identity.plans;
        let refuse = |line: usize, found: String, allowed: &str| {
            let place = path.display();
            Error::invalid(place, format!("line {line}"), found, allowed)
        };
        let lines = lines::read(&path)?;
        let mut known = Self::default();
        for (group, of_sample) in lines.chunks(plans.len()).enumerate() {
            let sample = record.shard.nth(group, record.identity.samples);
            let first = group.saturating_mul(plans.len()).saturating_add(1);
            let mut read = Vec::new();
            for ((number, line), plan) in (first..).zip(of_sample).zip(plans) {
                let one: Prediction = serde_json::from_str(line).map_err(|e| {
                    let found = format!("no prediction ({e})");
                    refuse(number, found, "lines that eval has written")
                })?;
                if sample != Some(one.sample) || plan.info.name != one.plan {
                    let found = format!("sample {} ({}) under '{}'", one.sample, one.id, one.plan);
                    let allowed = "each sample of the run once, under each plan, in order";
                    return Err(refuse(number, found, allowed));
                }
                read.push(one);
            }
            match sample {
                Some(sample) if read.len() == plans.len() => {
                    known.samples.push((sample, of_sample.to_vec()));
                    known.predictions.extend(read);
                }
                _ => break,
            }
        }
        Ok(known)
    }
}

/// To milliseconds.
fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}
