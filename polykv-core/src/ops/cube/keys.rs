//! Norms and cosines of keys.

use super::{HIDDEN, dense, empty, existing, length, unrolls, width};
use crate::ops::kernels::KeyOps;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const UNITS: usize = 64;
/// Norms count as this at least.
const LEAST: f32 = 1e-12;

impl KeyOps for CubeBackend {
    fn key_norms(keys: CubeTensor) -> CubeTensor {
        let keys = dense(keys);
        let [batch, kv_heads, n, dim] = keys.shape().dims::<4>();
        let norms = empty(&keys, [batch, kv_heads, n], DType::F32);
        let width = width(&[&keys]);
        let client = keys.client.clone();
        let dtype = dtype_to_storage_type(keys.dtype);
        // SAFETY: units beyond the keys end; the others read their own key and write their own norm.
        unsafe {
            norms_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, n.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                width,
                keys.into_tensor_arg(),
                norms.clone().into_tensor_arg(),
                dim / width,
                width,
                dtype,
            );
        }
        norms
    }

    fn key_cosines(keys: CubeTensor, norms: CubeTensor, anchor: CubeTensor) -> CubeTensor {
        let keys = dense(keys);
        let [norms, anchor] = [norms, anchor].map(into_contiguous);
        let [batch, kv_heads, n, dim] = keys.shape().dims::<4>();
        let cosines = empty(&keys, [batch, kv_heads, n], DType::F32);
        let width = width(&[&keys, &anchor]);
        let client = keys.client.clone();
        let dtype = dtype_to_storage_type(keys.dtype);
        debug_assert_eq!(norms.shape(), cosines.shape());
        debug_assert_eq!(anchor.shape().num_elements(), batch * kv_heads * dim);
        // SAFETY: units beyond the keys end; the others read their own key and norm, the anchor of their head, and write
        // their own cosine.
        unsafe {
            cosines_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, n.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                width,
                keys.into_tensor_arg(),
                norms.into_tensor_arg(),
                anchor.into_tensor_arg(),
                cosines.clone().into_tensor_arg(),
                dim / width,
                width,
                dtype,
            );
        }
        cosines
    }

    fn closest(
        keys: CubeTensor,
        norms: CubeTensor,
        evicted: CubeTensor,
        kept: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let keys = dense(keys);
        let [norms, evicted, kept] = [norms, evicted, kept].map(into_contiguous);
        let [batch, kv_heads, _, dim] = keys.shape().dims::<4>();
        let going = evicted.shape().dims::<3>()[2];
        let staying = kept.shape().dims::<3>()[2];
        let cosines = empty(&keys, [batch, kv_heads, going], DType::F32);
        let places = empty(&keys, [batch, kv_heads, going], evicted.dtype);
        let width = width(&[&keys]);
        let client = keys.client.clone();
        let known = unrolls(&client);
        let dtypes = [keys.dtype, evicted.dtype].map(dtype_to_storage_type);
        debug_assert_eq!(norms.shape().dims::<3>(), keys.shape().dims::<4>()[..3]);
        debug_assert_eq!(evicted.dtype, kept.dtype);
        // SAFETY: units beyond the evicted keys end; the others read keys and norms at slots that `existing` has cut to
        // the number of keys, and write their own cosine and place.
        unsafe {
            closest_kernel::launch_unchecked(
                &client,
                CubeCount::Static((batch * kv_heads) as u32, going.div_ceil(UNITS) as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                width,
                keys.into_tensor_arg(),
                norms.into_tensor_arg(),
                evicted.into_tensor_arg(),
                kept.into_tensor_arg(),
                cosines.clone().into_tensor_arg(),
                places.clone().into_tensor_arg(),
                going,
                staying,
                dim / width,
                dim / width,
                width,
                known,
                dtypes,
            );
        }
        (cosines, places)
    }
}

