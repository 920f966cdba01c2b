//! What a session's file says in words: the JSON text in its header.

use super::LIMIT;
use crate::cache::pack::FARTHEST;
use crate::codes::Codes;
use crate::phase::Phase;
use crate::plan::PlanFile;
use crate::policy::State;
use crate::{Error, LayerShape, Result};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::ops::Range;

/// The version that this code writes and reads.
pub const VERSION: u32 = 1;

/// Positions and counts of tokens are below this, as devices hold them in 32 bits.
pub const MOST_TOKENS: usize = i32::MAX as usize;
const MOST_LAYERS: usize = 1024;
const MOST_BATCH: usize = 1 << 16;
const MOST_HEADS: usize = 1 << 16;
const MOST_DIM: usize = 1 << 16;
const MOST_BUDGET: usize = 1 << 40;
const MOST_SPANS: usize = 1 << 16;
/// Tensors of one kind, members and counts in a policy's state.
const MOST_PARTS: usize = 64;
/// Policies inside policies.
const MOST_DEPTH: usize = 8;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    pub version: u32,
    /// What the caller says that the model is.
    pub model: String,
    /// The plan as a file states it, in YAML.
    pub plan: String,
    /// What the plan does, see [`Plan::fingerprint`](crate::Plan::fingerprint).
    pub rules: String,
    /// Scale and soft-cap of attention in words.
    pub attention: String,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dtype: String,
    /// Tokens that each row was given.
    pub seen: usize,
    /// The position of each row's first token.
    pub first: Vec<usize>,
    /// How far the positions of the next tokens have been moved down.
    pub shift: usize,
    /// Positions that are protected from the next prompt on.
    pub spans: Vec<[usize; 2]>,
    /// Token ids that are still to be fed: none, or one per row.
    pub pending: Vec<u32>,
    pub layers: Vec<LayerMeta>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMeta {
    pub window: Option<usize>,
    /// Slots, free ones included.
    pub capacity: usize,
    pub prefill_budget: Option<usize>,
    pub decode_budget: Option<usize>,
    pub spans: Vec<[usize; 2]>,
    /// Whether the order of the slots by position is kept, because it is not that of the slots.
    pub ordered: bool,
    /// Whether all KV heads of a row hold the same positions in the same slots.
    pub heads_agree: bool,
    /// Queries that are remembered.
    pub queries: usize,
    pub prefill: StateMeta,
    pub decode: StateMeta,
    /// The codes in which keys and values are kept, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<Codes>,
    /// How many keys the channels that keys in codes are relative to were taken from.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub channels: usize,
    /// Which of the latest entries that are kept in floats beside codes is the next to go.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub next: usize,
    /// The KV heads of the rows, one after the other, if they have budgets of their own; tensors are theirs then. A head
    /// without a decode budget, where the layer has one, waits for its part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<LayerMeta>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// How many tensors of each kind a policy's state has, and its numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateMeta {
    pub entries: usize,
    pub rows: usize,
    pub sequence: usize,
    pub counts: Vec<usize>,
    pub members: Vec<StateMeta>,
}

impl LayerMeta {
    pub fn budget(&self, phase: Phase) -> Option<usize> {
        match phase {
            Phase::Prefill => self.prefill_budget,
            Phase::Decode => self.decode_budget,
        }
    }

    pub fn state(&self, phase: Phase) -> &StateMeta {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }
}

impl StateMeta {
    pub fn of(state: &State) -> Self {
        Self {
            entries: state.entries.len(),
            rows: state.rows.len(),
            sequence: state.sequence.len(),
            counts: state.counts.clone(),
            members: state.members.iter().map(Self::of).collect(),
        }
    }

