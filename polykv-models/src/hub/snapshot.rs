//! All files of a model at one commit, through a folder of their own until they are complete.

#[cfg(test)]
mod tests;

use super::Step;
use super::client::{Attempt, Client, Remote, Trouble};
use super::fetch::fetch;
use super::partial::Partial;
use super::plain::is_plain;
use super::record::{Record, refuse_link, size};
use super::repo::{RECORD, Repo, segment};
use polykv_core::files::{read_capped, sync_folder};
use polykv_core::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Far above what files of each kind measure, far below what fills a disk by mistake.
const MAX_TEXT: u64 = 64 << 20;
const MAX_TOKENIZER: u64 = 256 << 20;
const MAX_WEIGHTS: u64 = 512 << 30;
const MAX_SHARDS: usize = 2048;

const REQUIRED: [(&str, u64); 2] = [("config.json", MAX_TEXT), ("tokenizer.json", MAX_TOKENIZER)];
const OPTIONAL: [&str; 3] = [
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Fetches what `repo` names, unless the cache holds it at the commit where the hub is now; the path to load.
///
/// # Errors
/// What the hub refuses; files that are not as announced; another pull of the same repository at the same time.
/// Under its final name a model is either whole or not there.
pub(super) fn pull(
    client: &Client,
    cache: &Path,
    repo: &Repo,
    progress: &mut dyn FnMut(Step),
) -> Result<PathBuf> {
    // Before anything is asked for: what would be refused at the end of a long download.
    let old = repo.read_record(cache)?.unwrap_or_default();
    let first = repo.file().unwrap_or("config.json");
    let files = repo.files();
    let folder = repo.folder(cache);
    for name in std::iter::once(first).chain(files.iter().map(String::as_str)) {
        refuse_foreign(&folder, name, &old)?;
    }
    let cached = repo.cached(cache)?;
    progress(Step::Downloading);
    let remote = Remote {
        repo,
        pin: repo.revision(),
        file: first,
    };
    let commit = client.head(remote)?.commit;
    if let Some(path) = cached
        && commit.is_some()
        && old.commit == commit
    {
        return Ok(path);
    }
    let mut staging = Staging::open(cache, repo, commit.as_deref())?;
    let pin = commit.as_deref().unwrap_or(repo.revision());
    let result = staging.fill(client, repo, pin, progress);
    if let Err(error) = result {
        staging.tidy();
        return Err(error.into());
    }
    staging.publish(cache, repo)?;
    Ok(repo.path(cache))
}

/// The hidden folder of one commit; nobody else writes there while this exists.
struct Staging {
    folder: PathBuf,
    /// The whole files of this commit that are here.
    record: Record,
    /// Locked, and released when it is closed.
    _lock: File,
}

impl Staging {
    fn open(cache: &Path, repo: &Repo, commit: Option<&str>) -> Result<Self> {
        let home = repo.home(cache);
        let folder = home.join(format!(".part-{}", segment(repo.revision())));
        refuse_link(&home)?;
        refuse_link(&folder)?;
        fs::create_dir_all(&home).map_err(|e| Error::io(&home, e))?;
        let path = home.join(".lock");
        // Nothing but a file is opened for writing, and what it holds is left as it is.
        size(&path)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|e| Error::io(&path, e))?;
        // File systems without locks are left to the user's care.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            let found = "under way in another process";
            let allowed = "one at a time; wait for the other";
            return Err(Error::invalid(
                format!("model {repo}"),
                "pull",
                found,
                allowed,
            ));
        }
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let mut record = Record::read(&folder.join(RECORD))?.unwrap_or_default();
        if commit.is_none() || record.commit.as_deref() != commit {
            // Whole files may be of another commit; parts have their etag.
            for name in record.files.keys() {
                remove(&folder.join(name))?;
            }
            record.files.clear();
        }
        record.commit = commit.map(str::to_string);
        let staging = Self {
            folder,
            record,
            _lock: lock,
        };
        staging.write()?;
        Ok(staging)
    }

    fn write(&self) -> Result<()> {
        self.record.write(&self.folder.join(RECORD))
    }

    /// Fetches one file, unless it is here already.
    fn get(
        &mut self,
        client: &Client,
        remote: Remote<'_>,
        limit: u64,
        progress: &mut dyn FnMut(Step),
    ) -> Attempt<()> {
        let here = size(&self.folder.join(remote.file))?;
        let known = self.record.files.get(remote.file);
        if known.is_some_and(|entry| Some(entry.bytes) == here) {
            return Ok(());
        }
        let entry = fetch(client, remote, limit, &self.folder, progress)?;
        self.record.files.insert(remote.file.to_string(), entry);
        Ok(self.write()?)
    }

    fn fill(
        &mut self,
        client: &Client,
        repo: &Repo,
        pin: &str,
        progress: &mut dyn FnMut(Step),
    ) -> Attempt<()> {
        let index = self.folder.join(INDEX);
        let mut get = |file: &str, limit| {
            let remote = Remote { repo, pin, file };
            self.get(client, remote, limit, progress)
        };
        let files = repo.files();
        if !files.is_empty() {
            return files.iter().try_for_each(|file| get(file, MAX_WEIGHTS));
        }
        for (file, limit) in REQUIRED {
            get(file, limit)?;
        }
        for file in OPTIONAL {
            match get(file, MAX_TEXT) {
                Ok(()) | Err(Trouble::Missing(_)) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        match get(WEIGHTS, MAX_WEIGHTS) {
            Err(Trouble::Missing(_)) => {}
            result => return result,
        }
        match get(INDEX, MAX_TEXT) {
            Err(Trouble::Missing(_)) => {
                let allowed = format!(
                    "{WEIGHTS} or {INDEX} (for one GGUF file: {}:FILE.gguf)",
                    repo.id()
                );
                let place = format!("model {}, revision {}", repo.id(), repo.revision());
                return Err(Error::invalid(place, "weights", "missing", allowed).into());
            }
            result => result?,
        }
        let place = Remote {
            repo,
            pin,
            file: INDEX,
        }
        .place();
        for shard in shards(&place, &index)? {
            get(&shard, MAX_WEIGHTS)?;
        }
        Ok(())
    }

    /// What took long to fetch is kept for the next try; a few small files are not.
    fn tidy(&self) {
        let is_weights = |name: &str| {
            (name.contains(".safetensors") || name.contains(".gguf")) && !name.contains(INDEX)
        };
        let parts = self.parts();
        let mut names = parts.iter().chain(self.record.files.keys());
        if names.any(|name| is_weights(name)) {
            return;
        }
        // The error that led here says more than one about this would.
        for name in parts.iter().chain(self.record.files.keys()) {
            let _ = remove(&self.folder.join(name));
        }
        self.close();
    }

    /// Names of the parts of files here.
    fn parts(&self) -> Vec<String> {
        let mut names = names(&self.folder);
        names.retain(|name| Partial::is_one(name));
        names
    }

    /// Removes the record and the folder, unless somebody else put something into it.
    fn close(&self) {
        let _ = remove(&self.folder.join(RECORD));
        let _ = fs::remove_dir(&self.folder);
    }

    /// Moves everything to where models are looked for. The record there says beforehand which files are going to be
    /// the pull's own, and only at the end that they are whole.
    fn publish(mut self, cache: &Path, repo: &Repo) -> Result<()> {
        let (folder, path) = (repo.folder(cache), repo.record(cache));
        let files = repo.files();
        let wanted = |name: &str| match files.is_empty() {
            true => !name.ends_with(".gguf"),
            false => files.iter().any(|file| file == name),
        };
        let mut new = self.record.files.clone();
        new.retain(|name, _| wanted(name));
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let mut record = repo.read_record(cache)?.unwrap_or_default();
        for name in new.keys() {
            refuse_foreign(&folder, name, &record)?;
        }
        // GGUF files are models of their own.
        record.files.retain(|name, _| wanted(name));
        let old: Vec<_> = record.files.keys().cloned().collect();
        record.complete = false;
        record.files.extend(new.clone());
        record.write(&path)?;
        for name in old.iter().filter(|name| !new.contains_key(*name)) {
            remove(&folder.join(name))?;
        }
        for name in new.keys() {
            let target = folder.join(name);
            fs::rename(self.folder.join(name), &target).map_err(|e| Error::io(&target, e))?;
        }
        sync_folder(&folder);
        record.files = new;
        record.commit = self.record.commit.clone();
        record.complete = true;
        record.write(&path)?;
        // Another file of this revision may wait here to be resumed.
        self.record.files.retain(|name, _| !wanted(name));
        if self.record.files.is_empty() && self.parts().is_empty() {
            self.close();
            return Ok(());
        }
        self.write()
    }
}

/// # Errors
/// Something at the place of a model's file that is no file, or that no pull wrote.
fn refuse_foreign(folder: &Path, name: &str, record: &Record) -> Result<()> {
    let path = folder.join(name);
    if size(&path)?.is_none() || record.files.contains_key(name) {
        return Ok(());
    }
    let found = "a file that no pull wrote";
    let allowed = "no such file (move it away, or give its folder as the model)";
    Err(Error::invalid(path.display(), "output", found, allowed))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Names in a folder; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The files that an index names.
fn shards(place: &str, index: &Path) -> Result<BTreeSet<String>> {
    let text = read_capped(index, MAX_TEXT)?;
    let json: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(place, "content", e, "JSON with a weight_map"))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.filter(|map| !map.is_empty()).ok_or_else(|| {
        Error::invalid(
            place,
            "weight_map",
            "missing or empty",
            "tensors and their files",
        )
    })?;
    let mut shards = BTreeSet::new();
    for (tensor, file) in map {
        let name = file
            .as_str()
            .filter(|n| is_plain(n) && n.ends_with(".safetensors"));
        let Some(name) = name else {
            let allowed = "the plain name of a .safetensors file";
            return Err(Error::invalid(
                place,
                format!("file of tensor {tensor}"),
                file,
                allowed,
            ));
        };
        shards.insert(name.to_string());
    }
    match shards.len() <= MAX_SHARDS {
        true => Ok(shards),
        false => Err(Error::invalid(
            place,
            "number of files",
            shards.len(),
            format!("at most {MAX_SHARDS}"),
        )),
    }
}
