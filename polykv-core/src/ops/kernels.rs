//! The operators that backends implement with kernels of their own: Flex in plain Rust (`flex/`), every CubeCL runtime
//! (wgpu, CUDA and others) with one set of CubeCL kernels (`cube/`). What runs where is decided here.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, DispatchTensor, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};
use std::ops::Range;

/// Positions that stay whatever their score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Positions below this one.
    pub sinks: i32,
    /// Positions from this one on.
    pub recent: i32,
    /// Ranges of positions beside those.
    pub spans: Vec<Range<i32>>,
}

impl Guard {
    /// For choices without protection.
    pub fn none() -> Self {
        Self {
            sinks: 0,
            recent: i32::MAX,
            spans: Vec::new(),
        }
    }

    pub fn contains(&self, position: i64) -> bool {
        let in_span =
            |span: &Range<i32>| i64::from(span.start) <= position && position < i64::from(span.end);
        position < i64::from(self.sinks)
            || position >= i64::from(self.recent)
            || self.spans.iter().any(in_span)
    }
}

/// How far below an even part, as a logarithm, attention still counts as one: the rounding of scores in f32.
pub const HIT_SLACK: f32 = 1e-6;

/// Shapes: `q [batch, heads, t, d]` in f32, `k`, `v [batch, kv_heads, n, d]` as they are stored, `heads` a multiple of
/// `kv_heads`; scores `[batch, kv_heads, n]`; results are f32. Integers have the type of `positions`.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait KvOps: Backend {
    /// Causal attention aligned at the end: the output `[batch, heads, t, d]`, and per query the logarithm of the sum
    /// of its exponentials, `[batch, heads, t]`.
    #[fusion(meta = |q, _k, _v| (q.clone(), shapes::without_last(q)))]
    fn attend_prompt(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Attention received per key, sum over queries and mean over the query group: `[batch, kv_heads, n]`.
    #[fusion(meta = |_q, k, log_sums| shapes::like(log_sums, [k.shape[0], k.shape[1], k.shape[2]]))]
    fn column_sums(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Per key, of the `count` queries from `first` on: how many query heads of the group gave it an even part of their
    /// attention or more, up to [`HIT_SLACK`], as digits of `bits` bits, the first query's lowest; and the sum of these
    /// numbers. `log_sums` is what [`KvOps::attend_prompt`] returned for the same `q` and `k`; the digits of all queries
    /// fit an f32. Keys are those that the last of the queries sees: `[batch, kv_heads, n − t + first + count]`.
    #[fusion(meta = |q, k, log_sums, first, count, _bits| {
        let seen = k.shape[2] - q.shape[2] + *first + *count;
        let hits = shapes::like(log_sums, [k.shape[0], k.shape[1], seen]);
        (hits.clone(), hits)
    })]
    fn attention_hits(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        first: usize,
        count: usize,
        bits: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Attention of one query (`t = 1`) over all keys: the output `[batch, heads, 1, d]` and the probabilities
    /// `[batch, kv_heads, group, n]`.
    #[fusion(meta = |q, k, _v| {
        let row = [k.shape[0], k.shape[1], q.shape[1] / k.shape[1], k.shape[2]];
        (q.clone(), shapes::like(q, row))
    })]
    fn attend_token(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Attention of the last `w = t` queries, the last of which has the position `seen - 1`, over keys in any order of
    /// `positions`: per key the sum over the queries and the variance over them (with w − 1; of one query 0), each a
    /// mean over the query group.
    #[fusion(meta = |q, k, _positions, _seen| {
        let sums = shapes::like(q, [k.shape[0], k.shape[1], k.shape[2]]);
        (sums.clone(), sums)
    })]
    fn window_score(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        positions: IntTensor<Self>,
        seen: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The slots of the `budget` entries that stay, in ascending order of position: those of `guard` first, then the
    /// highest scores, of equal ones the later position; and how many scores are NaN, `[batch, kv_heads]`. Positions of
    /// a head differ and lie below `seen`; `budget` is from 1 to n.
    #[fusion(meta = |scores, positions, _guard, _seen, budget| (
        shapes::like(positions, [scores.shape[0], scores.shape[1], *budget]),
        shapes::without_last(scores),
    ))]
    fn select_top(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
        seen: usize,
        budget: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// Keys, values and positions at `slots [batch, kv_heads, m]`, in tensors with room for `capacity` entries; what
    /// follows the entries is zero.
    #[fusion(meta = |keys, _values, positions, _slots, capacity| {
        let entries = [keys.shape[0], keys.shape[1], *capacity, keys.shape[3]];
        (
            shapes::like(keys, entries),
            shapes::like(keys, entries),
            shapes::like(positions, [entries[0], entries[1], entries[2]]),
        )
    })]
    fn compact(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        slots: IntTensor<Self>,
        capacity: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>);
}

/// What only devices that must not be waited for need a kernel for; shapes as in [`KvOps`].
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait DeviceOps: Backend {
    /// The slot of the lowest score outside `guard`, `[batch, kv_heads, 1]`, of equal ones that of the earlier
    /// position; and how many scores are NaN, `[batch, kv_heads]`.
    #[fusion(meta = |scores, positions, _guard| (
        shapes::like(positions, [scores.shape[0], scores.shape[1], 1]),
        shapes::without_last(scores),
    ))]
    fn lowest(
        scores: FloatTensor<Self>,
        positions: IntTensor<Self>,
        guard: Guard,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// Overwrites the entry in slot `victim [batch, kv_heads, 1]` with `key` and `value [batch, kv_heads, 1, d]` at
    /// `position`, in place while the tensors are not shared.
    #[fusion(meta = |keys, values, positions, _victim, _key, _value, _position| (
        keys.clone(), values.clone(), positions.clone(),
    ))]
    fn replace_entry(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        positions: IntTensor<Self>,
        victim: IntTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        position: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, IntTensor<Self>);
}

