//! What each fuzz target does with an input. The targets call it, and so does `tests/corpus.rs`, which replays the committed
//! corpora.
//!
//! An input is taken as a stranger's file or answer. It may be refused, with an error; it must not make anything panic, hang
//! or grow. What is accepted has to keep what is promised of it, which each target checks by assertions.

// The test includes this as a module.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::missing_panics_doc)]

mod companions;
mod config;
mod draw;
mod gguf;
mod hub;
mod journal;
mod plan;
mod profile;
mod run;
mod safetensors;
mod samples;
mod session;
mod shards;
mod template;
mod tokenizer;

pub use session::take as take_session;

use draw::Draw;
use polykv_core::Error;
use std::path::{Path, PathBuf};

/// The name of a target's binary and corpus, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 14] = [
    ("companions", companions::run),
    ("config", config::run),
    ("gguf", gguf::run),
    ("hub", hub::run),
    ("journal", journal::run),
    ("plan", plan::run),
    ("profile", profile::run),
    ("run", run::run),
    ("safetensors", safetensors::run),
    ("samples", samples::run),
    ("session", session::run),
    ("shards", shards::run),
    ("template", template::run),
    ("tokenizer", tokenizer::run),
];

/// Runs the target of this name.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(other, _)| *other == name);
    let (_, target) = target.expect("a target of this name");
    target(input);
}

/// A folder for one input, in memory where the system has such a place.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Self(folder.expect("a temporary folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        let parent = path.parent().expect("a file inside the folder");
        std::fs::create_dir_all(parent).expect("a folder");
        std::fs::write(&path, content).expect("a file");
        path
    }
}

/// Longest error that a user should have to read, in bytes, apart from paths.
const LONGEST_MESSAGE: usize = 4096;

/// Checks the refusal of a stranger's content: it is one (exit code 3), and has a length that a terminal can show.
fn refused(error: &Error) {
    assert!(error.is_refusal(), "no refusal: {error}");
    let bytes = error.to_string().len();
    assert!(bytes <= LONGEST_MESSAGE, "an error of {bytes} bytes");
}

/// Cuts an input for several files: before each but the last stand its length in two bytes.
fn pieces<const N: usize>(mut input: &[u8]) -> [&[u8]; N] {
    let mut pieces = [&input[..0]; N];
    for (index, piece) in pieces.iter_mut().enumerate() {
        if index + 1 == N {
            *piece = input;
        } else if let Some((length, rest)) = input.split_first_chunk::<2>() {
            let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
            (*piece, input) = rest.split_at(length);
        } else {
            input = &[];
        }
    }
    pieces
}

/// The lines of an input with the checksums that files of lines must have; an input that starts with `!` is taken as it is.
fn sealed(input: &[u8]) -> Vec<u8> {
    if let Some(raw) = input.strip_prefix(b"!") {
        return raw.to_vec();
    }
    let text = String::from_utf8_lossy(input);
    let lines = text.lines().map(polykv_core::files::lines::seal);
    lines.collect::<String>().into_bytes()
}
