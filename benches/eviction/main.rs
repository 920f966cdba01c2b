//! What eviction costs beside the work around it, on the CPU and on wgpu where there is an adapter: everything that is
//! compared runs in turns, and the lines are ratios.
//!
//! ```sh
//! cargo bench --workspace --bench eviction [-- NAME ...]
//! ```
//!
//! A name is that of a device (`cpu`, `wgpu`) or of a part (`choice`, `decode-attention`, `prompt-attention`, `prefill`,
//! `decode`); all run that are not left out by naming others.
//!
//! Shapes are SmolLM2's layer (9 query heads over 3 KV heads of 64, hidden size 576) and, for decode attention, 16
//! query heads over 4 KV heads of 128.

mod attention;
mod choice;
mod layer;
mod shares;

use burn::tensor::{Device, Distribution, Tensor};
use polykv::DeviceSpec;
use polykv::device::run_on;
use std::time::Instant;

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
/// Tokens per call of a prefill.
const CHUNK: usize = 512;

/// What is measured where, and how often.
struct Setup {
    device: Device,
    name: &'static str,
    prompt: usize,
    budget: usize,
    steps: usize,
    turns: usize,
}

fn main() {
    // `cargo test --benches` runs everything once and small.
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let setup = |device, name, prompt, turns| match measuring {
        true => Setup {
            device,
            name,
            prompt,
            budget: 512,
            steps: 64,
            turns,
        },
        false => Setup {
            device,
            name,
            prompt: 96,
            budget: 48,
            steps: 2,
            turns: 1,
        },
    };
    println!("medians of runs in turns");
    let cpu = setup(Device::flex(), "cpu", 4096, 7);
    if wanted("cpu", &DEVICES) {
        run_on(&Device::flex(), || run(&cpu, measuring));
    }
    // A test of whether the bench runs is no reason to wait for a software adapter's compiler.
    if !measuring || !wanted("wgpu", &DEVICES) {
        return;
    }
    match DeviceSpec::Wgpu(0).open() {
        Ok(device) => run(&setup(device, "wgpu", 4096, 3), measuring),
        Err(error) => println!("wgpu: {error}"),
    }
}

const DEVICES: [&str; 2] = ["cpu", "wgpu"];

/// Whether the command line asks for `name`, one of `all`: for all of them if it names none.
fn wanted(name: &str, all: &[&str]) -> bool {
    let mut named = std::env::args()
        .filter(|arg| all.contains(&&arg[..]))
        .peekable();
    named.peek().is_none() || named.any(|arg| arg == name)
}

fn run(setup: &Setup, measuring: bool) {
    let parts: [(&str, &dyn Fn()); 5] = [
        ("choice", &|| choice::choice(setup)),
        ("decode-attention", &|| attention::decode(setup, measuring)),
        ("prompt-attention", &|| attention::prompt(setup)),
        ("prefill", &|| shares::prefill(setup)),
        ("decode", &|| shares::decode(setup)),
    ];
    let names = parts.map(|(name, _)| name);
    for (_, part) in parts.iter().filter(|(name, _)| wanted(name, &names)) {
        part();
    }
}

/// Median seconds of each, in turns.
fn medians(turns: usize, works: &mut [&mut dyn FnMut() -> f64]) -> Vec<f64> {
    let mut times = vec![Vec::new(); works.len()];
    // The first turn compiles kernels and is not counted where there are others.
    for turn in 0..=turns {
        for (work, times) in works.iter_mut().zip(&mut times) {
            let seconds = work();
            if turn > 0 {
                times.push(seconds);
            }
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

/// Seconds until the device has done what `work` asked for.
fn timed(device: &Device, work: impl FnOnce()) -> f64 {
    device.sync().ok();
    let start = Instant::now();
    work();
    device.sync().ok();
    start.elapsed().as_secs_f64()
}

fn random<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Default, device)
}
