//! NaN scores in a layer's evictions. On a GPU they are only known once somebody waits for it.

use super::LayerCache;
use super::joined::Joined;
use crate::Result;
use crate::ops::{self, Nans};
use crate::phase::Phase;
use burn::tensor::{DType, Tensor};

/// Why numbers that are finite in f32 are not.
const OVERFLOW: &str = "keys and values are stored as f16, which ends at 65504: try f32 or bf16";

impl LayerCache {
    /// Whether scores are known to have been NaN, without waiting for the device.
    pub(in crate::cache) fn has_known_nans(&self) -> bool {
        matches!(self.nans, Nans::Known(true)) || self.heads.iter().any(Self::has_known_nans)
    }

    fn take_nans(&mut self) -> Nans {
        for index in 0..self.heads.len() {
            if let Some(part) = self.heads.get_mut(index) {
                let nans = part.take_nans();
                self.remember_nans(nans);
            }
        }
        if let Some(nans) = self.joined.as_ref().and_then(Joined::nans) {
            self.remember_nans(nans);
        }
        std::mem::replace(&mut self.nans, Nans::Known(false))
    }

    /// Remembers whether scores were NaN until [`first_nan`] asks.
    pub(super) fn remember_nans(&mut self, nans: Nans) {
        let before = std::mem::replace(&mut self.nans, Nans::Known(false));
        self.nans = before.and(nans);
    }

    /// The reason to report when scores of this layer are NaN.
    pub(super) fn nan_reason(&self) -> String {
        let rules = self.rules.iter();
        let mut names: Vec<&str> = rules
            .flat_map(|rules| Phase::BOTH.map(|phase| rules.of(phase)))
            .flatten()
            .map(|eviction| eviction.policy.name())
            .collect();
        names.dedup();
        let cause = match self.shape.dtype {
            DType::F16 => OVERFLOW,
            _ => "its queries, keys or values are not finite",
        };
        let (layer, names) = (self.layer, names.join(" or "));
        format!("layer {layer}: a score of policy {names} is NaN; likely cause: {cause}")
    }

    /// What to say of keys and values that are not finite; `None` where all are. Waits for the device.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub(in crate::cache) fn not_finite(&self) -> Result<Option<String>> {
        for part in &self.heads {
            if let Some(found) = part.not_finite()? {
                return Ok(Some(found));
            }
        }
        let own = self.apart();
        let Some(store) = &own.store else {
            return Ok(None);
        };
        // What is not finite times zero is NaN.
        let zeros =
            [store.keys(), store.values()].map(|t| t.cast(DType::F32).mul_scalar(0.0).sum());
        let [keys, values] = zeros;
        let sum: Vec<f32> = keys
            .add(values)
            .try_into_vec_as()
            .map_err(ops::read_error)?;
        if sum.iter().all(|sum| sum.is_finite()) {
            return Ok(None);
        }
        let cause = match self.shape.dtype {
            DType::F16 => OVERFLOW,
            _ => "the weights or the layers before",
        };
        let layer = self.layer;
        let text = format!("layer {layer}: keys or values are not finite; likely cause: {cause}");
        Ok(Some(text))
    }
}

/// The reason to report for the first layer whose scores were NaN since the last call, if there is one. Waits for the
/// device.
///
/// # Errors
/// A device that cannot be read.
pub(in crate::cache) fn first_nan(layers: &mut [LayerCache]) -> Result<Option<String>> {
    let mut counts = Vec::new();
    let mut asked = Vec::new();
    let mut found = None;
    for (index, layer) in layers.iter_mut().enumerate() {
        match layer.take_nans() {
            Nans::Known(true) => found = found.or(Some(index)),
            Nans::Known(false) => {}
            Nans::OnDevice(count) => {
                asked.push((index, count.shape().num_elements()));
                counts.push(count.flatten::<1>(0, 1));
            }
        }
    }
    if !counts.is_empty() {
        let counts = Tensor::cat(counts, 0).try_into_vec_as::<f32>();
        let mut rest = counts.map_err(ops::read_error)?.into_iter();
        for (index, rows) in asked {
            let nans = rest
                .by_ref()
                .take(rows)
                .filter(|&count| count > 0.0)
                .count();
            if nans > 0 && found.is_none_or(|other| index < other) {
                found = Some(index);
            }
        }
    }
    let first = found.and_then(|index| layers.get(index));
    Ok(first.map(LayerCache::nan_reason))
}
