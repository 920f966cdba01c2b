//! From the model flags to a model in memory.

use crate::args::ModelArgs;
use crate::output::progress;
use polykv::models::{LoadedModel, hub, load};
use polykv::{DeviceSpec, Result};
use std::path::PathBuf;

/// Opens the device, fetches the model if need be and loads it.
///
/// # Errors
/// What is missing or refused.
pub fn open(args: &ModelArgs) -> Result<(DeviceSpec, LoadedModel)> {
    open_at(args).map(|(spec, _, model)| (spec, model))
}

/// As [`open`], with where the model lies.
///
/// # Errors
/// As [`open`].
pub fn open_at(args: &ModelArgs) -> Result<(DeviceSpec, PathBuf, LoadedModel)> {
    let spec = args.device.resolve();
    let device = spec.open()?;
    // Before a model is downloaded and read.
    args.dtype.check(&device)?;
    let path = path(&args.model, args.revision.as_deref(), args.offline)?;
    let loading = progress::spinner("loading the model");
    let model = load::load_as(&path, args.dtype, &device)?;
    loading.finish_and_clear();
    Ok((spec, path, model))
}

/// Where the model lies, after fetching it if need be.
///
/// # Errors
/// A name that is no model, or a download that fails.
pub fn path(model: &str, revision: Option<&str>, offline: bool) -> Result<PathBuf> {
    let mut pulling = progress::Pull::default();
    hub::resolve_at(model, revision, offline, &mut |step| pulling.step(step))
}
