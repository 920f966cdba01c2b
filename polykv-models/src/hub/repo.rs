//! What ORG/NAME and ORG/NAME:FILE.gguf mean, and where their files lie in the cache.

use super::plain::{MAX_NAME, is_plain};
use super::record::{Record, refuse_link};
use crate::gguf::parts::{PartName, first_name};
use polykv_core::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};

/// The branch that repositories of the hub have.
const MAIN: &str = "main";
/// The record of a pull, in the folder that it is about.
pub(super) const RECORD: &str = ".pulled.json";

/// A model on the hub: a repository's safetensors model, or one GGUF file of it, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    org: String,
    name: String,
    file: Option<String>,
    revision: String,
}

impl Repo {
    /// Parses ORG/NAME or ORG/NAME:FILE.gguf, at the branch main; `None` if `spec` has another form. Names become parts
    /// of paths and addresses, so only letters, digits and a few signs are allowed. Any part of a split GGUF file stands
    /// for all of it.
    pub fn parse(spec: &str) -> Option<Self> {
        let (id, file) = match spec.split_once(':') {
            Some((id, file)) => (id, Some(file)),
            None => (spec, None),
        };
        let (org, name) = id.split_once('/')?;
        // The cache joins the two by --, as the hub does, which forbids it inside of names.
        let plain_name = |part| is_plain(part) && !str::contains(part, "--");
        let is_gguf = |file: &str| is_plain(file) && file.ends_with(".gguf");
        let known = plain_name(org)
            && plain_name(name)
            && !name.ends_with(".gguf")
            && file.is_none_or(is_gguf);
        known.then(|| Self {
            org: org.to_string(),
            name: name.to_string(),
            file: file.map(first_name),
            revision: MAIN.to_string(),
        })
    }

    /// The same model at another branch, tag or commit.
    ///
    /// # Errors
    /// A text that cannot be a revision.
    pub fn at(self, revision: &str) -> Result<Self> {
        match revision.len() <= MAX_NAME && revision.split('/').all(is_plain) {
            true => Ok(Self {
                revision: revision.to_string(),
                ..self
            }),
            false => Err(Error::invalid(
                format!("model {self}"),
                "revision",
                format!("{revision:?}"),
                format!(
                    "a branch, tag or commit: letters, digits and ._-/, at most {MAX_NAME} of them"
                ),
            )),
        }
    }

