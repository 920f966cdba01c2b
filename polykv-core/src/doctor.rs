//! Self-test of a device: the number formats that it has, and whether the operators are right on it.

mod codes;
mod fused;
mod host;
mod keys;

use crate::ops::{self, AttentionBlock, Mask, Places, Pool, Protect, Protected, Weight};
#[cfg(any(feature = "flex", feature = "cube"))]
use crate::ops::{BlockType, BlockWeight};
use crate::{Result, Storage};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use host::Inputs;
use serde::Serialize;

/// The result of the self-test for one operator.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The operator and its operands, in words.
    pub name: &'static str,
    /// Whether the result is right.
    pub ok: bool,
    /// The largest absolute difference from the same computation in f64 on the host, where elements are about 1. `None` for
    /// operators that choose slots or round to codes, which are right or wrong.
    pub max_error: Option<f64>,
}

/// The largest difference that is taken for rounding.
const TOLERANCE: f64 = 1e-4;

/// The storage formats that a device has.
pub fn formats(device: &Device) -> Vec<Storage> {
    let has = |storage: &Storage| storage.check(device).is_ok();
    Storage::ALL.into_iter().filter(has).collect()
}

/// Runs every operator on small inputs and compares the results with plain arithmetic in f64 on the host. On a GPU it takes
/// some seconds, most of them for compiling kernels.
///
/// # Errors
/// A device that cannot be read.
pub fn self_test(device: &Device) -> Result<Vec<Check>> {
    let inputs = Inputs::new();
    let mut checks = Vec::new();
    attention(&inputs, device, &mut checks)?;
    layers(&inputs, device, &mut checks)?;
    fused::fused(&inputs, device, &mut checks)?;
    choices(&inputs, device, &mut checks)?;
    order(&inputs, device, &mut checks)?;
    keys(&inputs, device, &mut checks)?;
    codes::codes(&inputs, device, &mut checks)?;
    Ok(checks)
}

fn attention(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let [q, k, v] = inputs.attention(device);
    let expected = inputs.attended();
    let mask = Mask::default();
    let mut sums: Option<Tensor<3>> = None;
    let mut add = |block: &AttentionBlock| {
        let part = block.column_sums();
        let [batch, heads, seen] = part.dims();
        let missing = Tensor::zeros([batch, heads, Inputs::TOKENS - seen], &part.device());
        let part = Tensor::cat(vec![part, missing], 2);
        sums = Some(match sums.take() {
            Some(sums) => sums + part,
            None => part,
        });
        Ok(())
    };
    let output = ops::attend(q.clone(), k.clone(), v.clone(), &mask, Some(&mut add))?;
    checks.push(compare("prompt attention", output, &expected.output)?);
    if let Some(sums) = sums {
        checks.push(compare("attention per key", sums, &expected.column_sums)?);
    }
    let (lengths, output) = inputs.lengths(&expected);
    let latest = lengths.iter().enumerate().map(|(kv, &length)| {
        let heads = q.clone().narrow(1, kv * Inputs::GROUP, Inputs::GROUP);
        heads.narrow(2, length - 1, 1)
    });
    let latest = Tensor::cat(latest.collect(), 1);
    let lengths = lengths.map(|length| length as i64).to_vec();
    let lengths = Tensor::from_data(TensorData::new(lengths, [1, Inputs::KV_HEADS]), device);
    let (found, _) = ops::attend_lengths(latest, k.clone(), v.clone(), lengths);
    checks.push(compare("attention over lengths", found, &output)?);
    let latest = q
        .clone()
        .narrow(2, Inputs::TOKENS - Inputs::WINDOW, Inputs::WINDOW);
    let last = q.narrow(2, Inputs::TOKENS - 1, 1);
    let mut row = None;
    let mut keep = |block: &AttentionBlock| {
        row = Some(block.last_row());
        Ok(())
    };
    let output = ops::attend(last.clone(), k.clone(), v, &mask, Some(&mut keep))?;
    checks.push(compare("token attention", output, &expected.last_output)?);
    if let Some(row) = row {
        checks.push(compare(
            "attention of the last query",
            row,
            &expected.last_row,
        )?);
    }
    let places = Places {
        positions: inputs.positions(device),
        seen: Inputs::TOKENS,
        window: None,
    };
    let (sums, variances) = ops::window_score(latest, k, &places, None);
    checks.push(compare("window sums", sums, &expected.window[0])?);
    checks.push(compare("window variances", variances, &expected.window[1])?);
    Ok(())
}

