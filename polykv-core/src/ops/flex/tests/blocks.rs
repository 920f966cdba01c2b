//! Weights in blocks at every instruction set, against f64 on the host.

use super::super::blocks::activations::Activations;
#[cfg(target_arch = "x86_64")]
use super::super::view::Matrix;
use super::super::{blocks as products, gemv, weights};
use super::*;
use crate::ops::{BlockType, BlockWeight, Weight, linear, linears};
use burn::tensor::Int;

/// Numbers that are spread like random ones, the same in every run.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Random valid blocks: any integers, scales and minima of either sign.
fn random_blocks(kind: BlockType, [rows, columns]: [usize; 2], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let count = rows * columns / kind.elements();
    let mut bytes: Vec<u8> = (0..count * kind.bytes())
        .map(|_| next(&mut state) as u8)
        .collect();
    let at: &[usize] = match kind {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q6K => &[208],
        _ => &[0, 2],
    };
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        for &at in at {
            let half = f16::from_f32((next(&mut state) % 2001) as f32 / 1e5 - 0.01);
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| (next(&mut state) % 4001) as f32 / 1e3 - 2.0)
        .collect()
}

fn block_weight(kind: BlockType, shape: [usize; 2]) -> BlockWeight {
    BlockWeight::new(kind, shape, random_blocks(kind, shape, 1).into()).unwrap()
}

/// Rows of activations, and shapes of weights of which the rows are no multiple of anything.
fn cases() -> impl Iterator<Item = (usize, BlockType, [usize; 2])> {
    let shapes = [[5, 32], [7, 96], [3, 256], [33, 576], [19, 768], [70, 1536]];
    BlockType::ALL.into_iter().flat_map(move |kind| {
        let fit = move |shape: &[usize; 2]| shape[1].is_multiple_of(kind.elements());
        let counts = [1, 2, 5, 8];
        let shapes = shapes.into_iter().filter(fit);
        shapes.flat_map(move |shape| counts.map(|count| (count, kind, shape)))
    })
}

/// Products of rounded activations with a weight, and the sums of the magnitudes of their terms, in f64: `[rows, outputs]`.
fn exact(x: &[f32], weight: &Weight) -> Vec<(f64, f64)> {
    let columns = weight.shape()[1];
    let wide = values(weight.to_f32());
    let mut products = Vec::new();
    for x in x.chunks_exact(columns) {
        for w in wide.chunks_exact(columns) {
            let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            products.push(terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + term.abs())
            }));
        }
    }
    products
}

/// Activations in 16 bits, or with the upper 8 of them.
fn in_bits(x: &[f32], columns: usize, bits: u32) -> Vec<f32> {
    let rounded = Activations::of(Level::Baseline, x, columns);
    let number = |i: usize| {
        let chunk = &rounded.row(i / columns)[i % columns / 256];
        let [high, low] =
            [&chunk.high, &chunk.low].map(|bytes| bytes.as_flattened()[i % columns % 256]);
        let value = 256 * i32::from(high) + if bits == 16 { i32::from(low) } else { 0 };
        value as f32 * chunk.half_scales[i % columns % 256 / 16]
    };
    (0..x.len()).map(number).collect()
}

/// The integers are exact; what is rounded are a scale, a product and a sum per run. Numbers with an offset are larger
/// without it: up to 16 times in Q8_0, whose offset is 128.
const ROUNDING: f64 = 4e-6;

fn assert_exact(found: &[f32], wanted: &[(f64, f64)], what: &str) {
    assert_close_to(found, wanted, ROUNDING, what);
}

fn assert_close_to(found: &[f32], wanted: &[(f64, f64)], rounding: f64, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (&found, (wanted, size)) in found.iter().zip(wanted) {
        let off = (f64::from(found) - wanted).abs() / size;
        assert!(off <= rounding, "{what}: {found} for {wanted}, {off:.1e}");
    }
}

#[test]
fn products_equal_those_with_decoded_weights() {
    for (count, kind, shape) in cases() {
        let x = numbers(count * shape[1], 2);
        let weight = block_weight(kind, shape);
        let wanted = exact(&in_bits(&x, shape[1], 16), &weight.clone().into());
        let mut of_levels = Vec::new();
        for level in Level::available() {
            let found = gemv::multiply(level, &x, &[weight.blocks()]);
            let what = format!("{level:?}, {kind}, {count} rows, {shape:?}");
            assert_exact(&found, &wanted, &what);
            of_levels.push(found);
        }
        // With fused multiply-adds the sums are the same in both instruction sets, but for the last one.
        if let [_, avx2, avx512] = &of_levels[..] {
            for ((a, b), (_, size)) in avx2.iter().zip(avx512).zip(&wanted) {
                assert!(
                    f64::from((a - b).abs()) <= 3e-7 * size,
                    "{kind}: {a} and {b}"
                );
            }
        }
    }
}

