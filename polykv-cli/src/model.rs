//! From the model flags to a model in memory.

use crate::args::{Dtype, ModelArgs};
use crate::output::progress;
use polykv::models::{LoadedModel, hub, load};
use polykv::{DeviceSpec, Error, Result};
use std::path::PathBuf;

/// Weights become f32 on loading, and everything after follows them.
///
/// # Errors
/// Any other number format.
pub fn check_dtype(dtype: Dtype) -> Result<()> {
    let name = match dtype {
        Dtype::Auto | Dtype::F32 => return Ok(()),
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    };
    let reason = "this version computes in f32 only; allowed: auto, f32";
    Err(Error::unsupported(format!("dtype {name}"), reason))
}

/// Opens the device, fetches the model if need be and loads it.
///
/// # Errors
/// What is missing or refused.
pub fn open(args: &ModelArgs) -> Result<(DeviceSpec, LoadedModel)> {
    let spec = args.device.resolve();
    let device = spec.open()?;
    let path = path(&args.model, args.revision.as_deref(), args.offline)?;
    let loading = progress::spinner("loading the model");
    let model = load(&path, &device)?;
    loading.finish_and_clear();
    Ok((spec, model))
}

/// Where the model lies, after fetching it if need be.
///
/// # Errors
/// A name that is no model, or a download that fails.
pub fn path(model: &str, revision: Option<&str>, offline: bool) -> Result<PathBuf> {
    let mut pulling = progress::Pull::default();
    hub::resolve_at(model, revision, offline, &mut |step| pulling.step(step))
}
