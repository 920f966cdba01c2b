//! Rounding of f32 to block types: what a checkpoint in floats is stored as with fewer bits.

use super::block_type::BlockType;
use super::blocks::BlockWeight;
use crate::{Error, Result};
use half::f16;
use rayon::prelude::*;

/// Numbers that share a scale and a minimum in 4 bits.
const RUN: usize = 32;

/// Rounds of least squares for the scale and the minimum of a run.
const ROUNDS: usize = 4;

impl BlockWeight {
    /// Rounds a weight `[rows, columns]` in f32 to blocks of a type: Q8_0, Q4_1 or Q4_K. In 4 bits, scale and minimum of
    /// each run of 32 numbers are fitted to it by least squares.
    ///
    /// # Errors
    /// Another type; columns that are no whole number of blocks; another number of values than the shape has; numbers that
    /// are not finite, or whose scale f16 cannot hold.
    pub fn quantize(kind: BlockType, shape: [usize; 2], values: &[f32]) -> Result<Self> {
        let encode: fn(&[f32], &mut Vec<u8>) = match kind {
            BlockType::Q8_0 => q8_0,
            BlockType::Q4_1 => q4_1,
            BlockType::Q4K => q4_k,
            other => {
                let allowed = "Q8_0, Q4_1 and Q4_K";
                return Err(Error::invalid("weight", "type to round to", other, allowed));
            }
        };
        if shape[0].checked_mul(shape[1]) != Some(values.len()) {
            let allowed = format!("{} times {}", shape[0], shape[1]);
            return Err(Error::invalid(kind, "values", values.len(), allowed));
        }
        let blocks = values.par_chunks_exact(kind.elements());
        let bytes: Vec<u8> = blocks
            .fold(Vec::new, |mut bytes, block| {
                encode(block, &mut bytes);
                bytes
            })
            .reduce(Vec::new, |mut all, bytes| {
                all.extend_from_slice(&bytes);
                all
            });
        let weight = Self::new(kind, shape, bytes.into())?;
        match weight.first_not_finite() {
            None => Ok(weight),
            Some((row, value)) => {
                let field = format!("scale in row {row}");
                Err(Error::invalid(kind, field, value, "what f16 can hold"))
            }
        }
    }
}

fn q8_0(block: &[f32], bytes: &mut Vec<u8>) {
    let most = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = put_half(most / 127.0, bytes);
    let round = |x: &f32| (x * inverse(scale)).round().clamp(-127.0, 127.0) as i8 as u8;
    bytes.extend(block.iter().map(round));
}

fn q4_1(block: &[f32], bytes: &mut Vec<u8>) {
    let fit = Fit::of(block);
    let scale = put_half(fit.scale, bytes);
    let minimum = put_half(fit.minimum, bytes);
    let number = |x: f32| round(x, scale, minimum);
    let (low, high) = block.split_at(RUN / 2);
    bytes.extend(
        low.iter()
            .zip(high)
            .map(|(&x, &y)| number(x) | number(y) << 4),
    );
}

fn q4_k(block: &[f32], bytes: &mut Vec<u8>) {
    let runs = block.as_chunks::<RUN>().0;
    let mut fits = [Fit::default(); 8];
    for (fit, run) in fits.iter_mut().zip(runs) {
        *fit = Fit::of(run);
        // The format subtracts a minimum that is not negative.
        fit.minimum = fit.minimum.min(0.0);
    }
    let most = |of: fn(&Fit) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let d = put_half(most(|fit| fit.scale) / 63.0, bytes);
    let dmin = put_half(most(|fit| -fit.minimum) / 63.0, bytes);
    let six_bits = |x: f32, unit: f32| (x * inverse(unit)).round().clamp(0.0, 63.0) as u8;
    let scales = fits.map(|fit| six_bits(fit.scale, d));
    let minima = fits.map(|fit| six_bits(-fit.minimum, dmin));
    bytes.extend((0..4).map(|r| scales[r] | scales[r + 4] >> 4 << 6));
    bytes.extend((0..4).map(|r| minima[r] | minima[r + 4] >> 4 << 6));
    bytes.extend((4..8).map(|r| scales[r] & 15 | minima[r] << 4));
    let number = |r: usize, x: f32| {
        let (scale, minimum) = (d * f32::from(scales[r]), -dmin * f32::from(minima[r]));
        round(x, scale, minimum)
    };
    for r in (0..8).step_by(2) {
        let pairs = runs[r].iter().zip(&runs[r + 1]);
        bytes.extend(pairs.map(|(&x, &y)| number(r, x) | number(r + 1, y) << 4));
    }
}

/// Appends a number in half precision and returns what it became.
fn put_half(x: f32, bytes: &mut Vec<u8>) -> f32 {
    let half = f16::from_f32(x);
    bytes.extend(half.to_le_bytes());
    half.to_f32()
}