#[test]
fn activations_lose_at_most_half_a_step_per_run() {
    for level in Level::available() {
        let mut x = numbers(3 * 96, 3);
        x[32..64].fill(0.0);
        x[70] = 1e-42;
        let rounded = Activations::of(level, &x, 96);
        for (row, x) in x.chunks_exact(96).enumerate() {
            let chunk = &rounded.row(row)[0];
            let [high, low] = [&chunk.high, &chunk.low].map(|bytes| bytes.as_flattened());
            let value = |i: usize| 256 * i32::from(high[i]) + i32::from(low[i]);
            for (run, x) in x.chunks_exact(32).enumerate() {
                let scale = chunk.scales_and_sums[2 * run];
                let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                assert_eq!(scale, most / 32_512.0);
                let values: Vec<i32> = (32 * run..32 * run + 32).map(value).collect();
                for (value, x) in values.iter().zip(x) {
                    let off = (*value as f32 * scale - x).abs();
                    assert!(
                        off <= 0.501 * scale,
                        "{level:?}: {x} became {value} of {scale}"
                    );
                }
                let sum: i32 = values.iter().sum();
                assert_eq!(chunk.scales_and_sums[2 * run + 1], scale * sum as f32);
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = numbers(64, 3);
        x[40] = bad;
        for level in Level::available() {
            for kind in [BlockType::Q4_0, BlockType::Q4_1] {
                let found = gemv::multiply(level, &x, &[block_weight(kind, [3, 64]).blocks()]);
                assert!(
                    found.iter().all(|x| !x.is_finite()),
                    "{level:?}, {kind}: {found:?}"
                );
            }
        }
    }
}

/// A prompt's products have the first bytes of the activations, or bf16, and round sums in another order.
#[test]
fn products_of_prompts_equal_those_with_decoded_weights() {
    for (count, kind, shape) in [
        (9, BlockType::Q4_0, [5, 32]),
        (130, BlockType::Q4_1, [33, 576]),
        (17, BlockType::Q5_0, [16, 96]),
        (9, BlockType::Q5_1, [100, 320]),
        (129, BlockType::Q8_0, [40, 96]),
        (13, BlockType::Q4K, [17, 512]),
        (13, BlockType::Q5K, [17, 256]),
        (300, BlockType::Q6K, [35, 768]),
    ] {
        let x = numbers(count * shape[1], 4);
        let weight = block_weight(kind, shape);
        let what = format!("{kind}, {count} rows, {shape:?}");
        #[cfg(target_arch = "x86_64")]
        {
            use products::gemm::{Amx, Bf16, Hardware, Vnni, multiply_by};
            let stored = [weight.blocks()];
            let in_bytes = in_bits(&x, shape[1], 8);
            let in_bf16: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            let found = [
                (
                    multiply_by::<Vnni, _>(&x, shape[1], &stored),
                    in_bytes,
                    ROUNDING,
                ),
                (
                    multiply_by::<Bf16, _>(&x, shape[1], &stored),
                    in_bf16.clone(),
                    4.0 * ROUNDING,
                ),
                (
                    multiply_by::<Amx<tiles::Model>, _>(&x, shape[1], &stored),
                    in_bf16.clone(),
                    4.0 * ROUNDING,
                ),
                (
                    multiply_by::<Amx<Hardware>, _>(&x, shape[1], &stored),
                    in_bf16,
                    4.0 * ROUNDING,
                ),
            ];
            for (found, rounded, rounding) in found {
                match found {
                    Some(found) => assert_close_to(
                        &found[0],
                        &exact(&rounded, &weight.clone().into()),
                        rounding,
                        &what,
                    ),
                    None => println!("{what}: no such instructions"),
                }
            }
        }
        // Tiles in f32 do not round activations.
        let x = Tensor::from_data(TensorData::new(x, [count, shape[1]]), &Device::flex());
        let found = values(weights::tiled_gemm(x.clone(), &weight));
        let wide = Weight::from(weight).to_f32();
        let wanted = values(x.matmul(wide.transpose()));
        assert_close(&found, &wanted, 1e-4, &what);
    }
}

#[test]
fn rows_in_another_order() {
    let (kind, shape) = (BlockType::Q5K, [600, 256]);
    let plain = block_weight(kind, shape);
    // 7 and 600 have no common divisor.
    let order: Vec<u32> = (0..600).map(|i| i * 7 % 600).collect();
    let ordered = plain.clone().with_order(order.clone()).unwrap();
    let [plain, ordered] = [plain, ordered].map(Weight::from);
    let ids: Vec<i64> = order.iter().map(|&row| i64::from(row)).collect();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [600]), &Device::flex());
    for count in [1, 3, 20] {
        let x = numbers(count * 256, 5);
        let x = Tensor::<2>::from_data(TensorData::new(x, [count, 256]), &Device::flex());
        let wanted = linear(x.clone(), &plain).select(1, ids.clone());
        assert_eq!(values(linear(x, &ordered)), values(wanted), "{count} rows");
    }
    assert_eq!(values(ordered.to_f32()), values(plain.rows(ids.clone())));
    let some = Tensor::<1, Int>::from_data([3, 599], &Device::flex());
    let wanted = plain.to_f32().select(0, ids).select(0, some.clone());
    assert_eq!(values(ordered.rows(some)), values(wanted));
}

