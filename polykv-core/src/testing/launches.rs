//! What is launched on a GPU.

use cubecl::dry_run::DryRun;
use cubecl::logging::{LaunchObservation, LaunchObserver};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Default)]
struct Counts(Mutex<BTreeMap<&'static str, usize>>);

impl LaunchObserver for Counts {
    fn launched(&self, kernel: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(kernel).or_default();
        *count = count.saturating_add(1);
    }
}

/// How many times each kernel is launched while `run` runs, by the kernel's type. It counts the launches of all threads, so that
/// nothing else may compute on a GPU in the same process; and those that were issued, so that `run` should read its results.
pub fn launches(run: impl FnOnce()) -> BTreeMap<&'static str, usize> {
    let counts = Arc::new(Counts::default());
    let observation = LaunchObservation::new(counts.clone());
    run();
    drop(observation);
    let counts = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
    counts.clone()
}

/// Runs `run` without the work of the device: kernels are issued by all threads as ever, but not executed, and what is read from the
/// device is undefined. What remains is the host's time.
pub fn without_device<T>(run: impl FnOnce() -> T) -> T {
    let _dry_run = DryRun::new();
    run()
}