    fn check(&self, place: &str, field: &str, depth: usize) -> Result<()> {
        for (name, found) in [
            ("entries", self.entries),
            ("rows", self.rows),
            ("sequence", self.sequence),
            ("counts", self.counts.len()),
            ("members", self.members.len()),
        ] {
            check_range(place, &format!("{field}.{name}"), found, 0, MOST_PARTS)?;
        }
        if depth > MOST_DEPTH {
            let allowed = format!("at most {MOST_DEPTH} deep");
            return Err(Error::invalid(place, field, "deeper", allowed));
        }
        let deeper = depth.saturating_add(1);
        self.members
            .iter()
            .try_for_each(|member| member.check(place, &format!("{field}.member"), deeper))
    }
}

impl Meta {
    /// Parses the text and checks every number that can be checked without the tensors.
    ///
    /// # Errors
    /// Another version, text that is no description of a session, and numbers out of range.
    pub fn parse(place: &str, text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let wrong = |e: serde_json::Error| {
            let found = format!("unreadable ({e})");
            Error::invalid(place, "description", found, "that of a session")
        };
        let Version { version } = serde_json::from_str(text).map_err(wrong)?;
        if version != u64::from(VERSION) {
            return Err(Error::invalid(place, "version", version, VERSION));
        }
        let meta: Self = serde_json::from_str(text).map_err(wrong)?;
        meta.check(place)?;
        Ok(meta)
    }

    /// The shape of the layers.
    ///
    /// # Errors
    /// A number format that keys and values cannot have.
    pub fn shape(&self, place: &str) -> Result<LayerShape> {
        let dtype = dtype_of(&self.dtype).ok_or_else(|| {
            let found = format!("'{}'", self.dtype);
            Error::invalid(place, "dtype", found, "f32, f16, bf16")
        })?;
        Ok(LayerShape {
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype,
        })
    }

    /// The plan that the text states. Names are looked up when it is built.
    ///
    /// # Errors
    /// What [`PlanFile::from_yaml`] refuses, and a number of layers other than the session's.
    pub fn plan(&self, place: &str) -> Result<PlanFile> {
        if self.plan.len() as u64 > crate::plan::MAX_FILE_BYTES {
            let found = format!("{} bytes", self.plan.len());
            let allowed = format!("at most {}", crate::plan::MAX_FILE_BYTES);
            return Err(Error::invalid(place, "size of the plan", found, allowed));
        }
        let file = PlanFile::from_yaml(&self.plan).map_err(|e| e.at(place))?;
        if file.layers != self.layers.len() {
            let allowed = format!("{}, the session's", self.layers.len());
            return Err(Error::plan("layers of the plan", file.layers, allowed).at(place));
        }
        Ok(file)
    }

    fn check(&self, place: &str) -> Result<()> {
        for (field, found, least, most) in [
            ("batch", self.batch, 1, MOST_BATCH),
            ("heads", self.heads, 1, MOST_HEADS),
            ("kv_heads", self.kv_heads, 1, self.heads),
            ("head_dim", self.head_dim, 1, MOST_DIM),
            ("seen", self.seen, 1, MOST_TOKENS),
            ("layers", self.layers.len(), 1, MOST_LAYERS),
        ] {
            check_range(place, field, found, least, most)?;
        }
        self.shape(place)?.check().map_err(|e| e.at(place))?;
        let rows = [
            ("first positions", self.first.len(), self.batch),
            ("pending tokens", self.pending.len(), self.batch),
        ];
        for (field, found, wanted) in rows {
            if found != wanted && !(found == 0 && field == "pending tokens") {
                let allowed = format!("{wanted}, the rows of the batch");
                return Err(Error::shape(place, field, found, allowed));
            }
        }
        check_range(place, "shift", self.shift, 0, self.seen.min(FARTHEST))?;
        let most = MOST_TOKENS.saturating_sub(self.seen);
        for first in &self.first {
            check_range(place, "first position", *first, 0, most)?;
        }
        check_spans(place, "spans", &self.spans)?;
        let heads = self.batch.saturating_mul(self.kv_heads);
        for (layer, meta) in self.layers.iter().enumerate() {
            let layer = format!("layer {layer}");
            meta.check(place, &layer)?;
            if meta.heads.is_empty() {
                continue;
            }
            let found = meta.heads.len();
            check_range(place, &format!("heads of {layer}"), found, heads, heads)?;
            meta.check_heads(place, &layer)?;
        }
        Ok(())
    }
}