/// 0 for 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The integer of four bits next to `(x − minimum) / scale`.
fn round(x: f32, scale: f32, minimum: f32) -> u8 {
    ((x - minimum) * inverse(scale)).round().clamp(0.0, 15.0) as u8
}

/// `scale · q + minimum`, q from 0 to 15.
#[derive(Clone, Copy, Default)]
struct Fit {
    scale: f32,
    minimum: f32,
}

impl Fit {
    /// Starts from the range of the numbers; then integers and line are fitted to each other in turn, as long as the error
    /// falls.
    fn of(run: &[f32]) -> Self {
        let (low, high) = run.iter().fold((0.0f32, f32::MIN), |(low, high), &x| {
            (low.min(x), high.max(x))
        });
        let mut best = Self {
            scale: (high - low) / 15.0,
            minimum: low,
        };
        let mut least = best.error(run);
        let mut fit = best;
        for _ in 0..ROUNDS {
            let Some(next) = fit.line(run) else { break };
            fit = next;
            let error = fit.error(run);
            if error < least {
                (best, least) = (fit, error);
            }
        }
        best
    }

    fn error(self, run: &[f32]) -> f32 {
        let square = |&x: &f32| {
            let q = f32::from(round(x, self.scale, self.minimum));
            (self.scale * q + self.minimum - x).powi(2)
        };
        run.iter().map(square).sum()
    }

    /// The line through the numbers over their integers, by least squares; through 0 where it would be above it there.
    fn line(self, run: &[f32]) -> Option<Self> {
        let n = run.len() as f32;
        let (mut q1, mut q2, mut x1, mut qx) = (0.0, 0.0, 0.0, 0.0);
        for &x in run {
            let q = f32::from(round(x, self.scale, self.minimum));
            (q1, q2, x1, qx) = (q1 + q, q2 + q * q, x1 + x, qx + q * x);
        }
        let spread = n * q2 - q1 * q1;
        let scale = (n * qx - q1 * x1) / spread;
        let minimum = (x1 - scale * q1) / n;
        let line = match minimum > 0.0 {
            true => Self {
                scale: qx / q2,
                minimum: 0.0,
            },
            false => Self { scale, minimum },
        };
        (spread > 0.0 && line.scale > 0.0).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        // Neither symmetric nor evenly spread.
        let value =
            |i: usize| ((i * 37 % 101) as f32 / 50.0 - 0.9).powi(3) * (1.0 + i as f32 / 200.0);
        (0..count).map(value).collect()
    }

    #[test]
    fn rounding_loses_at_most_half_a_step() {
        let values = values(3 * 512);
        for (kind, step) in [
            (BlockType::Q8_0, 1.0 / 254.0),
            (BlockType::Q4_1, 1.0 / 15.0),
            (BlockType::Q4K, 1.0 / 15.0),
        ] {
            let weight = BlockWeight::quantize(kind, [3, 512], &values).unwrap();
            assert_eq!(weight.bytes(), 3 * 512 / kind.elements() * kind.bytes());
            let mut found = vec![0.0; values.len()];
            kind.decode(weight.blocks().stored(0..3), &mut found);
            for (run, found) in values.chunks(RUN).zip(found.chunks(RUN)) {
                let most = run.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let squares: f32 = run.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum();
                // Half a step of the range at most, a third of that on average.
                let off = (squares / RUN as f32).sqrt();
                assert!(off <= 2.0 * most * step, "{kind}: {off} of {most}");
            }
        }
    }

    #[test]
    fn numbers_that_fit_are_exact() {
        let numbers: Vec<f32> = (0..256).map(|i| (i * 7 % 16) as f32 * 0.5 - 2.0).collect();
        for kind in [BlockType::Q4_1, BlockType::Q8_0] {
            let weight = BlockWeight::quantize(kind, [1, 256], &numbers).unwrap();
            let mut found = vec![0.0; 256];
            kind.decode(weight.blocks().stored(0..1), &mut found);
            let off = numbers.iter().zip(&found).map(|(a, b)| (a - b).abs());
            let most = if kind == BlockType::Q4_1 { 1e-3 } else { 3e-2 };
            assert!(off.fold(0.0, f32::max) < most, "{kind}");
        }
    }

    #[test]
    fn what_cannot_be_rounded_is_refused() {
        let quantize = |kind, shape, values: &[f32]| {
            BlockWeight::quantize(kind, shape, values)
                .unwrap_err()
                .to_string()
        };
        let error = quantize(BlockType::Q6K, [1, 256], &[0.0; 256]);
        assert!(error.contains("Q6_K"), "{error}");
        let error = quantize(BlockType::Q4K, [2, 128], &[0.0; 256]);
        assert!(error.contains("multiple of 256"), "{error}");
        let error = quantize(BlockType::Q8_0, [2, 32], &[0.0; 32]);
        assert!(error.contains("values is 32"), "{error}");
        let error = quantize(BlockType::Q8_0, [1, 32], &[1e30; 32]);
        assert!(error.contains("scale in row 0 is inf"), "{error}");
    }
}
