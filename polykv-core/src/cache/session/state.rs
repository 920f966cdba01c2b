//! What policies remember, as tensors of a session's file.

use super::file::{Incoming, Reader, Writer};
use super::meta::StateMeta;
use crate::policy::State;
use crate::{LayerShape, Result};
use burn::tensor::{Device, Tensor};

/// Adds the tensors of a state under names that start with `prefix`.
///
/// # Errors
/// Numbers of a type that sessions do not hold.
pub fn add(writer: &mut Writer<'_>, prefix: &str, state: &State) -> Result<()> {
    for (index, tensor) in state.entries.iter().enumerate() {
        writer.add(format!("{prefix}.entries.{index}"), tensor.clone())?;
    }
    for (index, tensor) in state.rows.iter().enumerate() {
        writer.add(format!("{prefix}.rows.{index}"), tensor.clone())?;
    }
    for (index, tensor) in state.sequence.iter().enumerate() {
        writer.add(format!("{prefix}.sequence.{index}"), tensor.clone())?;
    }
    for (index, member) in state.members.iter().enumerate() {
        add(writer, &format!("{prefix}.members.{index}"), member)?;
    }
    Ok(())
}

/// A state whose tensors have been checked, but for what only its policy knows.
#[derive(Debug)]
pub struct StateData {
    entries: Vec<Incoming>,
    rows: Vec<Incoming>,
    sequence: Vec<Incoming>,
    counts: Vec<usize>,
    members: Vec<StateData>,
}

impl StateData {
    /// Takes the tensors of a state whose layer holds `entries` entries.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or type, or not finite.
    pub fn take(
        reader: &mut Reader,
        prefix: &str,
        meta: &StateMeta,
        shape: LayerShape,
        entries: usize,
    ) -> Result<Self> {
        let each = [shape.batch, shape.kv_heads, entries].map(Some);
        let [batch, kv_heads, count] = each;
        let mut all = |kind: &str, count: usize, shape: &[Option<usize>]| {
            let one = |index| reader.take(&format!("{prefix}.{kind}.{index}"), None, shape);
            (0..count).map(one).collect::<Result<Vec<_>>>()
        };
        let entry_tensors = all("entries", meta.entries, &each)?;
        let rows = all("rows", meta.rows, &[batch, kv_heads, count, None])?;
        let sequence = all("sequence", meta.sequence, &[None; 4])?;
        let members = meta.members.iter().enumerate().map(|(index, member)| {
            let prefix = format!("{prefix}.members.{index}");
            Self::take(reader, &prefix, member, shape, entries)
        });
        Ok(Self {
            members: members.collect::<Result<_>>()?,
            entries: entry_tensors,
            rows,
            sequence,
            counts: meta.counts.clone(),
        })
    }

    /// The state on a device.
    ///
    /// # Errors
    /// Data that do not have their shape, which were checked.
    pub fn state(&self, reader: &Reader, device: &Device) -> Result<State> {
        let members = self.members.iter();
        let mut state = State::default();
        state.entries = tensors(reader, &self.entries, device)?;
        state.rows = tensors(reader, &self.rows, device)?;
        state.sequence = tensors(reader, &self.sequence, device)?;
        state.counts.clone_from(&self.counts);
        state.members = members
            .map(|member| member.state(reader, device))
            .collect::<Result<_>>()?;
        Ok(state)
    }
}

fn tensors<const D: usize>(
    reader: &Reader,
    all: &[Incoming],
    device: &Device,
) -> Result<Vec<Tensor<D>>> {
    let tensors = all.iter();
    tensors
        .map(|tensor| self::tensor(reader, tensor, device))
        .collect()
}

/// A tensor of a file on a device.
///
/// # Errors
/// Data that do not have their shape, which were checked.
pub fn tensor<const D: usize>(
    reader: &Reader,
    tensor: &Incoming,
    device: &Device,
) -> Result<Tensor<D>> {
    Ok(Tensor::from_data(
        reader.data(tensor)?,
        (device, tensor.dtype),
    ))
}
