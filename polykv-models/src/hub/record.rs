//! What a pull wrote into a folder of the cache. Nothing else there is overwritten or removed, and later these sizes and
//! SHA-256 sums tell whether it is still all there.

use super::plain::is_plain;
#[cfg(feature = "hub")]
use polykv_core::files::write_whole;
use polykv_core::files::{open_regular, read_capped};
use polykv_core::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

const MAX_BYTES: u64 = 4 << 20;

/// One file of a pull.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub bytes: u64,
    /// 64 hexadecimal digits, in lower case.
    pub sha256: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// None where the hub named no commit.
    pub commit: Option<String>,
    /// False while files are being moved: then some of those listed may not be there yet.
    pub complete: bool,
    pub files: BTreeMap<String, Entry>,
}

impl Record {
    /// None where nothing was pulled.
    ///
    /// # Errors
    /// A file that is no record, or one that names files outside of its folder.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        refuse_link(path)?;
        let text = match read_capped(path, MAX_BYTES) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            text => text?,
        };
        let wrong = |found: &dyn std::fmt::Display| {
            let allowed = "a record of `polykv pull` (remove it and its folder, then pull again)";
            Error::invalid(path.display(), "content", found, allowed)
        };
        let record: Self = serde_json::from_slice(&text).map_err(|e| wrong(&e))?;
        let hex = |text: &str| {
            text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
        };
        for (name, entry) in &record.files {
            if !is_plain(name) || !hex(&entry.sha256) {
                return Err(wrong(&format!("file {name:?}, sha256 {:?}", entry.sha256)));
            }
        }
        Ok(Some(record))
    }

    /// # Errors
    /// A folder that cannot be written.
    #[cfg(feature = "hub")]
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        refuse_link(path)?;
        let json = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Failed(format!("{}: {e}", path.display())))?;
        write_whole(path, json + "\n")
    }

    /// Whether every file is in `folder` at its size.
    ///
    /// # Errors
    /// A link in place of a file.
    pub(super) fn is_there(&self, folder: &Path) -> Result<bool> {
        let mut there = self.complete && !self.files.is_empty();
        for (name, entry) in &self.files {
            there &= size(&folder.join(name))? == Some(entry.bytes);
        }
        Ok(there)
    }

    /// # Errors
    /// The first file that is missing or has another size or sum.
    pub(super) fn verify(&self, folder: &Path, advice: &str) -> Result<()> {
        for (name, entry) in &self.files {
            verify(&folder.join(name), entry, advice)?;
        }
        Ok(())
    }
}

/// Reads all of a file and compares it with what was stored; `advice` says what to do where they differ.
///
/// # Errors
/// A file that is missing, a link, or has another size or sum.
pub(super) fn verify(path: &Path, entry: &Entry, advice: &str) -> Result<()> {
    let wrong = |field, found: String, allowed: String| {
        let allowed = format!("{allowed}, as it was pulled ({advice})");
        Err(Error::invalid(path.display(), field, found, allowed))
    };
    let expected = format!("{} bytes", entry.bytes);
    match size(path)? {
        None => return wrong("file", "missing".into(), expected),
        Some(bytes) if bytes != entry.bytes => {
            return wrong("size", format!("{bytes} bytes"), expected);
        }
        Some(_) => {}
    }
    let mut hash = Sha256::new();
    io::copy(&mut open_regular(path)?, &mut hash).map_err(|e| Error::io(path, e))?;
    match hex(hash) {
        found if found == entry.sha256 => Ok(()),
        found => wrong("sha256", found, entry.sha256.clone()),
    }
}

/// Of a regular file; none where nothing is.
///
/// # Errors
/// Anything else at that place.
pub(super) fn size(path: &Path) -> Result<Option<u64>> {
    refuse_link(path)?;
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => Ok(Some(found.len())),
        Ok(_) => {
            let allowed = "a regular file, as a pull writes it";
            Err(Error::invalid(path.display(), "type", "no file", allowed))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// A link in the store leads out of it, and whoever put it there was not a pull.
///
/// # Errors
/// A link at `path`.
pub(super) fn refuse_link(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => {
            let allowed =
                "no links inside of the cache of models (remove it; the cache itself may be one)";
            Err(Error::invalid(
                path.display(),
                "type",
                "a symbolic link",
                allowed,
            ))
        }
        _ => Ok(()),
    }
}

pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        assert!(Record::read(&path).unwrap().is_none());
        let sum = "0".repeat(64);
        for text in [
            String::new(),
            "[]".to_string(),
            r#"{"commit": null, "complete": true, "files": {}, "more": 1}"#.to_string(),
            format!(
                r#"{{"commit": null, "complete": true, "files": {{"../x": {{"bytes": 1, "sha256": "{sum}"}}}}}}"#
            ),
            r#"{"commit": null, "complete": true, "files": {"x": {"bytes": 1, "sha256": "0"}}}"#
                .to_string(),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Record::read(&path).unwrap_err();
            assert!(
                error.is_refusal() && error.to_string().contains("record.json"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn what_is_there_is_compared() {
        let dir = tempfile::tempdir().unwrap();
        let mut hash = Sha256::new();
        hash.update(b"abc");
        let entry = Entry {
            bytes: 3,
            sha256: hex(hash),
        };
        let record = Record {
            commit: None,
            complete: true,
            files: [("x".to_string(), entry)].into(),
        };
        let refused = |part: &str| {
            let message = record
                .verify(dir.path(), "pull it")
                .unwrap_err()
                .to_string();
            assert!(
                message.contains(part) && message.contains("pull it"),
                "{message}"
            );
        };
        refused("missing");
        let path = dir.path().join("x");
        std::fs::write(&path, "ab").unwrap();
        refused("size is 2 bytes");
        assert!(!record.is_there(dir.path()).unwrap());
        std::fs::write(&path, "abd").unwrap();
        refused("sha256");
        assert!(record.is_there(dir.path()).unwrap());
        std::fs::write(&path, "abc").unwrap();
        record.verify(dir.path(), "").unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::os::unix::fs::symlink("/nonexistent", &path).unwrap();
        for error in [size(&path).unwrap_err(), Record::read(&path).unwrap_err()] {
            assert!(error.to_string().contains("a symbolic link"), "{error}");
        }
    }
}
