//! Ways in for tests, where the usual way to what reads a stranger's file or answer needs a model or the environment.

use polykv_core::Result;
use std::path::Path;

/// The measurements in the journal at `path`, for a calibration of these examples on a model of `layers` layers.
///
/// # Errors
/// Lines that are damaged or do not fit the calibration.
#[cfg(feature = "calibrate")]
pub fn read_journal(
    path: &Path,
    options: &crate::calibrate::CalibrateOptions,
    layers: usize,
    examples: &[crate::calibrate::Example],
) -> Result<Vec<polykv_core::calibrate::Measured>> {
    crate::calibrate::read_journal(path, options, layers, examples)
}

/// Pulls a model into the folder `cache` from the hub at `endpoint`, as [`pull_repo`](crate::hub::pull_repo) does, but without
/// waiting before it tries again.
///
/// # Errors
/// Those of [`pull_repo`](crate::hub::pull_repo).
#[cfg(feature = "hub")]
pub fn pull(endpoint: &str, cache: &Path, repo: &crate::hub::Repo) -> Result<std::path::PathBuf> {
    crate::hub::pull_from(endpoint, cache, repo)
}

/// What [`verify_repo`](crate::hub::verify_repo) says of the folder `cache`: the path of a model that is there.
///
/// # Errors
/// Those of [`verify_repo`](crate::hub::verify_repo), but for a model that is not there.
#[cfg(feature = "hub")]
pub fn verify(cache: &Path, repo: &crate::hub::Repo) -> Result<Option<std::path::PathBuf>> {
    repo.verify(cache)
}
