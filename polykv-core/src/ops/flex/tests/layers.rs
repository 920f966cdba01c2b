use super::super::view::Matrix;
use super::super::{gemv, pointwise, simd, widen};
use super::*;
use crate::ops::{Weight, linear, linears, q8_scheme};
use burn::tensor::Int;

fn normal(shape: [usize; 2]) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Rows, columns and outputs, of which columns divide by the block of 8-bit weights where it matters.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 576, 1536),
    (3, 65, 7),
    (4, 64, 1),
    (7, 96, 33),
    (2, 200, 333),
    (1, 32, 5),
    (8, 576, 33),
    (13, 85, 41),
    (21, 70, 6),
];

#[test]
fn products_with_every_storage_type_equal_those_with_its_values_in_f32() {
    for (rows, columns, outputs) in SHAPES {
        let x = normal([rows, columns]);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            // A view into a wider weight: rows are not next to each other.
            let weight = normal([outputs, columns + 3])
                .narrow(1, 2, columns)
                .cast(dtype);
            let wide = weight.clone().cast(DType::F32);
            let wanted = values(x.clone().matmul(wide.transpose()));
            let (x, weight) = (flex(&x), flex(&weight));
            for level in Level::available() {
                let found = match dtype {
                    DType::F16 => product(level, &x, &[Matrix::<f16>::of(&weight)]),
                    DType::BF16 => product(level, &x, &[Matrix::<bf16>::of(&weight)]),
                    _ => product(level, &x, &[Matrix::<f32>::of(&weight)]),
                };
                let what = format!("{level:?}, {dtype:?}, {rows} x {columns} x {outputs}");
                assert_close(&found, &wanted, 1e-4, &what);
            }
        }
    }
}

fn product<W: gemv::Rows>(level: Level, x: &FlexTensor, weights: &[W]) -> Vec<f32> {
    gemv::multiply(level, elements(x), weights)
}

#[test]
fn products_with_8_bit_weights_equal_those_with_their_values_in_f32() {
    for (rows, columns, outputs) in [(1, 576, 1537), (6, 96, 4), (1, 32, 1)] {
        let x = normal([rows, columns]);
        let weight = Weight::q8(normal([outputs, columns]));
        let wanted = values(x.clone().matmul(weight.to_f32().transpose()));
        let Weight::Q8(weight) = &weight else {
            panic!("{weight:?} is not in 8 bits");
        };
        let weight = weight.blocks();
        for level in Level::available() {
            let found = product(level, &flex(&x), &[weight]);
            assert_close(
                &found,
                &wanted,
                1e-4,
                &format!("{level:?}, {columns} x {outputs}"),
            );
        }
    }
}

#[test]
fn rounding_to_8_bits_loses_at_most_half_a_step_per_block() {
    let weight = normal([3, 64]);
    let stored = Weight::q8(weight.clone());
    assert_eq!((stored.shape(), stored.bytes()), ([3, 64], 3 * 2 * 36));
    let found = values(stored.to_f32());
    let burns = weight.clone().quantize_dynamic(&q8_scheme()).dequantize();
    assert_eq!(found, values(burns));
    let weight = values(weight);
    for (block, found) in weight.chunks(32).zip(found.chunks(32)) {
        let most = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (a, b) in block.iter().zip(found) {
            assert!((a - b).abs() <= most / 127.0 * 0.501, "{a}: {b} of {most}");
        }
    }
}

#[test]
fn weights_of_one_input_give_what_each_gives_alone() {
    let x = normal([2, 64]);
    for quantized in [false, true] {
        let weights = [300, 7, 64].map(|outputs| match quantized {
            true => Weight::q8(normal([outputs, 64])),
            false => normal([outputs, 64]).into(),
        });
        let together = linears(x.clone(), weights.each_ref());
        for (weight, found) in weights.iter().zip(together) {
            let wanted = values(linear(x.clone(), weight));
            assert_close(
                &values(found),
                &wanted,
                0.0,
                &format!("quantized {quantized}"),
            );
        }
    }
}

#[test]
fn prompts_and_rows_read_weights_of_every_storage_type() {
    let x = normal([9, 64]);
    let weight = normal([50, 64]);
    let ids = Tensor::<1, Int>::from_data([3, 49, 3], &Device::flex());
    for stored in [
        Weight::new(weight.clone().cast(DType::F16)),
        Weight::new(weight.clone().cast(DType::BF16)),
        Weight::q8(weight.clone()),
    ] {
        let what = format!("{stored:?}");
        let wide = match &stored {
            Weight::Dense(tensor) => tensor.clone().cast(DType::F32),
            Weight::Q8(_) => weight.clone().quantize_dynamic(&q8_scheme()).dequantize(),
            _ => panic!("{what} is tested elsewhere"),
        };
        let found = linear(x.clone(), &stored);
        assert_eq!(found.dtype(), DType::F32);
        let wanted = x.clone().matmul(wide.clone().transpose());
        // Prompts may be rounded to bf16 for weights in 8 bits or bf16; `blocks` has the exact products.
        let tolerance = match &stored {
            Weight::Dense(tensor) if tensor.dtype() == DType::F16 => 1e-5,
            _ => 0.1,
        };
        assert_close(&values(found), &values(wanted), tolerance, &what);
        let found = stored.rows(ids.clone());
        let wanted = wide.clone().select(0, ids.clone());
        assert_close(&values(found), &values(wanted), 0.0, &what);
        assert_close(&values(stored.to_f32()), &values(wide), 0.0, &what);
    }
}

