//! `polykv eval merge`: shards that together are a run.

use super::record::{self, Record};
use super::results::{self, Known};
use crate::args::{MergeArgs, Shard};
use crate::output;
use polykv::models::eval::Prediction;
use polykv::{Error, Result};
use polykv_core::files::lines::seal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Missing shards that an error names, at most.
const MOST_NAMED: usize = 8;

/// The records of all shards of one run, in the order of their folders.
pub struct Shards<'a>(Vec<(&'a PathBuf, Record)>);

/// A run put together.
pub struct Whole {
    pub record: Record,
    pub predictions: Vec<Prediction>,
    /// What predictions.jsonl will hold.
    pub lines: String,
}

/// # Errors
/// Folders that are not the shards of one run; samples that are missing or there twice, by name.
pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    output::check_folder(&args.out)?;
    let shards = read(&args.shards)?;
    if Record::read(&args.out)?.is_some() || args.out.join(results::NAME).exists() {
        let found = "there from another run";
        let allowed = "a new folder";
        return Err(Error::invalid(args.out.display(), results::NAME, found, allowed).into());
    }
    let Whole {
        record,
        predictions,
        lines,
    } = shards.whole()?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    record.write(&args.out)?;
    output::write_whole(&args.out.join(results::NAME), lines)?;
    results::finish(&record, &predictions, Some(&args.out), args.json)
}

/// # Errors
/// No folder, or folders that are not the shards of one run.
pub fn read(folders: &[PathBuf]) -> Result<Shards<'_>> {
    let mut shards = Vec::new();
    for folder in folders {
        let record = Record::read(folder)?.ok_or_else(|| {
            let allowed = "a folder that polykv eval --out has written";
            Error::invalid(folder.display(), record::NAME, "missing", allowed)
        })?;
        shards.push((folder, record));
    }
    check(&shards)?;
    Ok(Shards(shards))
}

impl Shards<'_> {
    /// # Errors
    /// Predictions that are not those of the shards; samples that are missing, by name.
    pub fn whole(self) -> Result<Whole> {
        let shards = self.0;
        let first = shards[0].1.clone();
        let count = first.shard.count;
        let mut samples: BTreeMap<usize, (Vec<String>, Vec<Prediction>)> = BTreeMap::new();
        for (folder, record) in &shards {
            let known = Known::read(folder, record)?;
            let plans = first.identity.plans.len();
            let predictions = known.predictions.chunks(plans).map(<[Prediction]>::to_vec);
            for ((sample, lines), predictions) in known.samples.into_iter().zip(predictions) {
                samples.insert(sample, (lines, predictions));
            }
        }
        let missing = (0..first.identity.samples).find(|sample| !samples.contains_key(sample));
        if let Some(sample) = missing {
            let shard = Shard::of(sample, count);
            let folder = shards.iter().find(|(_, record)| record.shard == shard);
            let folder = folder.map_or(Path::new("shards"), |(folder, _)| folder.as_path());
            let field = format!("sample {sample} of {}", first.identity.samples);
            let found = format!("missing from shard {shard}");
            let allowed = "finished shards: the same command again goes on";
            return Err(Error::invalid(folder.display(), field, found, allowed));
        }

        let mut whole = first;
        whole.shard = Shard::default();
        whole.commands = shards
            .iter()
            .flat_map(|(_, record)| record.commands.clone())
            .collect();
        whole.commands.push(record::command());
        whole.sessions = shards
            .into_iter()
            .flat_map(|(_, record)| record.sessions)
            .collect();
        let lines = samples.values().flat_map(|(lines, _)| lines);
        let lines = lines.map(|line| seal(line)).collect();
        let predictions = samples.into_values();
        Ok(Whole {
            record: whole,
            predictions: predictions
                .flat_map(|(_, predictions)| predictions)
                .collect(),
            lines,
        })
    }
}

/// Whether these are the shards of one run, each once.
fn check(shards: &[(&PathBuf, Record)]) -> Result<()> {
    let Some((first_folder, first)) = shards.first() else {
        return Err(Error::invalid("merge", "shards", 0, "at least one folder"));
    };
    for (index, (folder, record)) in shards.iter().enumerate() {
        first.check_same(folder, record)?;
        if record.identity.plans != first.identity.plans {
            let found = "with plans that differ from their hashes' in another shard";
            let allowed = format!("those of {}", first_folder.display());
            let place = folder.join(record::NAME);
            return Err(Error::invalid(place.display(), "plans", found, allowed));
        }
        if record.shard.count != first.shard.count {
            let found = format!(
                "{}, beside {} in {}",
                record.shard,
                first.shard,
                first_folder.display()
            );
            let allowed = "shards of one number";
            return Err(Error::invalid(folder.display(), "shard", found, allowed));
        }
        if let Some((other, _)) = shards[..index]
            .iter()
            .find(|(_, other)| other.shard == record.shard)
        {
            let found = format!("{}, as that of {}", record.shard, other.display());
            return Err(Error::invalid(
                folder.display(),
                "shard",
                found,
                "each shard once",
            ));
        }
    }
    let count = first.shard.count;
    let missing: Vec<String> = (0..count)
        .map(|index| Shard { index, count })
        .filter(|shard| !shards.iter().any(|(_, record)| record.shard == *shard))
        .map(|shard| shard.to_string())
        .take(MOST_NAMED)
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => {
            let allowed = format!("all {count} shards of the run");
            Err(Error::invalid(
                "merge",
                "shards",
                format!("without {}", missing.join(", ")),
                allowed,
            ))
        }
    }
}
