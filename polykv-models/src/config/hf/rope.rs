//! The rotary embeddings in a config.json.

use super::super::checks::{MAX_POSITIONS, check_positive, check_size};
use super::super::fields::{Fields, shown};
use super::super::rope::mscale;
use super::super::{RopeConfig, RopeScaling};
use polykv_core::{Error, Result};
use serde_json::{Map, Value};

/// The share of a head that is rotated.
const PARTIAL: &str = "partial_rotary_factor";

/// The key of layers that see every token, in files with one object per kind of layer.
const FULL: &str = "full_attention";
/// The key of layers with a window.
const SLIDING: &str = "sliding_attention";

/// What a family's rotary embeddings are where its config says nothing.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    /// The base.
    pub theta: f64,
    /// The base in layers with a window, which are not scaled then; `None` if they have the same embedding as the others.
    pub local_theta: Option<f64>,
}

/// The sizes that rotary embeddings depend on.
#[derive(Clone, Copy)]
pub(super) struct RopeSizes {
    pub head_dim: usize,
    pub max_positions: usize,
    /// The context of the original training, if the file states one beside the rotary embedding.
    pub original: Option<usize>,
}

/// The rotary embeddings of layers that see every token and of those with a window. Newer files hold them in
/// `rope_parameters`, one object per kind if they differ, older ones in fields beside each other.
pub(super) fn read(
    json: &Fields,
    defaults: RopeDefaults,
    sizes: RopeSizes,
) -> Result<[RopeConfig; 2]> {
    let top = RopeConfig {
        theta: json.number("rope_theta")?.unwrap_or(defaults.theta),
        rotated: rotated(json, sizes.head_dim)?.unwrap_or(sizes.head_dim),
        scaling: RopeScaling::None,
    };
    let maps = [
        ("rope_parameters", json.object("rope_parameters")?),
        ("rope_scaling", json.object("rope_scaling")?),
    ];
    let mut found: Option<[RopeConfig; 2]> = None;
    for (field, map) in maps {
        let Some(map) = map else { continue };
        // What rope_parameters say of the base counts for rope_scaling too.
        let top = found.as_ref().map_or(&top, |[full, _]| full);
        let kinds = read_kinds(json, field, map, top, defaults, sizes)?;
        if found.as_ref().is_some_and(|before| *before != kinds) {
            let found = "not what rope_parameters say";
            let allowed = "the same as rope_parameters, or only one of the two";
            return Err(Error::invalid(json.place, field, found, allowed));
        }
        found = Some(kinds);
    }
    match found {
        Some(kinds) => Ok(kinds),
        None => {
            let local = local(json, &top, defaults)?;
            Ok([top, local])
        }
    }
}

/// The embedding of layers with a window, where no object of theirs states one.
fn local(json: &Fields, full: &RopeConfig, defaults: RopeDefaults) -> Result<RopeConfig> {
    let Some(theta) = defaults.local_theta else {
        return Ok(full.clone());
    };
    Ok(RopeConfig {
        theta: json.number("rope_local_base_freq")?.unwrap_or(theta),
        scaling: RopeScaling::None,
        ..full.clone()
    })
}

fn read_kinds(
    json: &Fields,
    field: &str,
    map: &Map<String, Value>,
    top: &RopeConfig,
    defaults: RopeDefaults,
    sizes: RopeSizes,
) -> Result<[RopeConfig; 2]> {
    let object = |kind: &str| map.get(kind).and_then(Value::as_object);
    let one = |kind: &str, map, top: &RopeConfig| {
        read_map(json.place, &format!("{field} {kind}"), map, top, sizes)
    };
    if let Some((name, _)) = map
        .iter()
        .find(|(name, value)| value.is_object() && ![FULL, SLIDING].contains(&name.as_str()))
    {
        let what = format!("{field} with an object {}", shown(name));
        let reason = format!(
            "{}: allowed are plain values, or objects {FULL} and {SLIDING}",
            json.place
        );
        return Err(Error::unsupported(what, reason));
    }
    let full = match (object(FULL), object(SLIDING)) {
        (None, None) => read_map(json.place, field, map, top, sizes)?,
        (Some(full), _) => one(FULL, full, top)?,
        (None, Some(_)) => top.clone(),
    };
    let local = local(json, &full, defaults)?;
    let sliding = match object(SLIDING) {
        Some(sliding) => one(SLIDING, sliding, &local)?,
        None => local,
    };
    Ok([full, sliding])
}

/// How many elements of a head are rotated, if that is stated.
fn rotated(json: &Fields, head_dim: usize) -> Result<Option<usize>> {
    let Some(part) = json.number(PARTIAL)? else {
        return Ok(None);
    };
    check_positive(json.place, &format!("{}{PARTIAL}", json.prefix), part, 1.0)?;
    Ok(Some((head_dim as f64 * part) as usize))
}

fn read_map(
    place: &str,
    field: &str,
    map: &Map<String, Value>,
    top: &RopeConfig,
    sizes: RopeSizes,
) -> Result<RopeConfig> {
    let prefix = format!("{field} ");
    let rope = Fields {
        place,
        prefix: &prefix,
        map,
    };
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: rope.required_number("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required_number("factor")?,
            low_freq_factor: rope.required_number("low_freq_factor")?,
            high_freq_factor: rope.required_number("high_freq_factor")?,
            original_max_positions: rope.required("original_max_position_embeddings")?,
        },
        "yarn" => read_yarn(&rope, sizes.max_positions)?,
        "longrope" | "su" => read_longrope(&rope, sizes)?,
        other => {
            let reason = format!("{place}: allowed are default, linear, llama3, yarn and longrope");
            let what = format!("{prefix}type {}", shown(other));
            return Err(Error::unsupported(what, reason));
        }
    };
    Ok(RopeConfig {
        theta: rope.number("rope_theta")?.unwrap_or(top.theta),
        rotated: rotated(&rope, sizes.head_dim)?.unwrap_or(top.rotated),
        scaling,
    })
}

/// The original context is stated here or beside the rotary embedding.
fn read_longrope(rope: &Fields, sizes: RopeSizes) -> Result<RopeScaling> {
    let original = match rope.size("original_max_position_embeddings")? {
        Some(original) => Some(original),
        None => sizes.original,
    };
    let factors = [
        rope.required_numbers("short_factor")?,
        rope.required_numbers("long_factor")?,
    ];
    let attention_factor = rope.number("attention_factor")?;
    let original = original.ok_or_else(|| rope.missing("original_max_position_embeddings"))?;
    let field = format!("{}original_max_position_embeddings", rope.prefix);
    check_size(rope.place, &field, original, MAX_POSITIONS)?;
    Ok(RopeScaling::longrope(
        factors,
        attention_factor,
        sizes.max_positions,
        original,
    ))
}

/// Defaults as in transformers.
fn read_yarn(rope: &Fields, max_positions: usize) -> Result<RopeScaling> {
    let factor = rope.required_number("factor")?;
    let weights = (rope.number("mscale")?, rope.number("mscale_all_dim")?);
    let attention_factor = match (rope.number("attention_factor")?, weights) {
        (Some(given), _) => given,
        (None, (Some(part), Some(all))) if part != 0.0 && all != 0.0 => {
            mscale(factor, part) / mscale(factor, all)
        }
        (None, _) => mscale(factor, 1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_positions: rope
            .size("original_max_position_embeddings")?
            .unwrap_or(max_positions),
        beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: rope.flag("truncate")?.unwrap_or(true),
    })
}
