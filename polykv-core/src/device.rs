//! Devices by name, chosen at run time: `auto`, `cpu`, `wgpu[:i]` or `cuda[:i]`.

use crate::awake::Awake;
use crate::ops;
use crate::{Error, Result};
use burn::tensor::Device;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::tensor::DeviceType;
use std::fmt;
use std::str::FromStr;

/// The device that a user asks for, `--device` on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first CUDA device if this build and machine have one, otherwise the CPU. Never wgpu, which on a machine without a
    /// GPU may be a software adapter that is far slower than the CPU.
    #[default]
    Auto,
    /// The CPU, by burn's backend Flex and the kernels of this crate.
    Cpu,
    /// The GPU with this index, through WGSL.
    Wgpu(usize),
    /// The NVIDIA GPU with this index, through CUDA.
    Cuda(usize),
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("'{text}' is no device; allowed: auto, cpu, wgpu[:i], cuda[:i]");
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("wgpu", index) => Ok(Self::Wgpu(index.unwrap_or(0))),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Wgpu(i) => write!(f, "wgpu:{i}"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

impl DeviceSpec {
    /// The same device, where [`DeviceSpec::Auto`] is replaced by its choice on this machine.
    #[must_use]
    pub fn resolve(self) -> Self {
        match self {
            Self::Auto if cuda_devices().is_ok_and(|found| !found.is_empty()) => Self::Cuda(0),
            Self::Auto => Self::Cpu,
            other => other,
        }
    }

    /// The name of the device's backend: `auto`, `cpu`, `wgpu` or `cuda`.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Wgpu(_) => "wgpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// A backend that this build lacks, and an index that this machine does not have, both of kind
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported). The error names the backend, and the feature to build it.
    pub fn open(self) -> Result<Device> {
        match self.resolve() {
            Self::Auto | Self::Cpu => cpu(),
            Self::Wgpu(index) => pick("wgpu", wgpu_devices()?, index),
            Self::Cuda(index) => pick("cuda", cuda_devices()?, index),
        }
    }
}

fn pick(backend: &str, mut devices: Vec<Device>, index: usize) -> Result<Device> {
    if index < devices.len() {
        return Ok(devices.swap_remove(index));
    }
    Err(Error::unsupported(
        format!("device {backend}:{index}"),
        format!("{} {backend} devices found on this machine", devices.len()),
    ))
}

#[cfg(feature = "flex")]
fn cpu() -> Result<Device> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn cpu() -> Result<Device> {
    Err(not_built("cpu", "flex"))
}

#[cfg(feature = "wgpu")]
fn wgpu_devices() -> Result<Vec<Device>> {
    enumerate("wgpu", DeviceType::Wgpu)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_devices() -> Result<Vec<Device>> {
    Err(not_built("wgpu", "wgpu"))
}

#[cfg(feature = "cuda")]
fn cuda_devices() -> Result<Vec<Device>> {
    enumerate("cuda", DeviceType::Cuda)
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Result<Vec<Device>> {
    Err(not_built("cuda", "cuda"))
}

#[cfg(not(all(feature = "flex", feature = "wgpu", feature = "cuda")))]
fn not_built(device: &str, feature: &str) -> Error {
    Error::unsupported(
        format!("device {device}"),
        format!("this build lacks it; build with `--features {feature}`"),
    )
}

/// Missing drivers make the backends panic while they look for devices. The caller gets an error instead; the process's
/// panic hook is called all the same.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn enumerate(backend: &str, kind: DeviceType) -> Result<Vec<Device>> {
    let found = std::panic::catch_unwind(|| Device::enumerate(kind).into_vec());
    found.map_err(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_default();
        Error::unsupported(
            format!("device {backend}"),
            format!(
                "no usable driver on this machine ({})",
                reason.lines().next().unwrap_or("unknown")
            ),
        )
    })
}

/// Runs `work` on the thread where tensors of this device are computed fastest. For the CPU that is inside the thread pool
/// of the kernels, which saves a hand-over per kernel; while `work` runs, idle threads of the pool spin for up to 0.2 ms
/// before they sleep. For other devices `work` runs on the calling thread.
pub fn run_on<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    match ops::is_cpu(device) {
        true => rayon::scope(|_| {
            let _awake = Awake::hold();
            work()
        }),
        false => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for text in ["auto", "cpu", "wgpu:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
        assert_eq!(DeviceSpec::Cuda(3).backend(), "cuda");
    }

    #[test]
    fn other_names_are_refused() {
        for text in ["gpu", "cuda:x", "cpu:1", "", "auto:0"] {
            assert!(text.parse::<DeviceSpec>().unwrap_err().contains("cuda[:i]"));
        }
    }

    #[test]
    fn a_missing_backend_is_named_with_its_feature() {
        for (spec, built) in [
            (DeviceSpec::Wgpu(63), cfg!(feature = "wgpu")),
            (DeviceSpec::Cuda(63), cfg!(feature = "cuda")),
        ] {
            let error = spec.open().unwrap_err();
            assert!(error.is_refusal());
            let (backend, error) = (spec.to_string(), error.to_string());
            let backend = backend.trim_end_matches(":63");
            assert!(error.contains(&format!("device {backend}")), "{error}");
            let feature = format!("`--features {backend}`");
            assert_eq!(error.contains(&feature), !built, "{error}");
        }
    }
}
