//! Reading files whose content is not trusted, and writing files that others may read at the same time.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

pub mod lines;
pub mod safetensors;

use crate::error::{Error, Result};
use std::fs::{File, FileType, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// Opens a regular file for reading. Links are followed, since model caches consist of links. The type of the file is checked
/// through the open handle, so that it cannot be replaced between the check and the reading. A FIFO is refused at once
/// instead of waiting for a writer.
///
/// # Errors
/// A file that does not exist or cannot be read; a directory, FIFO, socket or device.
pub fn open_regular(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path).map_err(|e| match kind_of_path(path) {
        // A socket cannot be opened at all; saying what it is helps more than the error number.
        Some(kind) => not_regular(path, kind),
        None => Error::io(path, e),
    })?;
    let found = file.metadata().map_err(|e| Error::io(path, e))?.file_type();
    match found.is_file() {
        true => Ok(file),
        false => Err(not_regular(path, kind(found))),
    }
}

/// The content of a regular file of at most `limit` bytes. No more than the limit is read, even if the file grows meanwhile
/// or reports a wrong size.
///
/// # Errors
/// What [`open_regular`] refuses; a file with more than `limit` bytes.
pub fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if size > limit {
        return Err(too_large(path, &format!("{size} bytes"), limit));
    }
    let mut content = Vec::new();
    let io = |e| Error::io(path, e);
    let expected = usize::try_from(size).unwrap_or(usize::MAX);
    content
        .try_reserve_exact(expected)
        .map_err(|_| io(ErrorKind::OutOfMemory.into()))?;
    file.take(limit.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(io)?;
    match content.len() as u64 > limit {
        true => Err(too_large(path, &format!("more than {limit} bytes"), limit)),
        false => Ok(content),
    }
}

/// The text of a regular file of at most `limit` bytes, without a byte order mark at its start; see [`read_capped`].
///
/// # Errors
/// What [`read_capped`] refuses; bytes that are no UTF-8.
pub fn read_capped_text(path: &Path, limit: u64) -> Result<String> {
    text(path.display(), read_capped(path, limit)?)
}

/// The byte order mark that some editors put before UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Bytes without a byte order mark at their start.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(MARK).unwrap_or(bytes)
}

/// Bytes as text, without a byte order mark at its start; `place` names where they come from.
///
/// # Errors
/// Bytes that are no UTF-8, with the first wrong one; UTF-16 by name.
pub fn text(place: impl std::fmt::Display, mut bytes: Vec<u8>) -> Result<String> {
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes[..] {
        let allowed = "UTF-8 text: save it as UTF-8";
        return Err(Error::invalid(place, "content", "UTF-16", allowed));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or(0);
        let found = format!("byte 0x{byte:02x} at offset {at}");
        Error::invalid(place, "content", found, "UTF-8 text")
    })
}

/// Writes a file so that a reader gets the old content or the new one, never a part, even after a power failure. The content
/// is written to a new file with a random name in the same folder, flushed to the disk and renamed. A link at `path` is
/// replaced, not followed. After an error no file is left behind.
///
/// # Errors
/// A folder that does not exist or cannot be written, a full disk; a directory, FIFO, socket or device at `path`.
pub fn write_whole(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(kind) = kind_of_path(path) {
        return Err(not_regular(path, kind));
    }
    let io = |e| Error::io(path, e);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As every new file: what the umask leaves of it.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut part = builder.tempfile_in(folder).map_err(io)?;
    part.write_all(content.as_ref()).map_err(io)?;
    part.as_file().sync_all().map_err(io)?;
    part.persist(path).map_err(|e| io(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// Flushes the names in a folder to the disk, after files in it were created or renamed. Errors are ignored: file systems
/// without such a call do not need it.
pub fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    #[cfg(not(unix))]
    let _ = folder;
}

/// The kind of what is at `path`, if something is there that is no regular file.
fn kind_of_path(path: &Path) -> Option<&'static str> {
    let found = std::fs::metadata(path).ok()?.file_type();
    (!found.is_file()).then(|| kind(found))
}

fn kind(found: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if found.is_fifo() {
            return "a FIFO";
        }
        if found.is_socket() {
            return "a socket";
        }
        if found.is_char_device() || found.is_block_device() {
            return "a device";
        }
    }
    match found.is_dir() {
        true => "a directory",
        false => "something else",
    }
}

fn not_regular(path: &Path, kind: &str) -> Error {
    Error::invalid(path.display(), "type", kind, "a regular file")
}

fn too_large(path: &Path, found: &str, limit: u64) -> Error {
    let allowed = format!("at most {limit} bytes");
    Error::invalid(path.display(), "size", found, allowed)
}

#[cfg(test)]
mod tests;
