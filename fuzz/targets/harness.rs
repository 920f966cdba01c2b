//! Panics that are foreseen do not end the process: those inside of the tokenizers and template crates become refusals. One
//! that leaves a target does, and so does an input that takes too long.

use cpu_time::ProcessTime;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What the last panic of any thread said.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Of the processor for one input; instrumented code takes several times what the shipped code does. libFuzzer's own limit
/// counts the time of the clock, which says little on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(5);

pub fn init() {
    set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

pub fn run(name: &str, input: &[u8]) {
    let start = ProcessTime::now();
    if catch_unwind(AssertUnwindSafe(|| polykv_fuzz::run(name, input))).is_err() {
        let panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{panic}");
        std::process::abort();
    }
    let took = start.elapsed();
    if took > MOST_TIME {
        eprintln!("{took:?} of the processor");
        std::process::abort();
    }
}