fn layers(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let (x, weight) = inputs.linear(device);
    let expected = inputs.product();
    for storage in formats(device) {
        let weight = weight.clone();
        let (name, stored) = match storage {
            Storage::F32 => ("product with f32 weights", weight.into()),
            Storage::F16 => ("product with f16 weights", weight.cast(DType::F16).into()),
            Storage::Bf16 => ("product with bf16 weights", weight.cast(DType::BF16).into()),
            Storage::Q8 => ("product with 8-bit weights", Weight::q8(weight)),
            #[cfg(any(feature = "flex", feature = "cube"))]
            Storage::Q4K => (
                "product with 4-bit blocks",
                blocks(BlockType::Q4_1, weight)?,
            ),
            #[cfg(any(feature = "flex", feature = "cube"))]
            Storage::Native => (
                "product with 8-bit blocks",
                blocks(BlockType::Q8_0, weight)?,
            ),
            #[cfg(not(any(feature = "flex", feature = "cube")))]
            Storage::Q4K | Storage::Native => continue,
        };
        let mut check = compare(name, ops::linear(x.clone(), &stored), &expected)?;
        // What the formats round away, in sums of 96 products of up to 1 and in results of up to 8, is no error.
        let allowed = match storage {
            Storage::F32 => TOLERANCE,
            Storage::F16 => 1e-2,
            Storage::Bf16 | Storage::Q8 | Storage::Native => 8e-2,
            Storage::Q4K => 5e-1,
        };
        check.ok = check.max_error.is_some_and(|error| error <= allowed);
        checks.push(check);
    }
    let ones = Tensor::<1>::ones([Inputs::WIDTH], device);
    let normed = ops::rms_norm(x.clone(), ones, 1e-5);
    checks.push(compare("RMS norm", normed, &inputs.normed())?);
    let found = ops::swiglu(x.clone(), x.clone());
    checks.push(compare("SwiGLU", found, &inputs.swiglu())?);
    checks.push(compare("GeGLU", ops::geglu(x.clone(), x), &inputs.geglu())?);
    let [q, ..] = inputs.attention(device);
    let [cos, sin] = inputs.rotations(device);
    let rotated = ops::rotate(q, cos, sin);
    checks.push(compare("rotary embedding", rotated, &inputs.rotated())?);
    Ok(())
}

/// The weight in blocks, on its device.
#[cfg(any(feature = "flex", feature = "cube"))]
fn blocks(kind: BlockType, weight: Tensor<2>) -> Result<Weight> {
    let (shape, device) = (weight.dims(), weight.device());
    let values: Vec<f32> = weight.try_into_vec_as().map_err(ops::read_error)?;
    Weight::on_device(BlockWeight::quantize(kind, shape, &values)?, &device)
}

fn choices(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let positions = inputs.positions(device);
    let protected = Protected {
        protect: Protect {
            sinks: 2,
            recent: 3,
        },
        spans: &[],
        seen: Inputs::TOKENS,
        oldest: 0,
    };
    let scores = inputs.scores(device);
    let slots = ops::select(scores.clone(), positions.clone(), protected, Inputs::BUDGET)?;
    checks.push(exact("selection", slots.clone(), &inputs.kept())?);
    let (victim, _) = ops::drop_lowest(scores, positions.clone(), protected);
    checks.push(exact("eviction", victim, &inputs.victims())?);
    let [_, k, v] = inputs.attention(device);
    let kept = inputs.kept();
    let moved = ops::compact((k, v, positions), slots, Inputs::BUDGET);
    checks.push(compare(
        "compaction",
        moved.0.clone(),
        &inputs.moved(&kept),
    )?);
    let key = moved.0.clone().narrow(2, 0, 1);
    let value = moved.1.clone().narrow(2, 0, 1);
    let last = TensorData::new(vec![Inputs::BUDGET as i64 - 1; 2], [1, 2, 1]);
    let victim = Tensor::from_data(last, device);
    let replaced = ops::replace(moved, victim, key, value, Inputs::TOKENS);
    let mut twice = kept;
    let heads = twice.chunks_exact_mut(Inputs::BUDGET);
    heads.for_each(|slots| slots[Inputs::BUDGET - 1] = slots[0]);
    checks.push(compare("replacement", replaced.0, &inputs.moved(&twice))?);
    Ok(())
}

