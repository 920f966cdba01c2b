//! All files of a model at one commit, through a folder of their own until they are complete.

#[cfg(test)]
mod tests;

use super::Step;
use super::client::{Attempt, Client, Remote, Trouble};
use super::fetch::fetch;
use super::repo::{Repo, is_plain, segment};
use polykv_core::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
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
/// Says which commit the files beside it are of.
const RECORD: &str = ".commit";
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
    progress(Step::Downloading);
    let first = repo.file().unwrap_or("config.json");
    let remote = Remote {
        repo,
        pin: repo.revision(),
        file: first,
    };
    let commit = client.head(remote)?.commit;
    let folder = repo.folder(cache);
    let record = folder.join(match repo.file() {
        Some(file) => format!("{RECORD}.{file}"),
        None => RECORD.to_string(),
    });
    if let (Some(path), Some(commit)) = (repo.cached(cache), &commit)
        && fs::read_to_string(&record).is_ok_and(|known| known == *commit)
    {
        return Ok(path);
    }
    let staging = Staging::open(cache, repo, commit.as_deref())?;
    let pin = commit.as_deref().unwrap_or(repo.revision());
    let result = staging.fill(client, repo, pin, progress);
    if let Err(error) = result {
        staging.tidy();
        return Err(error.into());
    }
    staging.publish(&folder, repo, &record, commit.as_deref())?;
    Ok(match repo.file() {
        Some(file) => folder.join(file),
        None => folder,
    })
}

/// The hidden folder of one commit; nobody else writes there while this exists.
struct Staging {
    folder: PathBuf,
    /// Locked, and released when it is closed.
    _lock: File,
}

impl Staging {
    fn open(cache: &Path, repo: &Repo, commit: Option<&str>) -> Result<Self> {
        let home = repo.home(cache);
        let folder = home.join(format!(".part-{}", segment(repo.revision())));
        fs::create_dir_all(&home).map_err(|e| Error::io(&home, e))?;
        let path = home.join(".lock");
        let lock = File::create(&path).map_err(|e| Error::io(&path, e))?;
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
        let staging = Self {
            folder,
            _lock: lock,
        };
        fs::create_dir_all(&staging.folder).map_err(|e| Error::io(&staging.folder, e))?;
        let record = staging.folder.join(RECORD);
        let known = fs::read_to_string(&record).ok();
        if commit.is_none() || known.as_deref() != commit {
            // Whole files may be of another commit; parts have their etag.
            for (path, _) in files(&staging.folder)
                .iter()
                .filter(|(_, name)| !name.starts_with('.'))
            {
                remove(path)?;
            }
        }
        fs::write(&record, commit.unwrap_or_default()).map_err(|e| Error::io(&record, e))?;
        Ok(staging)
    }

    fn fill(
        &self,
        client: &Client,
        repo: &Repo,
        pin: &str,
        progress: &mut dyn FnMut(Step),
    ) -> Attempt<()> {
        let mut get = |file: &str, limit| {
            let remote = Remote { repo, pin, file };
            fetch(client, remote, limit, &self.folder, progress)
        };
        if let Some(file) = repo.file() {
            return get(file, MAX_WEIGHTS);
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
        for shard in shards(&place, &self.folder.join(INDEX))? {
            get(&shard, MAX_WEIGHTS)?;
        }
        Ok(())
    }

    /// What took long to fetch is kept for the next try; a few small files are not.
    fn tidy(&self) {
        let is_weights = |name: &str| {
            (name.contains(".safetensors") || name.contains(".gguf")) && !name.contains(INDEX)
        };
        let kept = files(&self.folder).iter().any(|(_, name)| is_weights(name));
        if !kept {
            // The error that led here says more than one about this would.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    /// Moves everything to where models are looked for, config.json last: with it, the model is there.
    fn publish(
        &self,
        folder: &Path,
        repo: &Repo,
        record: &Path,
        commit: Option<&str>,
    ) -> Result<()> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        if repo.file().is_none() {
            // An older commit's model goes; GGUF files are models of their own.
            remove(&folder.join("config.json"))?;
            let mut old = files(folder)
                .into_iter()
                .filter(|(_, name)| !name.ends_with(".gguf"));
            old.try_for_each(|(path, _)| remove(&path))?;
        }
        remove(record)?;
        let wanted = |name: &str| {
            repo.file()
                .map_or(!name.ends_with(".gguf"), |file| file == name)
        };
        let mut staged = files(&self.folder);
        staged.retain(|(_, name)| !name.starts_with('.') && wanted(name));
        staged.sort_by_key(|(_, name)| name == "config.json");
        for (path, name) in staged {
            let target = folder.join(name);
            fs::rename(&path, &target).map_err(|e| Error::io(&target, e))?;
        }
        if let Some(commit) = commit {
            fs::write(record, commit).map_err(|e| Error::io(record, e))?;
        }
        // Another file of this revision may wait there to be resumed.
        if files(&self.folder).iter().all(|(_, name)| name == RECORD) {
            let _ = fs::remove_dir_all(&self.folder);
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Files of a folder, with their names; none where it cannot be read.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_string());
    let paths = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file());
    paths
        .filter_map(|path| name(&path).map(|name| (path, name)))
        .collect()
}

/// The files that an index names.
fn shards(place: &str, index: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read(index).map_err(|e| Error::io(index, e))?;
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
