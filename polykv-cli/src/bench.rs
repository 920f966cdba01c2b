//! `polykv bench`: speed and memory of a model under FullKV and under plans.

mod measure;

use crate::args::{BenchArgs, Depths, KvDtype};
use crate::compression::{Change, Placed, Source};
use crate::model;
use crate::output::{bench as output, console, progress};
use measure::{Sample, Test};
use output::{Row, Spread};
use polykv::device::run_on;
use polykv::models::{CausalLm, ModelConfig, load, random};
use polykv::{Budget, Error, KvCache, machine, ops};

/// Tokens of the unmeasured first run on the CPU, where only the allocator and the clock speed need waking; more where a plan
/// cannot be carried out for so few.
const WARM_UP: usize = 32;

/// Depths unless said otherwise, as far as they fit the model.
const DEPTHS: [usize; 3] = [0, 2048, 8192];

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    check_lengths(args)?;
    let sources = sources(args)?;
    let (spec, device) = model::device(args.device)?;
    let model = model(args, &device)?;
    let tests = tests(args, model.config().max_positions)?;
    let subjects = subjects(sources, model.as_ref(), args.batch, &tests)?;

    let measuring = progress::spinner("measuring");
    let measured = run_on(&device, || {
        measure_all(args, model.as_ref(), &tests, &subjects)
    })?;
    measuring.finish_and_clear();
    let name = args.model.as_ref().or(args.random_weights.as_ref());
    let dtype = model.storage().name();
    let rows: Vec<Row> = measured
        .iter()
        .map(|rows| Row {
            test: rows.test.to_string(),
            plan: subjects[rows.subject].name.clone(),
            plan_hash: subjects[rows.subject].plan_hash.clone(),
            tok_s: Spread::of(rows.samples.iter().map(|sample| sample.tok_s)),
            ttft_ms: Spread::of(rows.samples.iter().map(|sample| sample.ttft * 1e3)),
            // Bytes and entries depend on lengths and budgets only, so every repeat has the same.
            kv: rows.samples[0].caches.clone(),
            bound_share: rows.bound_share(),
            bandwidth: rows.bandwidth(),
            model: name.cloned().unwrap_or_default(),
            random_weights: args.random_weights.is_some(),
            device: spec.to_string(),
            dtype,
            threads: machine::threads(),
            batch: args.batch,
            repeats: args.repeat,
            seed: args.seed,
        })
        .collect();
    let text = output::render(&rows, args.output)?;
    console::print(&text)
}

/// What can be said without the model.
fn check_lengths(args: &BenchArgs) -> polykv::Result<()> {
    let refuse = |field, found, allowed| Err(Error::invalid("command line", field, found, allowed));
    match (args.prompt, args.new_tokens) {
        (0, 0) => refuse(
            "--prompt and --new-tokens",
            "0 in both",
            "at least one above 0",
        ),
        (_, 0) if !args.depth.is_empty() => refuse(
            "--new-tokens",
            "0 beside --depth",
            "at least 1, or no --depth",
        ),
        _ => Ok(()),
    }
}

/// # Errors
/// Lengths beyond the model's context, unless nobody asked for them.
fn tests(args: &BenchArgs, context: usize) -> polykv::Result<Vec<Test>> {
    let tokens = args.new_tokens;
    // As many sequences of each depth as there are rows, unless they are rows of one cache.
    let decode = |depths: &[usize]| {
        let each = if depths.len() > 1 { args.batch } else { 1 };
        let depths = depths.iter().flat_map(|&depth| vec![depth; each]);
        let depths = depths.collect();
        Test::Decode { tokens, depths }
    };
    let prefill = Test::Prefill {
        tokens: args.prompt,
    };
    let mut tests: Vec<Test> = (args.prompt > 0).then_some(prefill).into_iter().collect();
    if tokens > 0 {
        let fits = |depth: usize| depth == 0 || decode(&[depth]).positions() <= context;
        let default = DEPTHS.into_iter().filter(|&depth| fits(depth));
        match args.depth.is_empty() {
            true => tests.extend(default.map(|depth| decode(&[depth]))),
            false => tests.extend(args.depth.iter().map(|Depths(depths)| decode(depths))),
        }
    }
    match tests.iter().find(|test| test.positions() > context) {
        Some(test) => Err(Error::invalid(
            format!("test {test}"),
            "length",
            format!("{} tokens", test.positions()),
            format!("at most {context} tokens, the model's context"),
        )),
        None => Ok(tests),
    }
}

/// FullKV, the plan files and the policies, each in every format of the entries.
fn sources(args: &BenchArgs) -> polykv::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let formats = match args.kv_dtype.as_slice() {
        [] => &[KvDtype::Cache],
        given => given,
    };
    let steps = match args.every.as_slice() {
        [] => vec![None],
        given => given.iter().map(|&tokens| Some(tokens)).collect(),
    };
    for format in formats {
        let codes = format.codes().map(Change::Codes);
        for (index, every) in steps.iter().enumerate() {
            let every = every.map(Change::Every);
            for source in plain_sources(args)? {
                match source {
                    // Nothing changes for FullKV.
                    Source::Full if index > 0 => {}
                    Source::Full => sources.push(source.changed([codes])),
                    source => sources.push(source.changed([codes, every])),
                }
            }
        }
    }
    Ok(sources)
}