/// One unit per key.
#[cube(launch_unchecked)]
fn norms_kernel<E: Float, N: Size>(
    keys: &Tensor<Vector<E, N>>,
    norms: &mut Tensor<f32>,
    words: usize,
    #[comptime] width: usize,
    #[define(E)] _dtype: ElemType,
) {
    let kv = CUBE_POS_X as usize;
    let (kv_heads, n) = (keys.shape(1), keys.shape(2));
    let j = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if j >= n {
        terminate!();
    }
    let at = kv / kv_heads * keys.stride(0) + kv % kv_heads * keys.stride(1) + j * keys.stride(2);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    for w in 0..words {
        let x = Vector::<f32, N>::cast_from(keys[at / width + w]);
        squares += x * x;
    }
    let mut total = 0.0f32;
    #[unroll]
    for lane in 0..width {
        total += squares.extract(lane);
    }
    norms[kv * n + j] = total.sqrt();
}

/// One unit per key.
#[cube(launch_unchecked)]
fn cosines_kernel<E: Float, N: Size>(
    keys: &Tensor<Vector<E, N>>,
    norms: &Tensor<f32>,
    anchor: &Tensor<Vector<f32, N>>,
    cosines: &mut Tensor<f32>,
    words: usize,
    #[comptime] width: usize,
    #[define(E)] _dtype: ElemType,
) {
    let kv = CUBE_POS_X as usize;
    let (kv_heads, n) = (keys.shape(1), keys.shape(2));
    let j = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if j >= n {
        terminate!();
    }
    let at = kv / kv_heads * keys.stride(0) + kv % kv_heads * keys.stride(1) + j * keys.stride(2);
    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    for w in 0..words {
        let x = anchor[kv * words + w];
        products += Vector::<f32, N>::cast_from(keys[at / width + w]) * x;
        squares += x * x;
    }
    let mut product = 0.0f32;
    let mut length = 0.0f32;
    #[unroll]
    for lane in 0..width {
        product += products.extract(lane);
        length += squares.extract(lane);
    }
    let least = f32::new(LEAST);
    cosines[kv * n + j] = product / (max(norms[kv * n + j], least) * max(length.sqrt(), least));
}

/// One unit per evicted key, which stays in its registers while all kept ones pass.
#[cube(launch_unchecked)]
fn closest_kernel<E: Float, I: Int, N: Size>(
    keys: &Tensor<Vector<E, N>>,
    norms: &Tensor<f32>,
    evicted: &Tensor<I>,
    kept: &Tensor<I>,
    cosines: &mut Tensor<f32>,
    places: &mut Tensor<I>,
    going: usize,
    staying: usize,
    steps: usize,
    #[comptime] words: usize,
    #[comptime] width: usize,
    #[comptime] known: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let steps = length(steps, words, known);
    let kv = CUBE_POS_X as usize;
    let (kv_heads, n) = (keys.shape(1), keys.shape(2));
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= going {
        terminate!();
    }
    let start = kv / kv_heads * keys.stride(0) + kv % kv_heads * keys.stride(1);
    let slot = existing::<I>(evicted[kv * going + i], n);
    let at = (start + slot * keys.stride(2)) / width;
    let mut key = Array::<Vector<f32, N>>::new(words);
    for w in 0..steps {
        key[w] = Vector::<f32, N>::cast_from(keys[at + w]);
    }
    let least = f32::new(LEAST);
    let norm = max(norms[kv * n + slot], least);
    let mut best = f32::new(HIDDEN);
    let mut place = 0u32;
    for r in 0..staying {
        let other = existing::<I>(kept[kv * staying + r], n);
        let at = (start + other * keys.stride(2)) / width;
        let mut products = Vector::<f32, N>::new(0.0f32);
        for w in 0..steps {
            products += key[w] * Vector::<f32, N>::cast_from(keys[at + w]);
        }
        let mut product = 0.0f32;
        #[unroll]
        for lane in 0..width {
            product += products.extract(lane);
        }
        let cosine = product / (norm * max(norms[kv * n + other], least));
        if cosine > best {
            best = cosine;
            place = r as u32;
        }
    }
    cosines[kv * going + i] = best;
    places[kv * going + i] = I::cast_from(place);
}
