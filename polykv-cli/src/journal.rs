//! Lines that are appended to a file one by one and survive an interruption at any point.

use polykv::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The whole lines of a file, none if there is no file. A last line that was cut off is left out.
///
/// # Errors
/// A file that cannot be read, and one that is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    let mut bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io(path, e)),
    };
    let whole = bytes.iter().rposition(|&byte| byte == b'\n');
    bytes.truncate(whole.map_or(0, |end| end + 1));
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid(path.display(), "content", "not UTF-8", "lines of JSON"))
}

/// The end of such a file.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Opens or makes the file, keeps its first `bytes` and drops the rest. Another program that has it open is
    /// noticed, where the file system can tell.
    ///
    /// # Errors
    /// A file that cannot be written, or that another run is writing.
    pub fn open(path: &Path, bytes: usize) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let options = OpenOptions::new().append(true).create(true).open(path);
        let file = options.map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let found = "being written by another run";
            let allowed = "one run at a time";
            return Err(Error::invalid(path.display(), "file", found, allowed));
        }
        file.set_len(bytes as u64).map_err(failed)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Appends whole lines in one write, so that an interruption leaves at most one piece.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn append(&mut self, lines: &str) -> Result<()> {
        self.file
            .write_all(lines.as_bytes())
            .map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_lines_are_dropped_and_writers_are_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        assert_eq!(read(&path).unwrap(), "");
        std::fs::write(
            &path,
            "one\ntwo\nthr\u{e9}".as_bytes().split_last().unwrap().1,
        )
        .unwrap();
        let text = read(&path).unwrap();
        assert_eq!(text, "one\ntwo\n");
        let mut lines = Appender::open(&path, text.len()).unwrap();
        lines.append("three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
        let refused = Appender::open(&path, 0).unwrap_err().to_string();
        assert!(refused.contains("another run"), "{refused}");
        drop(lines);
        assert!(Appender::open(&path, 0).is_ok());
    }
}
