//! Which queries gave a key at least the average of their attention.

use super::{Mask, cap, dense, empty, in_window, length, unrolls, width};
use crate::ops::kernels::{self, HitOps};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;

impl HitOps for CubeBackend {
    fn attention_hits(
        q: CubeTensor,
        k: CubeTensor,
        least: CubeTensor,
        first: usize,
        count: usize,
        bits: usize,
        mask: kernels::Mask<Self>,
    ) -> (CubeTensor, CubeTensor) {
        let (q, k, least) = (into_contiguous(q), dense(k), into_contiguous(least));
        let [_, heads, tokens, dim] = q.shape().dims::<4>();
        let [batch, kv_heads, n, _] = k.shape().dims::<4>();
        let mask = Mask::of(mask, tokens);
        let width = width(&[&k]);
        let seen = n - tokens + first + count;
        let digits = empty(&q, [batch, kv_heads, seen], DType::F32);
        let counts = empty(&q, [batch, kv_heads, seen], DType::F32);
        let client = q.client.clone();
        let known = unrolls(&client);
        let dtypes = [k.dtype, mask.dtype()].map(dtype_to_storage_type);
        debug_assert!(first + count <= tokens && tokens <= n);
        debug_assert_eq!(least.shape().num_elements(), batch * heads * count);
        // SAFETY: units beyond the keys that are seen end; the others read their own key and position, queries below `first
        // + count`, which are at most all, and write their own number.
        unsafe {
            hits_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, seen.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                width,
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                least.into_tensor_arg(),
                digits.clone().into_tensor_arg(),
                counts.clone().into_tensor_arg(),
                mask.positions.map(CubeTensor::into_buffer_arg).into(),
                1.0 / (dim as f32).sqrt(),
                mask.softcap,
                mask.size,
                mask.first,
                heads / kv_heads,
                first,
                count,
                bits as u32,
                dim / width,
                mask.capped,
                dim / width,
                width,
                known,
                dtypes,
            );
        }
        (digits, counts)
    }
}

/// One unit per key, which stays in its registers while the queries that see it pass.
#[cube(launch_unchecked)]
fn hits_kernel<E: Float, I: Int, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<E, N>>,
    least: &Tensor<f32>,
    digits: &mut Tensor<f32>,
    counts: &mut Tensor<f32>,
    positions: ComptimeOption<&[I]>,
    scale: f32,
    softcap: f32,
    size: usize,
    first_position: usize,
    group: usize,
    first: usize,
    count: usize,
    bits: u32,
    steps: usize,
    #[comptime] capped: bool,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] known: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let steps = length(steps, words, known);
    let kv = CUBE_POS_X as usize;
    let (kv_heads, tokens) = (k.shape(1), q.shape(2));
    let hidden = k.shape(2) - tokens;
    let seen = hidden + first + count;
    let j = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if j >= seen {
        terminate!();
    }
    let at = (kv / kv_heads * k.stride(0) + kv % kv_heads * k.stride(1) + j * k.stride(2)) / width;
    let mut key = Array::<Vector<f32, N>>::new(words);
    for w in 0..steps {
        key[w] = Vector::<f32, N>::cast_from(k[at + w]) * Vector::new(scale);
    }
    let seen_by: ComptimeOption<usize> =
        positions.map(|all| in_window::<I>(all[kv * k.shape(2) + j], size, first_position, tokens));
    let last = seen_by.unwrap_or(tokens);
    let mut digit_sum = 0u32;
    let mut total = 0u32;
    for i in 0..count {
        let query = first + i;
        if j <= hidden + query && query < last {
            let mut heads = 0u32;
            for g in 0..group {
                let row = (kv * group + g) * tokens + query;
                let mut products = Vector::<f32, N>::new(0.0f32);
                for w in 0..steps {
                    products += key[w] * q[row * words + w];
                }
                let mut score = 0.0f32;
                #[unroll]
                for lane in 0..width {
                    score += products.extract(lane);
                }
                if cap(score, softcap, capped) >= least[(kv * group + g) * count + i] {
                    heads += 1u32;
                }
            }
            digit_sum += heads << (bits * i as u32);
            total += heads;
        }
    }
    digits[kv * seen + j] = f32::cast_from(digit_sum);
    counts[kv * seen + j] = f32::cast_from(total);
}