fn plain_sources(args: &BenchArgs) -> polykv::Result<Vec<Source>> {
    let mut sources = vec![Source::Full];
    for path in &args.plan {
        sources.push(Source::file(path, false)?);
    }
    for policy in args.policy.iter().flat_map(|list| &list.0) {
        for &budget in &args.budget {
            sources.push(Source::uniform(policy, Budget::Tokens(budget))?);
        }
    }
    Ok(sources)
}

fn model(args: &BenchArgs, device: &burn::tensor::Device) -> polykv::Result<Box<dyn CausalLm>> {
    if let Some(name) = &args.random_weights
        && let Some(config) = ModelConfig::named(name)
    {
        let making = progress::spinner("making weights");
        let model = random::random_weights(name, config, args.seed, args.dtype.or_f32(), device);
        making.finish_and_clear();
        return model;
    }
    let path = model::path(
        args.model.as_deref().unwrap_or_default(),
        args.revision.as_deref(),
        args.offline,
    )?;
    let loading = progress::spinner("loading the model");
    let model = args
        .dtype
        .of(&path, device)
        .and_then(|storage| load::load_weights(&path, storage, device));
    loading.finish_and_clear();
    model
}

/// A plan with its empty caches.
struct Subject {
    name: String,
    plan_hash: String,
    /// Of as many rows as there are sequences side by side.
    cache: KvCache,
    /// Of one sequence.
    single: KvCache,
    /// Tokens of a first run.
    warm_up: usize,
}

fn subjects(
    sources: Vec<Source>,
    model: &dyn CausalLm,
    batch: usize,
    tests: &[Test],
) -> polykv::Result<Vec<Subject>> {
    let (shape, cost) = (model.cache_shape(batch), model.cache_cost(batch));
    let subject = |source: Source| {
        let name = source.name();
        let placed: Placed = source.plan(model.config())?;
        for prompt in tests.iter().flat_map(Test::prompts) {
            placed.check(prompt, &cost)?;
        }
        let mut lengths = std::iter::successors(Some(WARM_UP), |&length| length.checked_mul(2));
        let warm_up = lengths.find(|&length| {
            length >= model.config().max_positions || placed.check(length, &cost).is_ok()
        });
        let empty = |shape| KvCache::new(placed.plan.clone(), shape, model.device());
        let (cache, single) = (empty(shape)?, empty(model.cache_shape(1))?);
        Ok(Subject {
            name,
            plan_hash: placed.file.hash(),
            cache,
            single,
            warm_up: warm_up.unwrap_or(usize::MAX),
        })
    };
    sources.into_iter().map(subject).collect()
}

/// A test under one plan, with what its repeats took.
struct Measured {
    subject: usize,
    test: Test,
    samples: Vec<Sample>,
    /// Bytes per second that could be read at most, measured before each repeat.
    bandwidths: Vec<f64>,
}

impl Measured {
    fn bandwidth(&self) -> Option<f64> {
        let count = self.bandwidths.len();
        (count > 0).then(|| self.bandwidths.iter().sum::<f64>() / count as f64)
    }

    /// How much of the bandwidth decoding used, mean over the repeats. It can pass 1 where caches hold what is read.
    fn bound_share(&self) -> Option<f64> {
        let shares: Option<Vec<f64>> = self
            .samples
            .iter()
            .zip(&self.bandwidths)
            .map(|(sample, bandwidth)| Some(sample.bytes_per_second? / bandwidth))
            .collect();
        let shares = shares.filter(|shares| !shares.is_empty())?;
        Some(shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// All rows, plan by plan within a test. Each repeat goes once through all of them: a machine that changes its speed
/// does so for every row.
fn measure_all(
    args: &BenchArgs,
    model: &dyn CausalLm,
    tests: &[Test],
    subjects: &[Subject],
) -> polykv::Result<Vec<Measured>> {
    let cpu = ops::is_cpu(model.device());
    let mut rows: Vec<Measured> = tests
        .iter()
        .flat_map(|test| {
            (0..subjects.len()).map(move |subject| Measured {
                subject,
                test: test.clone(),
                samples: Vec::new(),
                bandwidths: Vec::new(),
            })
        })
        .collect();
    let sample = |row: &Measured, test: &Test, repeat: u64| {
        let subject = &subjects[row.subject];
        let empty = match test.prompts().len() {
            1 => &subject.cache,
            _ => &subject.single,
        };
        let seed = args.seed.wrapping_add(repeat);
        measure::run(model, empty, test, args.chunk, seed)
    };
    for row in &rows {
        // Other devices compile and tune kernels per shape, so they need the real lengths.
        let most = match cpu {
            true => subjects[row.subject].warm_up,
            false => usize::MAX,
        };
        sample(row, &row.test.shortened(most), 0)?;
    }
    for repeat in 0..args.repeat {
        let bandwidth = cpu.then(machine::read_bandwidth);
        for row in &mut rows {
            let taken = sample(row, &row.test, repeat as u64)?;
            row.samples.push(taken);
            row.bandwidths.extend(bandwidth);
        }
    }
    Ok(rows)
}
