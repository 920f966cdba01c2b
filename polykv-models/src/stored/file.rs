//! A file of weights: opened once and read piece by piece. It is not mapped into memory, because a map of a file that
//! somebody shortens kills the process, and because two threads read blocks from a map at half the speed that they reach in
//! memory of its own (84 MB, best of 25).

use polykv_core::files::open_regular;
use polykv_core::{Error, Result};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How the small text begins that stands for a large file in a clone made without Git LFS.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Refuses content that is a Git LFS pointer.
///
/// # Errors
/// A pointer, with the way to the file itself.
pub(crate) fn refuse_pointer(place: &str, content: &[u8]) -> Result<()> {
    if !content.starts_with(LFS_POINTER) {
        return Ok(());
    }
    let allowed = "the file itself: run `git lfs pull` in its folder";
    Err(Error::invalid(
        place,
        "content",
        "a Git LFS pointer",
        allowed,
    ))
}

/// An open file of weights, which must stay as it is until they are read.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    place: String,
    file: Mutex<File>,
    opened: State,
}

/// What changes when somebody writes to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    size: u64,
    modified: Option<SystemTime>,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}

impl WeightFile {
    /// # Errors
    /// A file that is missing, no regular file, or a Git LFS pointer.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        let file = Self {
            path: path.to_owned(),
            place: path.display().to_string(),
            file: Mutex::new(file),
            opened: State::of(&metadata),
        };
        let start = LFS_POINTER.len().min(metadata.len() as usize);
        let start = file.bytes(0, start)?;
        refuse_pointer(&file.place, &start)?;
        Ok(file)
    }

    /// The file's path, as errors name it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.opened.size
    }

    /// So many bytes from `offset` on. The caller has checked that they lie inside the file.
    ///
    /// # Errors
    /// A file that was changed after it had been opened, or that cannot be read.
    pub fn bytes(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.append(offset, count, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends so many bytes from `offset` on. The caller has checked that they lie inside the file.
    ///
    /// # Errors
    /// A file that was changed after it had been opened, or that cannot be read.
    pub fn append(&self, offset: u64, count: usize, bytes: &mut Vec<u8>) -> Result<()> {
        bytes
            .try_reserve_exact(count)
            .map_err(|_| Error::io(&self.path, ErrorKind::OutOfMemory.into()))?;
        let mut file = self.lock();
        let read = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&mut *file).take(count as u64).read_to_end(bytes))
            .map_err(|e| Error::io(&self.path, e))?;
        self.check_unchanged(&file)?;
        match read == count {
            true => Ok(()),
            false => Err(Error::io(&self.path, ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The file from its start, for a header whose length is not known.
    pub fn reader(&self) -> impl Read + '_ {
        Reader { file: self, at: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        // Every use seeks first, so a position that a panic left behind does no harm.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_unchanged(&self, file: &File) -> Result<()> {
        let metadata = file.metadata().map_err(|e| Error::io(&self.path, e))?;
        let now = State::of(&metadata);
        if now == self.opened {
            return Ok(());
        }
        let found = format!("changed while it was read, {} bytes now", now.size);
        let allowed = format!("as it was opened, {} bytes", self.opened.size);
        Err(Error::invalid(&self.place, "file", found, allowed))
    }
}

struct Reader<'a> {
    file: &'a WeightFile,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut file = self.file.lock();
        file.seek(SeekFrom::Start(self.at))?;
        let count = file.read(buffer)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_file_that_changes_after_opening_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, [7; 100]).unwrap();
        let file = WeightFile::open(&path).unwrap();
        assert_eq!(file.bytes(90, 10).unwrap(), [7; 10]);

        let other = OpenOptions::new().write(true).open(&path).unwrap();
        other.set_len(50).unwrap();
        let message = file.bytes(90, 10).unwrap_err().to_string();
        assert!(message.starts_with(file.place()), "{message}");
        assert!(message.contains("changed while it was read, 50 bytes now"));
        assert!(message.contains("100 bytes"), "{message}");

        let file = WeightFile::open(&path).unwrap();
        other
            .set_modified(SystemTime::UNIX_EPOCH)
            .and_then(|()| other.sync_all())
            .unwrap();
        assert!(file.bytes(0, 10).unwrap_err().is_refusal());
    }

    #[test]
    fn a_pointer_and_what_is_no_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
        std::fs::write(&path, pointer).unwrap();
        let message = WeightFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("Git LFS pointer"), "{message}");
        assert!(message.contains("git lfs pull"), "{message}");
        assert!(WeightFile::open(dir.path()).unwrap_err().is_refusal());
    }
}
