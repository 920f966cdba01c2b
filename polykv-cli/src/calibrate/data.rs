//! The texts of `--data`.

use crate::prompt;
use polykv::{Error, Result};
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 2] = ["txt", "md"];

/// The given files, and the text files of the given folders and the folders in them, in the order of their names.
///
/// # Errors
/// No data, a folder without text files, files that cannot be read or are not UTF-8.
pub fn read(paths: &[PathBuf]) -> Result<Vec<String>> {
    if paths.is_empty() {
        let allowed = "text files or folders, or --objective evidence";
        return Err(Error::invalid("command line", "--data", "missing", allowed));
    }
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        collect(path, &mut files)?;
        if files.len() == before {
            let found = "a folder without .txt and .md files";
            let allowed = "at least one text file";
            return Err(Error::invalid(path.display(), "content", found, allowed));
        }
    }
    files.iter().map(|file| prompt::read_file(file)).collect()
}

/// Links to folders are not followed, so that there are no circles.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e| Error::io(folder, e);
    let mut entries = std::fs::read_dir(folder)
        .map_err(failed)?
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            collect(&path, files)?;
        } else if let Some(extension) = path.extension()
            && EXTENSIONS.iter().any(|known| extension == *known)
        {
            files.push(path);
        }
    }
    Ok(())
}
