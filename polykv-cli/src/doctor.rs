//! `polykv doctor`: what runs here, and whether it computes correctly.

use crate::args::DoctorArgs;
use crate::model;
use crate::output::{console, table};
use polykv::{DeviceSpec, Storage, machine, ops};
use polykv_core::doctor::{self, Check};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    devices: Vec<Found>,
    threads: usize,
}

#[derive(Serialize)]
struct Found {
    backend: &'static str,
    name: String,
    available: bool,
    /// Why not, or what falls back and why.
    reason: Option<String>,
    /// Free memory where the system tells.
    memory_bytes: Option<u64>,
    dtypes: Vec<&'static str>,
    kernels: Vec<Check>,
}

/// # Errors
/// A device that fails while it is tested, or a check that fails.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let backends = [
        ("cpu", DeviceSpec::Cpu),
        ("wgpu", DeviceSpec::Wgpu(0)),
        ("cuda", DeviceSpec::Cuda(0)),
    ];
    let devices = backends
        .into_iter()
        .map(|(backend, spec)| examine(backend, spec))
        .collect::<polykv::Result<Vec<_>>>()?;
    let report = Report {
        devices,
        threads: machine::threads(),
    };
    let text = match args.json {
        true => serde_json::to_string(&report)?,
        false => show(&report),
    };
    console::print(&text)?;
    let checks = report.devices.iter().flat_map(|device| &device.kernels);
    let wrong: Vec<_> = checks
        .filter(|check| !check.ok)
        .map(|check| check.name)
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("wrong results: {}", wrong.join(", ")),
    }
}

fn examine(backend: &'static str, spec: DeviceSpec) -> polykv::Result<Found> {
    let device = match model::device(spec) {
        Ok((_, device)) => device,
        Err(error) => {
            return Ok(Found {
                backend,
                name: spec.to_string(),
                available: false,
                reason: Some(error.to_string()),
                memory_bytes: None,
                dtypes: Vec::new(),
                kernels: Vec::new(),
            });
        }
    };
    let cpu = ops::is_cpu(&device);
    let falls_back = match () {
        () if cpu => None,
        () if ops::is_cube(&device) => {
            Some("kernels; products of many rows are stock, q8 is for the CPU")
        }
        () => Some("plain tensor operations: this backend has no kernels"),
    };
    Ok(Found {
        backend,
        name: format!("{device:?}"),
        available: true,
        reason: falls_back.map(str::to_string),
        memory_bytes: machine::free_memory().filter(|_| cpu),
        dtypes: doctor::formats(&device)
            .into_iter()
            .map(Storage::name)
            .collect(),
        kernels: doctor::self_test(&device)?,
    })
}

fn show(report: &Report) -> String {
    let mut rows = table(&["device", "dtypes", "operators", "largest error", "note"]);
    for device in &report.devices {
        let right = device.kernels.iter().filter(|check| check.ok).count();
        let operators = match device.available {
            true => format!("{right} of {} right", device.kernels.len()),
            false => "not available".into(),
        };
        // Products with rounded weights differ by what the formats round away.
        let exact = device
            .kernels
            .iter()
            .filter(|check| !check.name.starts_with("product"));
        let worst = exact.filter_map(|check| check.max_error).reduce(f64::max);
        rows.add_row([
            device.backend.to_string(),
            device.dtypes.join(", "),
            operators,
            worst.map_or_else(String::new, |error| format!("{error:.0e}")),
            device.reason.clone().unwrap_or_default(),
        ]);
    }
    format!("{rows}\n{} threads on the CPU", report.threads)
}
