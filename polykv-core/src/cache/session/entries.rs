//! One layer's entries in a session's file.

use super::codes::CodeData;
use super::file::{Incoming, Reader};
use super::meta::{LayerMeta, check_range};
use super::state::StateData;
use crate::facts::most_entries;
use crate::phase::Phase;
use crate::{Error, LayerShape, Result};
use burn::tensor::DType;

/// The tensors of a layer, which fit each other.
#[derive(Debug)]
pub struct LayerData {
    /// Entries per KV head.
    pub entries: usize,
    pub vectors: VectorData,
    /// `[batch, kv_heads, entries]`, row-major.
    pub positions: Vec<u32>,
    pub queries: Option<Incoming>,
    /// How far entries lie behind their positions, if keys were moved.
    pub behind: Option<Incoming>,
    pub prefill: StateData,
    pub decode: StateData,
}

/// Keys and values as the layer keeps them.
#[derive(Debug)]
pub enum VectorData {
    Floats([Incoming; 2]),
    Codes(Box<CodeData>),
}

/// The tensors of a layer, or those of each of its heads if they have budgets of their own.
///
/// # Errors
/// Those of [`LayerData::take`].
pub fn take_layer(
    reader: &mut Reader,
    layer: usize,
    meta: &LayerMeta,
    shape: LayerShape,
    given: [usize; 2],
) -> Result<Vec<LayerData>> {
    if meta.heads.is_empty() {
        let name = format!("layer.{layer}");
        return Ok(vec![LayerData::take(
            reader, layer, &name, meta, shape, given,
        )?]);
    }
    let shape = shape.of_head();
    let heads = meta.heads.iter().enumerate().map(|(index, meta)| {
        let name = format!("layer.{layer}.head.{index}");
        LayerData::take(reader, layer, &name, meta, shape, given)
    });
    heads.collect()
}

impl LayerData {
    /// Takes the tensors of layer `layer`, whose names start with `prefix`, after `seen` tokens, whose latest positions were
    /// moved down by `shift`.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or type, or not finite; positions that repeat or were never seen; more entries
    /// than tokens or than the layer's window holds; heads that do not agree though the description says so.
    pub fn take(
        reader: &mut Reader,
        layer: usize,
        prefix: &str,
        meta: &LayerMeta,
        shape: LayerShape,
        [seen, shift]: [usize; 2],
    ) -> Result<Self> {
        let name = |what: &str| format!("{prefix}.{what}");
        let LayerShape {
            batch,
            heads,
            kv_heads,
            head_dim,
            dtype,
        } = shape;
        let [rows, keyed, dim] = [batch, kv_heads, head_dim].map(Some);
        let field = format!("entries of layer {layer}");
        let most = seen.min(most_entries(meta.window));
        let (vectors, entries) = match meta.kv {
            None => {
                let keys = reader.take(&name("keys"), Some(dtype), &[rows, keyed, None, dim])?;
                let entries = keys.shape.get(2).copied().unwrap_or(0);
                check_range(reader.place(), &field, entries, 1, most)?;
                let dims = [rows, keyed, Some(entries), dim];
                let values = reader.take(&name("values"), Some(dtype), &dims)?;
                (VectorData::Floats([keys, values]), entries)
            }
            Some(codes) => {
                let entries = reader.dim(&name("keys"), 2)?;
                check_range(reader.place(), &field, entries, 1, most)?;
                let data = CodeData::take(reader, prefix, codes, meta, shape, entries)?;
                (VectorData::Codes(data.into()), entries)
            }
        };
        let count = Some(entries);
        let positions = reader.take_numbers(&name("positions"), &[rows, keyed, count])?;
        check_positions(reader.place(), layer, meta, shape, seen, &positions)?;
        let queries = match meta.queries {
            0 => None,
            count => {
                let field = format!("queries of layer {layer}");
                check_range(reader.place(), &field, count, 0, seen)?;
                let dims = [batch, heads, count, head_dim].map(Some);
                Some(reader.take(&name("queries"), Some(DType::F32), &dims)?)
            }
        };
        let behind = match shift {
            0 => None,
            _ => Some(take_behind(
                reader,
                &name("behind"),
                shape,
                entries,
                [seen, shift],
            )?),
        };
        let mut state = |phase: Phase| {
            let prefix = name(&phase.to_string());
            StateData::take(reader, &prefix, meta.state(phase), shape, entries)
        };
        Ok(Self {
            entries,
            prefill: state(Phase::Prefill)?,
            decode: state(Phase::Decode)?,
            vectors,
            positions,
            queries,
            behind,
        })
    }

    pub fn state(&self, phase: Phase) -> &StateData {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// The positions of each row and KV head.
    pub fn heads(&self) -> impl Iterator<Item = &[u32]> {
        self.positions.chunks(self.entries.max(1))
    }

    /// Whether the slots of every head are in ascending order of position.
    pub fn is_ascending(&self) -> bool {
        self.heads().all(|head| head.is_sorted())
    }

    /// The slots in ascending order of position, `[batch, kv_heads, entries]`, row-major.
    pub fn order(&self) -> Vec<i64> {
        let order = |head: &[u32]| {
            let mut slots: Vec<(u32, i64)> = head.iter().copied().zip(0..).collect();
            slots.sort_unstable();
            slots.into_iter().map(|(_, slot)| slot)
        };
        self.heads().flat_map(order).collect()
    }
}

/// # Errors
/// What is no offset that moving keys gives.
fn take_behind(
    reader: &mut Reader,
    name: &str,
    shape: LayerShape,
    entries: usize,
    [seen, shift]: [usize; 2],
) -> Result<Incoming> {
    let dims = [shape.batch, shape.kv_heads, entries].map(Some);
    let behind = reader.take(name, Some(DType::F32), &dims)?;
    let data = reader.data(&behind)?;
    let (offsets, _) = data.bytes().as_chunks::<4>();
    let mut offsets = offsets.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let (least, most) = (-(seen as f32), shift as f32);
    match offsets.find(|&offset| offset.fract() != 0.0 || offset > most || offset < least) {
        None => Ok(behind),
        Some(offset) => {
            let field = format!("number in tensor {name}");
            let allowed = format!("a whole number, at most {shift}");
            Err(Error::invalid(reader.place(), field, offset, allowed))
        }
    }
}

fn check_positions(
    place: &str,
    layer: usize,
    meta: &LayerMeta,
    shape: LayerShape,
    seen: usize,
    positions: &[u32],
) -> Result<()> {
    let field = format!("positions of layer {layer}");
    let rows = shape.batch.saturating_mul(shape.kv_heads).max(1);
    let entries = positions.len().checked_div(rows).unwrap_or(0).max(1);
    let mut first_of_row: &[u32] = &[];
    for (index, head) in positions.chunks(entries).enumerate() {
        if let Some(position) = head.iter().find(|&&position| position as usize >= seen) {
            let allowed = format!("below {seen}, the tokens seen");
            return Err(Error::invalid(place, field, position, allowed));
        }
        let mut sorted = head.to_vec();
        sorted.sort_unstable();
        if let Some([twice, _]) = sorted.array_windows().find(|[a, b]| a == b) {
            let found = format!("{twice} twice in a head");
            return Err(Error::invalid(place, field, found, "each position once"));
        }
        if index.checked_rem(shape.kv_heads) == Some(0) {
            first_of_row = head;
        }
        if meta.heads_agree && head != first_of_row {
            let found = "different in the heads of a row";
            let allowed = "the same, as heads_agree says";
            return Err(Error::invalid(place, field, found, allowed));
        }
    }
    Ok(())
}
