//! Files of JSON objects, one per line, that are appended one by one and survive an interruption at any point. Every line
//! ends with a checksum, so that a damaged line is refused instead of changing results:
//! `{"a":1,"checksum":"015abd7f5cc57a2d"}`, of which the checksum is the first 8 bytes of SHA-256, in hexadecimal digits, of
//! the line without it, `{"a":1}`. A line without a checksum is refused.

use super::open_regular;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Files above this size are refused.
const MAX_BYTES: u64 = 1 << 32;

/// What stands between a line's own fields and its checksum.
const KEY: &str = ",\"checksum\":\"";

/// The line of a file for a JSON object with at least one field: the object with its checksum, and a line feed.
pub fn seal(json: &str) -> String {
    let fields = json.strip_suffix('}').unwrap_or(json);
    format!("{fields}{KEY}{}\"}}\n", checksum(json))
}

fn checksum(json: &str) -> String {
    let digest = Sha256::digest(json.as_bytes());
    let bytes = digest.iter().take(8);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn unseal(line: &str) -> std::result::Result<String, &'static str> {
    let sealed = line.strip_suffix("\"}");
    let (fields, found) = sealed
        .and_then(|sealed| sealed.rsplit_once(KEY))
        .ok_or("without a checksum")?;
    let json = format!("{fields}}}");
    match checksum(&json) == found {
        true => Ok(json),
        false => Err("damaged: its checksum does not fit"),
    }
}

/// The JSON objects of a file, without their checksums; an empty list if there is no file. A last line without a line feed
/// was cut off by an interruption and is left out.
///
/// # Errors
/// A file that cannot be read, is no regular file or is not UTF-8; a line without a checksum or with a wrong one. The error
/// names the line's number.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let bytes = match super::read_capped(path, MAX_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let last = bytes.iter().rposition(|&byte| byte == b'\n');
    let end = last.map_or(0, |last| last.saturating_add(1));
    let whole = bytes.get(..end).unwrap_or_default();
    let text = std::str::from_utf8(whole)
        .map_err(|_| Error::invalid(path.display(), "content", "not UTF-8", "lines of JSON"))?;
    let lines = (1usize..).zip(text.lines());
    let line = |(number, line)| {
        unseal(line).map_err(|found| {
            let allowed = "a line with its checksum, as this version of polykv writes it";
            Error::invalid(path.display(), format!("line {number}"), found, allowed)
        })
    };
    lines.map(line).collect()
}

/// A file of JSON lines that is open for appending.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Opens the file, or creates it, and cuts it after the lines of `known`, which must be the first ones that [`read`]
    /// returned. The file is locked against other programs that open it in this way, where the file system has locks.
    ///
    /// # Errors
    /// A file that cannot be written, that is no regular file, or that another run is writing.
    pub fn open<'a>(path: &Path, known: impl IntoIterator<Item = &'a String>) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        if path.exists() {
            open_regular(path)?;
        }
        let options = OpenOptions::new().append(true).create(true).open(path);
        let file = options.map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let found = "being written by another run";
            let allowed = "one run at a time";
            return Err(Error::invalid(path.display(), "file", found, allowed));
        }
        let bytes = known.into_iter().map(|json| seal(json).len() as u64).sum();
        file.set_len(bytes).map_err(failed)?;
        let path = path.to_path_buf();
        Ok(Self { path, file })
    }

    /// Appends JSON objects in one write, so that an interruption leaves at most one partial line.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn append<'a>(&mut self, objects: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let lines: String = objects.into_iter().map(|json| seal(json)).collect();
        let written = self.file.write_all(lines.as_bytes());
        written.map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        (dir, path)
    }

    #[test]
    fn pieces_of_lines_are_dropped_and_writers_are_alone() {
        let (_dir, path) = path();
        assert!(read(&path).unwrap().is_empty());
        let objects = ["{\"a\":1}", "{\"a\":\"é\"}", "{\"a\":3}"].map(String::from);
        let whole: String = objects.iter().map(|json| seal(json)).collect();
        let cut = &whole.as_bytes()[..whole.len() - 4];
        std::fs::write(&path, cut).unwrap();
        let known = read(&path).unwrap();
        assert_eq!(known, objects[..2]);
        let mut lines = Appender::open(&path, &known).unwrap();
        lines.append(&objects[2..]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        let refused = Appender::open(&path, []).unwrap_err().to_string();
        assert!(refused.contains("another run"), "{refused}");
        drop(lines);
        assert!(Appender::open(&path, &known[..1]).is_ok());
        assert_eq!(read(&path).unwrap(), objects[..1]);
    }

    #[test]
    fn no_flipped_bit_is_read_as_something_else() {
        let (_dir, path) = path();
        let objects = ["{\"nll\":2.25}", "{\"nll\":3.5}"].map(String::from);
        let whole: String = objects.iter().map(|json| seal(json)).collect();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            // A last line feed that is gone makes the last line a piece.
            if let Ok(read) = read(&path) {
                assert_eq!(read, objects[..1], "bit {bit}");
                assert_eq!(bit / 8, whole.len() - 1);
            }
        }
    }

    #[test]
    fn lines_without_a_checksum_are_named() {
        let (_dir, path) = path();
        std::fs::write(&path, seal("{\"a\":1}") + "{\"a\":2}\n").unwrap();
        let refused = read(&path).unwrap_err().to_string();
        assert!(
            refused.contains("line 2 is without a checksum"),
            "{refused}"
        );
    }
}
