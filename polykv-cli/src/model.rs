//! From the model flags to a model in memory.

use crate::args::ModelArgs;
use crate::output::progress;
use burn::tensor::Device;
use polykv::models::chat::Argument;
#[cfg(feature = "hub")]
use polykv::models::hub;
use polykv::models::{LoadedModel, load};
use polykv::{DeviceSpec, Error, Result};
use std::path::PathBuf;

/// Opens the device, fetches the model if need be and loads it. Returns the path of its files as well.
///
/// # Errors
/// What is missing or refused.
pub fn open(args: &ModelArgs) -> Result<(DeviceSpec, PathBuf, LoadedModel)> {
    let (spec, device) = device(args.device)?;
    // Before a model is downloaded and read.
    args.dtype.check(&device)?;
    let path = path(&args.model, args.revision.as_deref(), args.offline)?;
    let loading = progress::spinner("loading the model");
    let model = load::load_as(&path, args.dtype.of(&path, &device)?, &device)?;
    loading.finish_and_clear();
    Ok((spec, path, model))
}

/// Opens a device. Returns the device that was chosen for `auto` as well.
///
/// # Errors
/// A device that this build or this machine does not have.
pub fn device(spec: DeviceSpec) -> Result<(DeviceSpec, Device)> {
    let spec = spec.resolve();
    let device = spec.open();
    // Drivers that are missing panic while they are looked for, which is no reason for a later failure.
    crate::forget_panic();
    Ok((spec, device?))
}

/// Where the model lies, after fetching it if need be.
///
/// # Errors
/// A name that is no model, or a download that fails.
#[cfg(feature = "hub")]
pub fn path(model: &str, revision: Option<&str>, offline: bool) -> Result<PathBuf> {
    let mut pulling = progress::Pull::default();
    hub::resolve_at(model, revision, offline, &mut |step| pulling.step(step))
}

/// Where the model lies.
///
/// # Errors
/// Anything that is no path, and a revision.
#[cfg(not(feature = "hub"))]
pub fn path(model: &str, revision: Option<&str>, _offline: bool) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    match revision {
        None if path.exists() => Ok(path),
        _ => Err(Error::unsupported(
            format!(
                "model {model}{}",
                revision
                    .map(|name| format!(" at {name}"))
                    .unwrap_or_default()
            ),
            "this build takes an existing folder or .gguf file; for models by name build with `--features hub`",
        )),
    }
}

/// The model with variables set for its chat template.
///
/// # Errors
/// Variables for a model without a template.
pub fn with_template_arguments(mut model: LoadedModel, given: &[Argument]) -> Result<LoadedModel> {
    if !given.is_empty() && model.chat.is_none() {
        let reason = "the model has no chat template that reads it";
        return Err(Error::unsupported("--template-arg", reason));
    }
    model.chat = model.chat.map(|chat| chat.with_arguments(given));
    Ok(model)
}