/// One call of a kernel reads one format: several are read one after the other.
#[test]
fn weights_of_different_formats_may_share_an_input() {
    let x = normal([2, 64]);
    let weight = normal([7, 64]);
    let weights = [
        Weight::q8(weight.clone()),
        weight.clone().cast(DType::F16).into(),
        weight.into(),
    ];
    let together = linears(x.clone(), weights.each_ref());
    for (weight, found) in weights.iter().zip(together) {
        assert_eq!(values(found), values(linear(x.clone(), weight)));
    }
}

#[test]
fn gated_activations_equal_the_oracle() {
    // The GELU of the oracle takes tanh of large numbers, this one exp: both ends are reached.
    for range in [4.0, 100.0] {
        let distribution = Distribution::Uniform(-range, range);
        let gate = Tensor::<2>::random([3, 5501], distribution, &Device::flex());
        let up = Tensor::<2>::random([3, 5501], distribution, &Device::flex());
        let silu = values(oracle::swiglu(gate.clone(), up.clone()));
        let gelu = values(oracle::geglu(gate.clone(), up.clone()));
        let (gate, up) = (flex(&gate), flex(&up));
        for level in Level::available() {
            let found = pointwise::swiglu(level, elements(&gate), elements(&up));
            assert_close(&found, &silu, 1e-5, &format!("SwiGLU, {level:?}"));
            let found = pointwise::geglu(level, elements(&gate), elements(&up));
            assert_close(&found, &gelu, 1e-5, &format!("GeGLU, {level:?}"));
        }
    }
}

#[test]
fn rms_norm_equals_the_oracle() {
    for [rows, size] in [[1, 576], [70, 33], [3, 5]] {
        let (x, weight) = (normal([rows, size]), normal([1, size]).reshape([size]));
        let wanted = values(oracle::rms_norm(x.clone(), weight.clone(), 1e-5));
        for level in Level::available() {
            let (x, weight) = (flex(&x), flex(&weight));
            let found = pointwise::rms_norm(level, elements(&x), elements(&weight), 1e-5);
            assert_close(
                &found,
                &wanted,
                1e-5,
                &format!("{level:?}, {rows} x {size}"),
            );
        }
    }
}

#[test]
fn rotate_equals_the_oracle() {
    for case in &CASES {
        let dim = case.dim / 2 * 2;
        for rows in [1, case.batch] {
            let x = random(case.batch, case.heads, case.tokens, dim);
            let tables = [(); 2].map(|()| {
                let dims = [rows, 1, case.tokens, dim / 2];
                Tensor::<4>::random(dims, Distribution::Uniform(-1.0, 1.0), &Device::flex())
            });
            let [cos, sin] = tables.clone();
            let wanted = values(oracle::rotate(x.clone(), cos, sin));
            let (x, [cos, sin]) = (flex(&x), tables.map(|table| flex(&table)));
            let (x, cos, sin) = (Heads::of(&x), elements(&cos), elements(&sin));
            for level in Level::available() {
                let found = pointwise::rotate(level, &x, cos, sin);
                let what = format!("{level:?}, dim {dim}, {rows} tables");
                assert_close(&found, &wanted, 1e-5, &what);
            }
        }
    }
}

/// All bit patterns, at every level.
#[test]
fn f16_widens_as_the_standard_says() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for level in Level::available() {
        let found = widen::widen(level, &all);
        for (half, found) in all.iter().zip(found) {
            let wanted = half.to_f32();
            let same = found == wanted || (found.is_nan() && wanted.is_nan());
            assert!(same, "{level:?}: {:#x} became {found}", half.to_bits());
        }
    }
}

#[test]
fn exp_is_accurate_over_its_range() {
    for i in -8600..8700 {
        let x = i as f32 / 100.0;
        let wanted = f64::from(x).exp();
        for found in [simd::exp::<simd::Plain>(x), fused_exp(x)] {
            assert!(
                (f64::from(found) / wanted - 1.0).abs() < 3e-7,
                "e^{x}: {found} for {wanted}"
            );
        }
    }
    assert!(fused_exp(-1e30) < 1e-37);
}

/// With fused multiply-add, where the processor has it.
fn fused_exp(x: f32) -> f32 {
    #[inline(always)]
    fn one<V: simd::Vector>(x: f32) -> f32 {
        simd::exp::<V>(x)
    }
    simd::dispatch!(Level::best(), fn one(x: f32) -> f32)
}
