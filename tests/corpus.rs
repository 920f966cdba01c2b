//! Replays the corpora of the fuzz targets: what fuzzing found, and what it started from, stays refused or accepted as it is,
//! in bounded time and memory. So do variants of these inputs, and recipes for those targets that take some, the same in every
//! run; `POLYKV_VARIANTS=N` makes it N for each target.

#[path = "../fuzz/src/lib.rs"]
mod targets;
#[path = "corpus/variants.rs"]
mod variants;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use variants::Variants;

/// Of one input, which takes a millisecond or so, by the clock of a machine that may be busy.
const MOST_TIME: Duration = Duration::from_secs(10);
/// Of all inputs together, with the test itself.
const MOST_MEMORY: u64 = 1 << 30;
/// Of one target's corpus in the repository.
const MOST_BYTES: usize = 100 << 10;
/// Of each target; half of them are recipes where the target takes some.
const VARIANTS: usize = 1000;
const RECIPES: [&str; 4] = ["gguf", "hub", "template", "tokenizer"];

fn replay(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let paths = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let bytes = inputs.iter().map(Vec::len).sum();
    assert!((1..=MOST_BYTES).contains(&bytes), "{bytes} bytes of inputs");
    for (path, input) in paths.iter().zip(&inputs) {
        check(name, &path.display().to_string(), input);
    }
    let count = std::env::var("POLYKV_VARIANTS").map_or(VARIANTS, |n| n.parse().unwrap());
    let mut variants = Variants::new(&inputs);
    for number in 0..count {
        let input = match RECIPES.contains(&name) && number % 2 == 1 {
            true => variants.recipe(),
            false => variants.next(),
        };
        check(name, &format!("variant {number}"), &input);
    }
    if let Some(peak) = peak_memory() {
        assert!(peak < MOST_MEMORY, "{peak} bytes of memory");
    }
}

fn check(target: &str, what: &str, input: &[u8]) {
    let start = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| targets::run(target, input)));
    let took = start.elapsed();
    if done.is_err() || took > MOST_TIME {
        // Kept, to be looked at and put into the corpus.
        let path = std::env::temp_dir().join(format!("polykv-{target}-input"));
        std::fs::write(&path, input).unwrap();
        panic!("{what} fails or takes long ({took:?}): {}", path.display());
    }
}

/// Changes of a session that no cache takes up would reach little.
#[test]
fn sessions_of_the_corpus_are_taken_up() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/session");
    let names = [
        "blend", "cam", "d2o", "decode", "expected", "full", "h2o", "lagkv",
    ];
    let more = ["packed", "scissorhands", "snapkv", "tova"];
    for name in names.into_iter().chain(more) {
        let input = std::fs::read(folder.join(name)).unwrap();
        let taken = targets::take_session(&input);
        assert_eq!(
            taken.map(|cache| cache.seen()).map_err(|e| e.to_string()),
            Ok(9),
            "{name}"
        );
    }
}

/// The most memory that this process ever had, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

macro_rules! corpora {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*

        #[test]
        fn every_target_is_replayed() {
            let names = targets::TARGETS.map(|(name, _)| name);
            assert_eq!(names.as_slice(), [$(stringify!($name)),*]);
        }
    };
}

corpora! {
    companions config gguf hub journal plan profile run safetensors samples session shards template tokenizer
}
