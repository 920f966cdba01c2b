//! `polykv plan memory`: what the cache will occupy, computed from the model's config alone.

use crate::args::MemoryArgs;
use crate::compression::{Placed, Source};
use crate::output::{bytes, table};
use polykv::models::ModelConfig;
use polykv::models::config::SHAPES;
use polykv::models::load;
use polykv::{At, CacheEstimate, DeviceSpec, Error, LayerShape, Plan, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// FullKV and, if one is given, the plan: a table or one JSON object.
///
/// # Errors
/// A model or a plan that is refused; more tokens than the model's context.
pub fn text(args: &MemoryArgs) -> Result<String> {
    let (config, file) = config(&args.model)?;
    let storage = match file {
        Some(path) => match DeviceSpec::Cpu.open() {
            Ok(cpu) => args.dtype.of(path, &cpu)?,
            Err(_) => args.dtype.or_f32(),
        },
        None => args.dtype.or_f32(),
    };
    let most = config.max_positions;
    if args.prompt > most {
        let found = format!("{} tokens", args.prompt);
        let allowed = format!("at most {most} tokens, the model's context");
        return Err(Error::invalid("prompt", "length", found, allowed));
    }
    let new_tokens = args.new_tokens.min(most.saturating_sub(args.prompt));
    let cost = LayerShape {
        batch: args.batch,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        dtype: storage.cache(),
    }
    .cost(&config.windows());
    let estimate = |plan: &Plan, place: &str| {
        let estimate = plan.estimate(args.prompt, new_tokens, &cost);
        estimate.at(place)
    };
    let full = estimate(&Plan::full(config.layers.len()), "FullKV")?;
    let source = Source::read(&args.compression)?;
    let plan = match source {
        Source::Full => None,
        source => {
            let name = source.name();
            let Placed { place, file, plan } = source.plan(&config)?;
            Some((name, file.hash(), estimate(&plan, &place)?))
        }
    };
    let weights = match (storage.weight_bytes(config.parameters()), file) {
        (Some(bytes), _) => bytes,
        (None, Some(path)) => load::own_bytes(path)?,
        (None, None) => {
            let reason = "a published shape has no file";
            return Err(Error::unsupported(format!("dtype {storage}"), reason));
        }
    };
    if args.json {
        let plan = plan.as_ref().map(|(name, hash, estimate)| {
            let mut fields = numbers(estimate);
            fields.insert("name".into(), name.as_str().into());
            fields.insert("hash".into(), hash.as_str().into());
            fields
        });
        let mut object = json!({
            "computed": true,
            "model": args.model,
            "fingerprint": config.fingerprint(),
            "prompt_tokens": args.prompt,
            "new_tokens": new_tokens,
            "batch": args.batch,
            "dtype": storage.name(),
            "weight_bytes": weights,
            "full": numbers(&full),
        });
        if let (Some(fields), Some(plan)) = (object.as_object_mut(), plan) {
            fields.insert("plan".into(), plan.into());
        }
        return Ok(object.to_string());
    }
    let mut rows = table(&["plan", "steady", "peak", "of FullKV", "kept per layer"]);
    rows.add_row(cells("FullKV", &full, &full));
    if let Some((name, _, estimate)) = &plan {
        rows.add_row(cells(name, estimate, &full));
    }
    Ok(format!(
        "{} ({}): {} tokens of prompt and {new_tokens} new, batch {}\n\
         computed from the config, not measured; dtype {} (weights: {})\n{rows}",
        args.model,
        config.fingerprint(),
        args.prompt,
        args.batch,
        storage,
        bytes(weights as usize),
    ))
}

/// The shape and the path of its files. An existing path goes before a published shape.
fn config(model: &str) -> Result<(ModelConfig, Option<&Path>)> {
    let path = Path::new(model);
    if !model.is_empty() && path.exists() {
        return Ok((load::config(path)?, Some(path)));
    }
    let config = ModelConfig::named(model).ok_or_else(|| {
        let names: Vec<_> = SHAPES.iter().map(|(name, _)| *name).collect();
        let allowed = format!(
            "a folder with config.json, a .gguf file, or {}",
            names.join(", ")
        );
        Error::invalid("command line", "--model", format!("'{model}'"), allowed)
    })?;
    Ok((config, None))
}

fn numbers(estimate: &CacheEstimate) -> Map<String, Value> {
    let (min, mean, max) = kept(estimate);
    let fields = [
        ("steady_bytes", estimate.steady_bytes.into()),
        ("peak_bytes", estimate.peak_bytes.into()),
        ("kept_min", min.into()),
        ("kept_mean", mean.into()),
        ("kept_max", max.into()),
        ("kept", estimate.kept.clone().into()),
    ];
    fields
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

fn cells(name: &str, estimate: &CacheEstimate, full: &CacheEstimate) -> [String; 5] {
    let (min, mean, max) = kept(estimate);
    let share = 100.0 * estimate.steady_bytes as f64 / full.steady_bytes as f64;
    [
        name.to_string(),
        bytes(estimate.steady_bytes),
        bytes(estimate.peak_bytes),
        format!("{share:.1} %"),
        format!("min {min}, mean {mean:.1}, max {max}"),
    ]
}

fn kept(estimate: &CacheEstimate) -> (usize, f64, usize) {
    let kept = &estimate.kept;
    let mean = kept.iter().sum::<usize>() as f64 / kept.len().max(1) as f64;
    let (min, max) = (kept.iter().min(), kept.iter().max());
    (
        min.copied().unwrap_or_default(),
        mean,
        max.copied().unwrap_or_default(),
    )
}
