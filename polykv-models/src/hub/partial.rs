//! The part of a file that has come so far. Its name holds the etag, so that it is continued with the same contents.

use polykv_core::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".part";

/// `.FILE.ETAG.part`, beside the file to be.
#[derive(Debug)]
pub(super) struct Partial {
    pub path: PathBuf,
    /// The name of the whole file.
    whole: PathBuf,
    /// Empty where the server gave none: nothing can be added to such a part.
    pub etag: String,
    pub bytes: u64,
}

impl Partial {
    /// A part with nothing in it.
    pub(super) fn new(folder: &Path, file: &str, etag: Option<&str>) -> Self {
        let etag = etag.unwrap_or_default();
        Self {
            path: folder.join(format!(".{file}.{etag}{SUFFIX}")),
            whole: folder.join(file),
            etag: etag.to_string(),
            bytes: 0,
        }
    }

    /// What an earlier try left of `file`.
    pub(super) fn find(folder: &Path, file: &str) -> Result<Option<Self>> {
        let start = format!(".{file}.");
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
            let entry = entry.map_err(|e| Error::io(folder, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let etag = name
                .strip_prefix(&start)
                .and_then(|n| n.strip_suffix(SUFFIX));
            // An etag has no dots, so that x.gguf does not take the part of x.gguf.y.gguf.
            let Some(etag) = etag.filter(|etag| !etag.contains('.')) else {
                continue;
            };
            let bytes = entry
                .metadata()
                .map_err(|e| Error::io(&entry.path(), e))?
                .len();
            let found = Self {
                bytes,
                ..Self::new(folder, file, Some(etag))
            };
            match bytes > 0 && !etag.is_empty() {
                true => return Ok(Some(found)),
                false => found.remove()?,
            }
        }
        Ok(None)
    }

    /// The state of a hash after the bytes that are here.
    pub(super) fn hash(&self) -> Result<Sha256> {
        let mut hash = Sha256::new();
        if self.bytes > 0 {
            let mut file = File::open(&self.path).map_err(|e| Error::io(&self.path, e))?;
            io::copy(&mut file, &mut hash).map_err(|e| Error::io(&self.path, e))?;
        }
        Ok(hash)
    }

    /// For writing at the end.
    pub(super) fn open(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .map_err(|e| Error::io(&self.path, e))
    }

    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&self.path, e)),
            _ => Ok(()),
        }
    }

    /// Gives the whole file its name.
    pub(super) fn finish(&self) -> Result<()> {
        std::fs::rename(&self.path, &self.whole).map_err(|e| Error::io(&self.whole, e))
    }
}