    /// The repository, ORG/NAME.
    pub fn id(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The GGUF file, if the model is one; of a split file the first part.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The files of a model that is a GGUF file: the file, or all of its parts.
    pub(super) fn files(&self) -> Vec<String> {
        let file = self.file.iter();
        file.flat_map(|file| match PartName::parse(file) {
            Some(part) => part.all().collect(),
            None => vec![file.clone()],
        })
        .collect()
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The folder of all revisions.
    pub(super) fn home(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}--{}", self.org, self.name))
    }

    /// The folder of the revision.
    pub(super) fn folder(&self, cache: &Path) -> PathBuf {
        self.home(cache).join(segment(&self.revision))
    }

    /// The path to load.
    pub(super) fn path(&self, cache: &Path) -> PathBuf {
        let folder = self.folder(cache);
        match &self.file {
            Some(file) => folder.join(file),
            None => folder,
        }
    }

    /// Where a pull writes down what it put into the folder: a model's files, or one GGUF file by itself.
    pub(super) fn record(&self, cache: &Path) -> PathBuf {
        let name = match &self.file {
            Some(file) => format!(".pulled.{file}.json"),
            None => RECORD.to_string(),
        };
        self.folder(cache).join(name)
    }

    /// The path to load, if a pull put it into the cache and all files are there at their sizes.
    ///
    /// # Errors
    /// A link in its place in the cache; a record that is none.
    pub(super) fn cached(&self, cache: &Path) -> Result<Option<PathBuf>> {
        let there = match self.read_record(cache)? {
            // What an earlier version pulled may be one part alone.
            Some(record)
                if self
                    .files()
                    .iter()
                    .all(|file| record.files.contains_key(file)) =>
            {
                record.is_there(&self.folder(cache))?
            }
            _ => false,
        };
        Ok(there.then(|| self.path(cache)))
    }

    /// Compares what is in the cache with the sums that its pull stored; what to load, or none if it is not there.
    ///
    /// # Errors
    /// What [`Repo::cached`] refuses; a file that is missing or differs.
    pub(crate) fn verify(&self, cache: &Path) -> Result<Option<PathBuf>> {
        let Some(record) = self.read_record(cache)?.filter(|record| record.complete) else {
            return Ok(None);
        };
        let advice = format!("remove the file, then run `{}`", self.command());
        record.verify(&self.folder(cache), &advice)?;
        Ok(Some(self.path(cache)))
    }

    /// # Errors
    /// A link on the way to it, below the folder `cache` itself.
    pub(super) fn read_record(&self, cache: &Path) -> Result<Option<Record>> {
        refuse_link(&self.home(cache))?;
        refuse_link(&self.folder(cache))?;
        Record::read(&self.record(cache))
    }

    /// The command that fetches the model into the cache.
    pub(super) fn command(&self) -> String {
        match self.revision.as_str() {
            MAIN => format!("polykv pull {self}"),
            revision => format!("polykv pull {self} --revision {revision}"),
        }
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

/// A revision as one part of a path or address. No revision holds a percent sign, so two never get the same.
pub(super) fn segment(revision: &str) -> String {
    revision.replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for spec in [
            "org/Some-Model-1.5B",
            "0-x/_a",
            "org/name:Model.Q4_K_M.gguf",
            "org/name:a--b.gguf",
        ] {
            assert_eq!(Repo::parse(spec).unwrap().to_string(), spec);
        }
        let long = format!("org/{}", "x".repeat(129));
        for spec in [
            "",
            "name",
            "/name",
            "org/",
            "org/..",
            "../name",
            "org/.name",
            "org/a..b",
            "org/a b",
            "org/a\\b",
            "org/näme",
            "org/name/more",
            "org--x/name",
            "-org/name",
            "org/name?x",
            "org/name%2F",
            "org/file.gguf",
            "org/name:",
            "org/name:model.safetensors",
            "org/name:../x.gguf",
            "org/name:a/x.gguf",
            "org/name:.gguf",
            "C:/name",
            &long,
        ] {
            assert_eq!(Repo::parse(spec), None, "{spec}");
        }
    }

    #[test]
    fn revisions_have_folders_of_their_own() {
        let cache = Path::new("/c");
        let repo = Repo::parse("org/name").unwrap();
        assert_eq!(repo.folder(cache), Path::new("/c/org--name/main"));
        assert_eq!(repo.command(), "polykv pull org/name");
        let request = repo.clone().at("refs/pr/1").unwrap();
        assert_eq!(
            request.folder(cache),
            Path::new("/c/org--name/refs%2Fpr%2F1")
        );
        assert_eq!(
            request.command(),
            "polykv pull org/name --revision refs/pr/1"
        );
        for wrong in ["", "..", "a/../b", "/a", "a/", "a%2Fb", "a b", ".part-x"] {
            let error = repo.clone().at(wrong).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(&format!("{wrong:?}")));
        }
    }

    #[test]
    fn what_a_pull_recorded_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let model = Repo::parse("org/name").unwrap();
        let file = Repo::parse("org/name:x.gguf").unwrap();
        let folder = model.folder(dir.path());
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["x.gguf", "config.json"] {
            std::fs::write(folder.join(name), "{}").unwrap();
        }
        // Files that no pull wrote.
        assert_eq!(model.cached(dir.path()).unwrap(), None);
        assert_eq!(file.cached(dir.path()).unwrap(), None);
        let record = |name: &str, complete| {
            let sum = "0".repeat(64);
            format!(
                r#"{{"commit": null, "complete": {complete}, "files": {{"{name}": {{"bytes": 2, "sha256": "{sum}"}}}}}}"#
            )
        };
        std::fs::write(file.record(dir.path()), record("x.gguf", true)).unwrap();
        assert_eq!(
            file.cached(dir.path()).unwrap(),
            Some(folder.join("x.gguf"))
        );
        std::fs::write(folder.join("x.gguf"), "{").unwrap();
        assert_eq!(file.cached(dir.path()).unwrap(), None, "it was cut");
        std::fs::write(model.record(dir.path()), record("config.json", false)).unwrap();
        assert_eq!(model.cached(dir.path()).unwrap(), None, "half of it");
        std::fs::write(model.record(dir.path()), record("config.json", true)).unwrap();
        assert_eq!(model.cached(dir.path()).unwrap(), Some(folder));
    }
}
