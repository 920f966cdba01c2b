//! A fingerprint of a model's files.

use polykv_core::files::open_regular;
use polykv_core::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The extensions of the files in a folder that belong to the model.
const EXTENSIONS: [&str; 3] = ["json", "safetensors", "jinja"];
const PIECE: usize = 1 << 20;

/// SHA-256 in hexadecimal digits: of a GGUF file its content, of a folder the names, lengths and contents of the files that
/// a model is read from (.json, .safetensors, .jinja; not of folders in it). Every byte is read.
///
/// # Errors
/// Files that cannot be read or are no regular files.
pub fn digest(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    if !path.is_dir() {
        add(&mut hash, path)?;
        return Ok(hex(hash));
    }
    let failed = |e| Error::io(path, e);
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|file| file.path()))
        .collect::<std::io::Result<_>>()
        .map_err(failed)?;
    files.retain(|file| {
        let extension = file.extension().unwrap_or_default();
        file.is_file() && EXTENSIONS.iter().any(|known| extension == *known)
    });
    files.sort();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let length = file.metadata().map_err(|e| Error::io(&file, e))?.len();
        for part in [name.as_bytes(), &[0], &length.to_le_bytes()] {
            hash.update(part);
        }
        add(&mut hash, &file)?;
    }
    Ok(hex(hash))
}

fn add(hash: &mut Sha256, path: &Path) -> Result<()> {
    let failed = |e| Error::io(path, e);
    let mut file = BufReader::with_capacity(PIECE, open_regular(path)?);
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return Ok(()),
            count => hash.update(&piece[..count]),
        }
    }
}

fn hex(hash: Sha256) -> String {
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_content_and_a_folder_its_model_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a.gguf"), "abc").unwrap();
        // The test vector of FIPS 180-2.
        assert_eq!(
            digest(&path("a.gguf")).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        std::fs::write(path("config.json"), "{}").unwrap();
        let before = digest(dir.path()).unwrap();
        std::fs::write(path("notes.txt"), "not of the model").unwrap();
        assert_eq!(digest(dir.path()).unwrap(), before);
        std::fs::write(path("config.json"), "[]").unwrap();
        assert_ne!(digest(dir.path()).unwrap(), before);
    }
}
