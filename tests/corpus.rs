//! Replays the corpora of the fuzz targets: what fuzzing found, and what it started from, stays refused or accepted as it is,
//! in bounded time and memory.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Of one input, also on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(2);
/// Of all inputs together, with the test itself.
const MOST_MEMORY: u64 = 1 << 30;
/// Of one target's corpus in the repository.
const MOST_BYTES: u64 = 100 << 10;

fn replay(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        bytes += input.len() as u64;
        let start = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| targets::run(name, &input)));
        let took = start.elapsed();
        assert!(done.is_ok(), "{} fails", path.display());
        assert!(took < MOST_TIME, "{} takes {took:?}", path.display());
    }
    assert!((1..=MOST_BYTES).contains(&bytes), "{bytes} bytes of inputs");
    if let Some(peak) = peak_memory() {
        assert!(peak < MOST_MEMORY, "{peak} bytes of memory");
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
    companions config gguf hub journal plan profile run safetensors samples shards template tokenizer
}
