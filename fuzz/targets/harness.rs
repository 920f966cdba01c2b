//! Panics that are foreseen do not end the process: those inside of the tokenizers and template crates become refusals. One
//! that leaves a target does.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

/// What the last panic of any thread said.
static PANIC: Mutex<String> = Mutex::new(String::new());

pub fn init() {
    set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

pub fn run(name: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| polykv_fuzz::run(name, input))).is_err() {
        let panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{panic}");
        std::process::abort();
    }
}