/// Weights of different block types are handed to the threads at once.
#[test]
fn types_may_share_an_input() {
    let x = numbers(2 * 512, 6);
    let x = Tensor::<2>::from_data(TensorData::new(x, [2, 512]), &Device::flex());
    let weights = [BlockType::Q4K, BlockType::Q6K, BlockType::Q8_0]
        .map(|kind| Weight::from(block_weight(kind, [300, 512])));
    let together = linears(x.clone(), weights.each_ref());
    for (weight, found) in weights.iter().zip(together) {
        assert_eq!(values(found), values(linear(x.clone(), weight)));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = numbers(512, 7);
    let prompt = numbers(40 * 512, 8);
    let weight = block_weight(BlockType::Q4_1, [1000, 512]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let token = gemv::multiply(Level::best(), &x, &[weight.blocks()]);
            (token, products::gemm(&prompt, 512, &[weight.blocks()]))
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let new = |shape, bytes: usize| {
        let weight = BlockWeight::new(BlockType::Q4_1, shape, vec![0; bytes].into());
        weight.unwrap_err().to_string()
    };
    let error = new([2, 48], 60);
    assert!(
        error.contains("columns is 48; allowed: a multiple of 32"),
        "{error}"
    );
    let error = new([2, 64], 79);
    assert!(
        error.contains("bytes is 79; allowed: 2 rows of 40"),
        "{error}"
    );
    let weight = || block_weight(BlockType::Q4_1, [3, 32]);
    for order in [vec![0, 1], vec![0, 1, 1], vec![0, 1, 3], vec![0, 1, 2, 2]] {
        assert!(weight().with_order(order).is_err());
    }
    assert!(weight().with_order(vec![2, 0, 1]).is_ok());
}

/// Weights in 8 bits are multiplied with prompts in bf16 where the processor can.
#[test]
fn prompts_with_weights_in_8_bits() {
    for (count, shape) in [(9, [5, 32]), (130, [33, 576]), (300, [100, 320])] {
        let x = numbers(count * shape[1], 9);
        let w = Tensor::<2>::from_data(
            TensorData::new(numbers(shape[0] * shape[1], 10), shape),
            &Device::flex(),
        );
        let weight = Weight::q8(w);
        let Weight::Q8(packed) = &weight else {
            panic!("{weight:?} is not in 8 bits");
        };
        let what = format!("{count} rows, {shape:?}");
        let Some(found) = products::q8_gemm(&x, packed.blocks()) else {
            println!("{what}: no such instructions");
            continue;
        };
        let rounded: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        let wanted = exact(&rounded, &weight);
        assert_close_to(&found, &wanted, 16.0 * ROUNDING, &what);
    }
}

/// So are weights in bf16, which are exact then.
#[test]
fn prompts_with_weights_in_bf16() {
    for (count, shape) in [(9, [5, 32]), (130, [33, 576]), (300, [100, 320])] {
        let x = numbers(count * shape[1], 11);
        let w = Tensor::<2>::from_data(
            TensorData::new(numbers(shape[0] * shape[1], 12), shape),
            &Device::flex(),
        );
        let weight = Weight::new(w.cast(DType::BF16));
        let Weight::Dense(dense) = &weight else {
            panic!("{weight:?} is not dense");
        };
        let rounded: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        let wanted = exact(&rounded, &weight);
        let what = format!("{count} rows, {shape:?}");
        #[cfg(target_arch = "x86_64")]
        {
            use products::gemm::{Amx, Bf16, Hardware, multiply_by};
            let dense = float(dense.clone());
            let stored = [Matrix::<bf16>::of(&dense)];
            for found in [
                multiply_by::<Bf16, _>(&x, shape[1], &stored),
                multiply_by::<Amx<tiles::Model>, _>(&x, shape[1], &stored),
                multiply_by::<Amx<Hardware>, _>(&x, shape[1], &stored),
            ] {
                match found {
                    Some(found) => assert_close_to(&found[0], &wanted, ROUNDING, &what),
                    None => println!("{what}: no such instructions"),
                }
            }
        }
        let x = Tensor::<2>::from_data(TensorData::new(x, [count, shape[1]]), &Device::flex());
        // With or without rounding.
        assert_close_to(&values(linear(x, &weight)), &wanted, 4e-3, &what);
    }
}
