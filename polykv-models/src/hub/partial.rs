//! The part of a file that has come so far. Its name holds the etag, so that it is continued with the same contents.

use super::record::size;
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

    /// What an earlier try left of `file`: one part with something in it, while others are removed.
    ///
    /// # Errors
    /// A folder that cannot be read; something else than a file under the name of a part.
    pub(super) fn find(folder: &Path, file: &str) -> Result<Option<Self>> {
        let start = format!(".{file}.");
        let mut first = None;
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
            let found = Self {
                bytes: size(&entry.path())?.unwrap_or_default(),
                ..Self::new(folder, file, Some(etag))
            };
            match found.bytes > 0 && !etag.is_empty() && first.is_none() {
                true => first = Some(found),
                false => found.remove()?,
            }
        }
        Ok(first)
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

    /// For writing at the end. A new part is a new file: nothing that lies at its name is followed or kept.
    pub(super) fn open(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        match self.bytes {
            0 => {
                self.remove()?;
                options.write(true).create_new(true)
            }
            _ => options.append(true),
        };
        options.open(&self.path).map_err(|e| self.failed(e))
    }

    /// The error of a write, named after the file to be, since the part does not stay.
    pub(super) fn failed(&self, source: io::Error) -> Error {
        Error::io(&self.whole, source)
    }

    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&self.path, e)),
            _ => Ok(()),
        }
    }

    /// Gives the whole file its name.
    pub(super) fn finish(&self) -> Result<()> {
        std::fs::rename(&self.path, &self.whole).map_err(|e| self.failed(e))
    }

    /// Whether a file of this name is the part of some file.
    pub(super) fn is_one(name: &str) -> bool {
        name.starts_with('.') && name.ends_with(SUFFIX)
    }
}