fn order(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let scores = inputs.scores(device);
    let pooled = ops::pool(scores.clone(), None, Inputs::WINDOW, 5, Pool::Avg);
    checks.push(compare("pooling", pooled, &inputs.pooled(5))?);
    let victims = inputs.victims();
    let victim = || Tensor::from_data(TensorData::new(victims.clone(), [1, 2, 1]), device);
    let left = ops::drop_from_order(inputs.positions(device), victim(), false);
    checks.push(exact("order", left, &inputs.left())?);
    let moved = ops::move_last(scores, victim());
    checks.push(compare("statistics", moved, &inputs.moved_scores())?);
    Ok(())
}

fn keys(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let [_, k, _] = inputs.attention(device);
    let expected = inputs.compared();
    let norms = ops::key_norms(k.clone());
    checks.push(compare("key norms", norms.clone(), &expected.norms)?);
    let anchor = k.clone().narrow(2, 0, 1);
    let cosines = ops::key_cosines(k.clone(), norms, anchor);
    checks.push(compare("key cosines", cosines, &expected.cosines)?);
    let slots = |slots: &[i64]| {
        let dims = [1, 2, slots.len() / 2];
        Tensor::<3, Int>::from_data(TensorData::new(slots.to_vec(), dims), device)
    };
    let (evicted, kept) = (slots(&expected.evicted), slots(&inputs.kept()));
    let (cosines, places) = ops::closest(k.clone(), evicted.clone(), kept.clone());
    checks.push(exact("closest keys", places.clone(), &expected.places)?);
    let (parts, positions) = (cosines.clone(), inputs.positions(device));
    let spread = ops::spread_into(
        k.clone(),
        positions,
        evicted.clone(),
        kept.clone(),
        parts,
        Inputs::RECEIVERS,
    );
    checks.push(compare("spreading", spread, &expected.spread)?);
    let merged = ops::merge_into(k, evicted, kept, places, cosines);
    checks.push(compare("merging", merged, &expected.merged)?);
    Ok(())
}

fn compare<const D: usize>(
    name: &'static str,
    found: Tensor<D>,
    expected: &[f64],
) -> Result<Check> {
    let found: Vec<f32> = found.try_into_vec_as().map_err(ops::read_error)?;
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (f64::from(*a) - b).abs());
    let worst = differences.fold(
        0.0,
        |worst: f64, x| if x > worst || x.is_nan() { x } else { worst },
    );
    Ok(Check {
        name,
        ok: found.len() == expected.len() && worst <= TOLERANCE,
        max_error: Some(worst),
    })
}

fn exact(name: &'static str, found: Tensor<3, Int>, expected: &[i64]) -> Result<Check> {
    let found: Vec<i64> = found.try_into_vec_as().map_err(ops::read_error)?;
    Ok(Check {
        name,
        ok: found == expected,
        max_error: None,
    })
}

fn on<const D: usize>(values: Vec<f32>, dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, dims), device)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_every_check() {
        let checks = self_test(&Device::flex()).unwrap();
        assert!(checks.len() >= 20, "{checks:?}");
        for check in &checks {
            assert!(check.ok, "{check:?}");
        }
    }

    #[test]
    fn wrong_numbers_fail() {
        let device = Device::flex();
        let found = on(vec![1.0, 2.0], [2], &device);
        assert!(!compare("test", found.clone(), &[1.0, 2.001]).unwrap().ok);
        assert!(!compare("test", found.clone(), &[1.0]).unwrap().ok);
        assert!(!compare("test", found * f32::NAN, &[1.0, 2.0]).unwrap().ok);
    }
}