impl LayerMeta {
    fn check(&self, place: &str, layer: &str) -> Result<()> {
        if let Some(window) = self.window {
            check_range(place, &format!("window of {layer}"), window, 1, LIMIT)?;
        }
        for phase in Phase::BOTH {
            if let Some(budget) = self.budget(phase) {
                let field = format!("{phase} budget of {layer}");
                check_range(place, &field, budget, 1, MOST_BUDGET)?;
            }
            let field = format!("{phase} state of {layer}");
            self.state(phase).check(place, &field, 1)?;
        }
        check_spans(place, &format!("spans of {layer}"), &self.spans)
    }

    /// # Errors
    /// Heads within heads, and heads that differ from their layer.
    fn check_heads(&self, place: &str, layer: &str) -> Result<()> {
        for (index, head) in self.heads.iter().enumerate() {
            let name = format!("head {index} of {layer}");
            head.check(place, &name)?;
            check_range(place, &format!("heads of {name}"), head.heads.len(), 0, 0)?;
            let alike = (head.window, head.prefill_budget) == (self.window, self.prefill_budget)
                && head.spans == self.spans
                && (self.decode_budget.is_some() || head.decode_budget.is_none());
            if !alike {
                let allowed = "the window, spans and budgets of its layer";
                return Err(Error::invalid(place, name, "another layer's", allowed));
            }
        }
        Ok(())
    }
}

/// Checks a number that a file states.
///
/// # Errors
/// A number outside of the range.
pub fn check_range(
    place: &str,
    field: &str,
    found: usize,
    least: usize,
    most: usize,
) -> Result<()> {
    match (least..=most).contains(&found) {
        true => Ok(()),
        false => {
            let allowed = format!("{least} to {most}");
            Err(Error::invalid(place, field, found, allowed))
        }
    }
}

fn check_spans(place: &str, field: &str, spans: &[[usize; 2]]) -> Result<()> {
    check_range(place, field, spans.len(), 0, MOST_SPANS)?;
    let mut last = 0;
    for [start, end] in spans {
        if start >= end || *start < last || *end > LIMIT {
            let found = format!("{start} to {end}");
            let allowed = format!("ranges in ascending order, up to {LIMIT}");
            return Err(Error::invalid(place, field, found, allowed));
        }
        last = *end;
    }
    Ok(())
}

/// Ranges as a file states them.
pub fn ranges(spans: &[Range<usize>]) -> Vec<[usize; 2]> {
    spans.iter().map(|span| [span.start, span.end]).collect()
}

/// The name of a number format of keys, values and statistics.
///
/// # Errors
/// Any other number format.
pub fn dtype_name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => Err(Error::unsupported(
            format!("a session with numbers of type {other:?}"),
            "allowed: f32, f16, bf16",
        )),
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => return None,
    })
}

/// The scale and the soft-cap of attention, for comparing.
pub fn attention(scale: Option<f64>, softcap: Option<f64>) -> String {
    let text = |value: Option<f64>, none: &str| match value {
        Some(value) => value.to_string(),
        None => none.to_string(),
    };
    format!(
        "scale {}, soft-cap {}",
        text(scale, "of the head"),
        text(softcap, "none")
    )
}

/// Refuses a session for a cache that differs from the one that was saved.
///
/// # Errors
/// Values that differ, with both.
pub fn same<T: PartialEq + Display>(place: &str, field: &str, found: T, cache: T) -> Result<()> {
    match found == cache {
        true => Ok(()),
        false => Err(Error::invalid(
            place,
            field,
            found,
            format!("{cache}, that of the cache"),
        )),
    }
}
