//! The host's time for a decoded token on a GPU, for the full cache and under policies: kernels are issued as ever but not executed, so
//! that any adapter will do, a software one too. What it is on a card depends on the driver; the ratios tell what a policy costs.
//! Three threads take part, which wait for each other by spinning: on fewer than four cores the times say nothing.
//!
//! ```sh
//! cargo bench --features wgpu --bench host
//! ```

use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::policy::{Params, Policies};
use polykv::testing::without_device;
use polykv::{Budget, DeviceSpec, KvCache, Phase, Plan, Storage};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

const PROMPT: i64 = 56;
const BUDGET: usize = 40;
/// Tokens that compile kernels and fill pools of memory, up to the one after which the cache looks for NaN scores: what it would find
/// later is undefined.
const WARM_UP: i64 = 8;
/// Tokens up to the next time.
const TOKENS: i64 = 30;
const POLICIES: [(&str, usize); 7] = [
    ("streaming-llm", 1),
    ("tova", 1),
    ("h2o", 1),
    ("cake", 1),
    ("snapkv", 1),
    ("snapkv", 8),
    ("snapkv", 16),
];

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // `cargo test` runs benches too, without this flag: a few tokens, to see that they run.
    let measured = std::env::args().any(|arg| arg == "--bench");
    match run(if measured { 8 } else { 1 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(rounds: usize) -> Result<(), Failure> {
    let device = match DeviceSpec::Wgpu(0).open() {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let model = load::load_weights(&folder, Storage::F32, &device)?;
    let layers = model.config().layers.len();
    let full = per_token(&*model, &Plan::full(layers), rounds)?;
    println!("| plan | µs per token | of the full cache |\n|---|--:|--:|");
    println!("| full | {:.0} | 1.00 |", full * 1e6);
    let policies = Policies::default();
    for (name, every) in POLICIES {
        let policy = policies.build(name, &Params::default())?;
        let mut plan = Plan::uniform(layers, policy, Budget::Tokens(BUDGET), &Phase::BOTH);
        plan.every = every;
        let seconds = per_token(&*model, &plan, rounds)?;
        let (micros, ratio) = (seconds * 1e6, seconds / full);
        println!("| {name}, every {every} | {micros:.0} | {ratio:.2} |");
    }
    Ok(())
}

fn ids(range: std::ops::Range<i64>, device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = range.map(|i| i * 37 % 150 + 3).collect();
    let dims = [1, values.len()];
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// Seconds of the host for a token, its logits read: the best of some rounds, since others disturb them.
fn per_token(model: &dyn CausalLm, plan: &Plan, rounds: usize) -> Result<f64, Failure> {
    let device = model.device();
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let mut cache = KvCache::new(plan.clone(), model.cache_shape(1), device)?;
        let options = &mut PrefillOptions::default();
        model.prefill(ids(0..PROMPT, device), &mut cache, options)?;
        cache.reserve(usize::try_from(WARM_UP + TOKENS)?);
        let mut decode = |at: i64| -> Result<(), Failure> {
            let logits = model.decode(ids(at..at + 1, device), &mut cache)?;
            logits.try_into_data()?;
            Ok(())
        };
        let start = PROMPT + WARM_UP;
        (PROMPT..start).try_for_each(&mut decode)?;
        let seconds = without_device(|| {
            let begun = Instant::now();
            (start..start + TOKENS).try_for_each(&mut decode)?;
            Ok::<f64, Failure>(begun.elapsed().as_secs_f64())
        });
        best = best.min(seconds? / TOKENS as f64);
    }
    Ok(best)
}
