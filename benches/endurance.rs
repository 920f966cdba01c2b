//! 200 prompts with 100 decode steps each on one `Generator`, never emptied before the model's context is full: the time of
//! a step and the memory of the process must not grow.
//!
//! ```sh
//! scripts/endurance                              every policy on a tiny model with a context of 65,536 tokens
//! scripts/endurance MODEL snapkv streaming-llm   these policies on a model of a folder or a GGUF file
//! ```

use burn::tensor::Device;
use polykv::models::{GenerateOptions, Generator, LoadedModel, load};
use polykv::policy::{Params, Policies};
use polykv::{Budget, Phase, Plan, Policy};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

const PROMPTS: usize = 200;
const STEPS: usize = 100;
const PROMPT_TOKENS: usize = 40;
const BUDGET: usize = 128;
/// Turns in which memory and caches reach their sizes.
const WARM_UP: usize = 20;
/// How much more a step may take in the last quarter than in the first, and how much more memory the process may hold.
/// A byte per step and layer that is never freed would be above.
const SLOWER: f64 = 1.25;
const GROWN_BYTES: u64 = 1 << 20;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs benches too, without this flag: a few turns, to see that they run.
    let measured = args.iter().any(|arg| arg == "--bench");
    args.retain(|arg| !arg.starts_with("--"));
    let prompts = if measured { PROMPTS } else { 3 };
    match run(&args, prompts) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("endurance: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String], prompts: usize) -> Result<bool, Failure> {
    let (folder, names) = match args {
        [] => (None, Vec::new()),
        [model, names @ ..] => (Some(PathBuf::from(model)), names.to_vec()),
    };
    let dir = tempfile::tempdir()?;
    let folder = match folder {
        Some(folder) => folder,
        None => {
            tiny_model(dir.path())?;
            dir.path().to_owned()
        }
    };
    let policies = Policies::default();
    let names = match names.is_empty() {
        true if prompts < PROMPTS => vec!["tova".to_owned()],
        true => policies.iter().map(|entry| entry.name.clone()).collect(),
        false => names,
    };
    println!(
        "| policy | steps | prompts | ms per step, first and last quarter | MiB, first and last quarter | |"
    );
    println!("|---|---|---|---|---|---|");
    let mut flat = true;
    for name in names {
        let policy = policies.build(&name, &Params::from_yaml("{}")?)?;
        let found = endure(&folder, policy, prompts)?;
        flat &= found.is_flat();
        println!("| {name} | {} | {prompts} | {found}", prompts * STEPS);
    }
    Ok(flat)
}

/// The model of the fixtures, with room for 65,536 tokens.
fn tiny_model(folder: &Path) -> Result<(), Failure> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    for name in ["tokenizer.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), folder.join(name))?;
    }
    let text = std::fs::read_to_string(fixture.join("config.json"))?;
    let mut config: serde_json::Value = serde_json::from_str(&text)?;
    config["max_position_embeddings"] = 65_536.into();
    std::fs::write(folder.join("config.json"), config.to_string())?;
    Ok(())
}

/// What every turn took.
struct Turns {
    milliseconds: Vec<f64>,
    bytes: Vec<u64>,
}

fn endure(folder: &Path, policy: Arc<dyn Policy>, prompts: usize) -> Result<Turns, Failure> {
    let mut model: LoadedModel = load(folder, &Device::flex())?;
    // Every turn runs all of its steps.
    model.eos_tokens.clear();
    let config = model.model.config();
    let (layers, vocab, context) = (config.layers.len(), config.vocab_size, config.max_positions);
    let plan = Plan::uniform(layers, policy, Budget::Tokens(BUDGET), &Phase::BOTH);
    let mut generator = Generator::new(model, plan)?;
    let options = GenerateOptions {
        max_new_tokens: STEPS,
        ..GenerateOptions::default()
    };
    let mut turns = Turns {
        milliseconds: Vec::with_capacity(prompts),
        bytes: Vec::with_capacity(prompts),
    };
    for turn in 0..prompts {
        if generator.cache().seen() + PROMPT_TOKENS + STEPS > context {
            generator.clear();
        }
        let token = |i: usize| ((turn * 131 + i * 17) % vocab) as u32;
        let prompt: Vec<u32> = (0..PROMPT_TOKENS).map(token).collect();
        let started = Instant::now();
        let run = generator.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?;
        let whole = started.elapsed();
        if run.tokens.len() != STEPS || run.decode_time > whole {
            return Err(format!("turn {turn} made {} tokens", run.tokens.len()).into());
        }
        let milliseconds = run.decode_time.as_secs_f64() * 1e3;
        turns
            .milliseconds
            .push(milliseconds / run.decode_steps as f64);
        turns.bytes.push(resident()?);
    }
    Ok(turns)
}

/// Bytes of this process that are in memory.
fn resident() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kib: u64 = kib.ok_or("no VmRSS")?.trim().parse()?;
    Ok(kib << 10)
}

impl Turns {
    /// Medians of the first and the last quarter after the warm-up.
    fn quarters<T: Copy + PartialOrd>(all: &[T]) -> [T; 2] {
        let warm = &all[WARM_UP.min(all.len() - 1)..];
        let quarter = warm.len().div_ceil(4);
        [&warm[..quarter], &warm[warm.len() - quarter..]].map(|part| {
            let mut part = part.to_vec();
            part.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
            part[part.len() / 2]
        })
    }

    fn is_flat(&self) -> bool {
        let [first, last] = Self::quarters(&self.milliseconds);
        let [before, after] = Self::quarters(&self.bytes);
        last <= first * SLOWER && after <= before + GROWN_BYTES
    }
}

impl std::fmt::Display for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, last] = Self::quarters(&self.milliseconds);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let [before, after] = Self::quarters(&self.bytes).map(mib);
        let verdict = if self.is_flat() { "flat" } else { "GROWS" };
        write!(
            f,
            "{first:.3}, {last:.3} | {before:.1}, {after:.1} | {verdict} |"
        )
    }
}
