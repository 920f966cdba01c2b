//! A layer's entries in codes in a session's file.

use super::file::{Incoming, Reader};
use super::meta::{LayerMeta, check_range};
use super::state;
use crate::codes::Codes;
use crate::ops::coded::{Channels, Coded, CodedEntries, Exact};
use crate::{Error, LayerShape, Result};
use burn::tensor::{DType, Device, Tensor, TensorData};

/// The tensors of keys and values in codes, which fit each other.
#[derive(Debug)]
pub struct CodeData {
    codes: Codes,
    /// `[batch, kv_heads, entries, words]`, row-major.
    keys: Vec<u32>,
    values: Vec<u32>,
    /// Mean and scale of the keys' channels, and how many keys they were taken from.
    channels: ([Incoming; 2], usize),
    /// What is kept in floats beside the codes.
    exact: Option<ExactData>,
}

#[derive(Debug)]
struct ExactData {
    keys: Incoming,
    values: Incoming,
    slots: Vec<i64>,
    next: usize,
}

impl CodeData {
    /// Takes the tensors of a layer with `entries` entries, whose names start with `prefix`.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or type, or not finite, and slots beyond the entries.
    pub fn take(
        reader: &mut Reader,
        prefix: &str,
        codes: Codes,
        meta: &LayerMeta,
        shape: LayerShape,
        entries: usize,
    ) -> Result<Self> {
        let name = |what: &str| format!("{prefix}.{what}");
        let dims = |count: usize, last: usize| [shape.batch, shape.kv_heads, count, last].map(Some);
        let words = dims(entries, codes.words(shape.head_dim));
        let keys = reader.take_numbers(&name("keys"), &words)?;
        let values = reader.take_numbers(&name("values"), &words)?;
        let each = dims(1, shape.head_dim);
        let mean = reader.take(&name("channels.mean"), Some(DType::F32), &each)?;
        let scale = reader.take(&name("channels.scale"), Some(DType::F32), &each)?;
        let exact = match codes {
            Codes::Q8 => None,
            Codes::Q4 => Some(ExactData::take(reader, prefix, meta, shape, entries)?),
        };
        Ok(Self {
            codes,
            keys,
            values,
            channels: ([mean, scale], meta.channels),
            exact,
        })
    }

    /// The entries on a device.
    ///
    /// # Errors
    /// Numbers that stand for no finite vectors.
    pub fn entries(
        &self,
        reader: &Reader,
        layer: usize,
        shape: LayerShape,
        entries: usize,
        device: &Device,
    ) -> Result<CodedEntries> {
        let ([mean, scale], count) = &self.channels;
        let channels = Channels {
            mean: state::tensor(reader, mean, device)?,
            scale: state::tensor(reader, scale, device)?,
            count: *count,
        };
        let coded = |what: &str, words: &[u32], channels: Option<Channels>| {
            let dims = [shape.batch, shape.kv_heads, entries];
            let coded =
                Coded::from_numbers(words, dims, shape.head_dim, self.codes, channels, device);
            coded.map_err(|found| {
                let field = format!("{what} of layer {layer}");
                Error::invalid(reader.place(), field, found, "finite numbers")
            })
        };
        let slots = [shape.batch, shape.kv_heads, Exact::COUNT];
        let exact = self.exact.as_ref().map(|exact| {
            Ok::<_, Error>(Exact {
                keys: state::tensor(reader, &exact.keys, device)?,
                values: state::tensor(reader, &exact.values, device)?,
                slots: Tensor::from_data(TensorData::new(exact.slots.clone(), slots), device),
                next: exact.next,
            })
        });
        Ok(CodedEntries {
            keys: coded("keys", &self.keys, Some(channels))?,
            values: coded("values", &self.values, None)?,
            exact: exact.transpose()?,
        })
    }
}

impl ExactData {
    fn take(
        reader: &mut Reader,
        prefix: &str,
        meta: &LayerMeta,
        shape: LayerShape,
        entries: usize,
    ) -> Result<Self> {
        let name = |what: &str| format!("{prefix}.exact.{what}");
        let [batch, kv_heads, count] = [shape.batch, shape.kv_heads, Exact::COUNT].map(Some);
        let dims = [batch, kv_heads, count, Some(shape.head_dim)];
        let keys = reader.take(&name("keys"), Some(shape.dtype), &dims)?;
        let values = reader.take(&name("values"), Some(shape.dtype), &dims)?;
        let slots = reader.take_numbers(&name("slots"), &dims[..3])?;
        // All bits set stand for none.
        let stated = slots.iter().filter(|&&slot| slot != u32::MAX);
        if let Some(slot) = stated.copied().find(|&slot| slot as usize >= entries) {
            let allowed = format!("below {entries}, the entries");
            return Err(Error::invalid(reader.place(), name("slots"), slot, allowed));
        }
        let field = format!("{prefix}.next");
        check_range(reader.place(), &field, meta.next, 0, Exact::RECENT - 1)?;
        Ok(Self {
            keys,
            values,
            slots: slots.iter().map(|&slot| i64::from(slot as i32)).collect(),
            next: meta.next,
        })
    }
}
