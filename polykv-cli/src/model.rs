//! From the model flags to a model in memory.

use crate::args::{Dtype, ModelArgs};
use crate::output::progress;
use polykv::models::{LoadedModel, hub, load};
use polykv::{DeviceSpec, Error, Result};

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
    let mut pulling = progress::Pull::default();
    let revision = args.revision.as_deref();
    let path = hub::resolve_at(&args.model, revision, args.offline, &mut |step| {
        pulling.step(step);
    })?;
    drop(pulling);
    let loading = progress::spinner("loading the model");
    let model = load(&path, &device)?;
    loading.finish_and_clear();
    Ok((spec, model))
}