/// What lazy execution must know of results in advance.
#[cfg(feature = "cube")]
mod shapes {
    use burn::backend::fusion::custom::TensorSpec;

    pub fn like<const D: usize>(spec: &TensorSpec, dims: [usize; D]) -> TensorSpec {
        TensorSpec::new(dims.into(), spec.dtype)
    }

    pub fn without_last(spec: &TensorSpec) -> TensorSpec {
        let mut dims = spec.shape.to_vec();
        dims.pop();
        TensorSpec::new(dims.into(), spec.dtype)
    }
}

/// Whether the tensor's device implements [`KvOps`] for its dtype; elsewhere plain tensor operations do the same.
pub fn has_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    let device = tensor.device();
    tensor.dtype() == DType::F32 && (is_cpu(&device) || is_cube(&device))
}

/// Whether the CPU has a kernel for the tensor's dtype, where GPU backends run stock operations.
pub fn has_cpu_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu(&tensor.device())
}

/// Whether the device chooses and moves entries with kernels, which take every type that is stored.
pub fn moves_entries(device: &Device) -> bool {
    is_cpu(device) || is_cube(device)
}

/// Whether a unit of a kernel may take `rounds` rounds of its loops. Software Vulkan (llvmpipe) ends all loops of a unit
/// after 65,535 rounds together, and nothing tells that the result is a part; like it, only software has no plane
/// operations.
pub fn has_rounds(device: &Device, rounds: usize) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(own) => {
            rounds < 60_000 || !own.client().properties().features.plane.is_empty()
        }
        _ => {
            let _ = rounds;
            true
        }
    }
}

/// Whether the device is the CPU backend.
pub fn is_cpu(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        _ => false,
    }
}

/// Whether the device runs CubeCL kernels.
pub fn is_cube(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        _ => false,
    }
}

fn pair<const A: usize, const B: usize>(
    (a, b): (DispatchTensor, DispatchTensor),
) -> (Tensor<A>, Tensor<B>) {
    (Tensor::from_dispatch(a), Tensor::from_dispatch(b))
}

pub fn attend_prompt(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<3>) {
    pair(Dispatch::attend_prompt(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

pub fn column_sums(q: Tensor<4>, k: Tensor<4>, log_sums: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::column_sums(
        q.into_dispatch(),
        k.into_dispatch(),
        log_sums.into_dispatch(),
    ))
}

pub fn attention_hits(
    q: Tensor<4>,
    k: Tensor<4>,
    log_sums: Tensor<3>,
    queries: Range<usize>,
    bits: usize,
) -> (Tensor<3>, Tensor<3>) {
    pair(Dispatch::attention_hits(
        q.into_dispatch(),
        k.into_dispatch(),
        log_sums.into_dispatch(),
        queries.start,
        queries.len(),
        bits,
    ))
}

pub fn attend_token(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    pair(Dispatch::attend_token(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

pub fn window_score(
    q: Tensor<4>,
    k: Tensor<4>,
    positions: Tensor<3, Int>,
    seen: usize,
) -> (Tensor<3>, Tensor<3>) {
    pair(Dispatch::window_score(
        q.into_dispatch(),
        k.into_dispatch(),
        positions.into_dispatch(),
        seen,
    ))
}

pub fn select_top(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    guard: Guard,
    seen: usize,
    budget: usize,
) -> (Tensor<3, Int>, Tensor<2>) {
    let (slots, nans) = Dispatch::select_top(
        scores.into_dispatch(),
        positions.into_dispatch(),
        guard,
        seen,
        budget,
    );
    (Tensor::from_dispatch(slots), Tensor::from_dispatch(nans))
}

pub fn compact(
    keys: Tensor<4>,
    values: Tensor<4>,
    positions: Tensor<3, Int>,
    slots: Tensor<3, Int>,
    capacity: usize,
) -> Entries {
    entries(Dispatch::compact(
        keys.into_dispatch(),
        values.into_dispatch(),
        positions.into_dispatch(),
        slots.into_dispatch(),
        capacity,
    ))
}

/// Keys, values and positions of a cache.
pub type Entries = (Tensor<4>, Tensor<4>, Tensor<3, Int>);

fn entries((k, v, p): (DispatchTensor, DispatchTensor, DispatchTensor)) -> Entries {
    (
        Tensor::from_dispatch(k),
        Tensor::from_dispatch(v),
        Tensor::from_dispatch(p),
    )
}

pub fn lowest(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    guard: Guard,
) -> (Tensor<3, Int>, Tensor<2>) {
    let (slots, nans) = Dispatch::lowest(scores.into_dispatch(), positions.into_dispatch(), guard);
    (Tensor::from_dispatch(slots), Tensor::from_dispatch(nans))
}

pub fn replace_entry(
    (keys, values, positions): Entries,
    victim: Tensor<3, Int>,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    entries(Dispatch::replace_entry(
        keys.into_dispatch(),
        values.into_dispatch(),
        positions.into_dispatch(),
        victim.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        position,
    ))
}
