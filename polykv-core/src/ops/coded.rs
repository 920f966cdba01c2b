//! Keys and values in codes of 8 or 4 bits, and attention over them.
//!
//! Each vector is coded by itself, in runs of [`Codes::RUN`] numbers with a step and a code for 0: an entry can be evicted,
//! moved and overwritten like one in floats. KIVI (arXiv 2402.02750) codes keys by channel, in groups of tokens that cannot be
//! taken apart, because some channels are far larger than others. Here the mean and the standard deviation of each channel are
//! taken once, from the keys that a prompt leaves; what is coded is a key less the mean, divided by the square root of the
//! deviation. Divided by the deviation itself they lost as much on some texts and more on others (`evals/kv-codes`).
//!
//! There are kernels for the CPU and for GPUs; other devices code and decode on the host.

mod entries;
mod exact;
mod format;

pub use entries::CodedEntries;
pub(crate) use exact::Exact;
pub(crate) use format::Format;

use super::kernels::{CodeOps, ExactRows, Relative, kernel};
use super::oracle;
use super::route::Route;
use super::{bytes, read_error};
use crate::codes::Codes;
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData, s};

/// The mean of each channel of a KV head's keys and the square root of its standard deviation, `[batch, kv_heads, 1, head_dim]`.
#[derive(Clone, Debug)]
pub struct Channels {
    pub(crate) mean: Tensor<4>,
    pub(crate) scale: Tensor<4>,
    /// The keys that they were taken from.
    pub(crate) count: usize,
}

/// As many keys say what their channels are like.
const SETTLED: usize = 128;

impl Channels {
    /// Of keys `[batch, kv_heads, n, head_dim]`, n at least 1.
    #[must_use]
    pub fn of(keys: Tensor<4>) -> Self {
        let keys = keys.cast(DType::F32);
        let count = keys.dims()[2];
        let mean = keys.clone().mean_dim(2);
        let variance = (keys - mean.clone()).square().mean_dim(2);
        let scale = variance.sqrt().sqrt();
        // A channel that does not vary takes part in its run nearly as it is.
        let usual = scale.clone().mean_dim(3).clamp_min(1e-6);
        let least = usual.mul_scalar(1e-2).expand(scale.dims());
        let scale = scale.clone().mask_where(scale.lower(least.clone()), least);
        Self { mean, scale, count }
    }

    /// Whether they were taken from enough keys to stay as they are.
    pub(crate) fn are_settled(&self) -> bool {
        self.count >= SETTLED
    }

    /// Bytes of both.
    pub fn bytes(&self) -> usize {
        bytes(&self.mean).saturating_add(bytes(&self.scale))
    }

    pub(crate) fn of_head(&self, row: usize, head: usize) -> Self {
        let of = |all: &Tensor<4>| all.clone().narrow(0, row, 1).narrow(1, head, 1);
        Self {
            mean: of(&self.mean),
            scale: of(&self.scale),
            count: self.count,
        }
    }

    /// The same in the form that kernels take.
    fn kernel(of: Option<&Self>) -> Relative<Dispatch> {
        match of {
            None => Relative::No,
            Some(channels) => Relative::Channels {
                mean: channels.mean.clone().into_dispatch(),
                scale: channels.scale.clone().into_dispatch(),
            },
        }
    }
}

/// Vectors in codes, `[batch, kv_heads, n, head_dim]`.
#[derive(Clone, Debug)]
pub struct Coded {
    /// `[batch, kv_heads, n, words]`
    pub(crate) words: Tensor<4, Int>,
    pub(crate) codes: Codes,
    pub(crate) head_dim: usize,
    pub(crate) channels: Option<Channels>,
}

impl Coded {
    /// Vectors `[batch, kv_heads, n, head_dim]` in codes, relative to their channels if these are given.
    ///
    /// # Panics
    /// For channels of another shape.
    #[must_use]
    pub fn of(vectors: Tensor<4>, codes: Codes, channels: Option<Channels>) -> Self {
        let [batch, kv_heads, _, head_dim] = vectors.dims();
        if let Some(channels) = &channels {
            assert_eq!(channels.mean.dims(), [batch, kv_heads, 1, head_dim]);
        }
        Self {
            words: encode(vectors, codes, channels.as_ref()),
            codes,
            head_dim,
            channels,
        }
    }

    /// Vectors of `[batch, kv_heads, n]` heads and places from the numbers that [`Coded::numbers`] gave.
    ///
    /// # Errors
    /// What is wrong with the numbers: another count than the shape has, and what stands for no finite vectors.
    pub(crate) fn from_numbers(
        numbers: &[u32],
        [batch, kv_heads, n]: [usize; 3],
        head_dim: usize,
        codes: Codes,
        channels: Option<Channels>,
        device: &Device,
    ) -> Result<Self, String> {
        let width = codes.words(head_dim);
        let dims = [batch, kv_heads, n, width];
        if numbers.len() != dims.iter().product::<usize>() {
            return Err(format!("{} numbers", numbers.len()));
        }
        let runs = head_dim.div_ceil(Codes::RUN);
        let mut last = numbers.chunks(width).flat_map(|row| &row[width - runs..]);
        if last.any(|&word| !f32::from_bits(word & !0xfff).is_finite()) {
            return Err("a run that is not finite".into());
        }
        let scales: Vec<f32> = match &channels {
            Some(channels) => channels.scale.clone().try_into_vec_as().unwrap_or_default(),
            None => Vec::new(),
        };
        if scales.iter().any(|&scale| scale <= 0.0) {
            return Err("a channel whose scale is not above 0".into());
        }
        let words: Vec<i32> = numbers.iter().map(|&word| word as i32).collect();
        Ok(Self {
            words: Tensor::from_data(TensorData::new(words, dims), (device, DType::I32)),
            codes,
            head_dim,
            channels,
        })
    }

    /// The words, row-major.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub(crate) fn numbers(&self) -> crate::Result<Vec<u32>> {
        let words: Vec<i32> = self.words.clone().try_into_vec_as().map_err(read_error)?;
        Ok(words.into_iter().map(|word| word as u32).collect())
    }

    /// `[batch, kv_heads, n, words]`
    pub(crate) fn dims(&self) -> [usize; 4] {
        self.words.dims()
    }

    /// The vectors in f32, `[batch, kv_heads, n, head_dim]`.
    #[must_use]
    pub fn vectors(&self) -> Tensor<4> {
        self.range(0, self.capacity(), None)
    }

    /// The `count` vectors from place `first` on, with those that are exact, `[batch, kv_heads, m, head_dim]`, at their slots.
    pub(crate) fn range(
        &self,
        first: usize,
        count: usize,
        exact: Option<(&Tensor<4>, &Tensor<3, Int>)>,
    ) -> Tensor<4> {
        let all = self.capacity();
        assert!(first + count <= all, "{count} from {first} on of {all}");
        let channels = self.channels.as_ref();
        if Route::on(&self.words.device()) == Route::Plain {
            let words = self.words.clone().narrow(2, first, count);
            let vectors = oracle::codes::decode(words, self.format(), channels);
            return match exact {
                None => vectors,
                Some((rows, slots)) => oracle::codes::put_exact(vectors, rows, slots, first),
            };
        }
        let exact = match exact {
            None => ExactRows::None,
            Some((rows, slots)) => ExactRows::Rows {
                rows: rows.clone().into_dispatch(),
                slots: slots.clone().into_dispatch(),
            },
        };
        kernel!(CodeOps::decode(
            self.words.clone(),
            Channels::kernel(channels),
            exact,
            self.codes,
            self.head_dim,
            first,
            count
        ))
    }

    fn format(&self) -> Format {
        Format {
            codes: self.codes,
            dim: self.head_dim,
        }
    }

    /// The first `count` vectors.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        self.with(self.words.clone().slice(s![.., .., 0..count, ..]))
    }

    /// The vectors of one KV head in one row.
    #[must_use]
    pub fn of_head(&self, row: usize, head: usize) -> Self {
        let channels = self.channels.as_ref();
        Self {
            words: self.words.clone().narrow(0, row, 1).narrow(1, head, 1),
            channels: channels.map(|channels| channels.of_head(row, head)),
            ..*self
        }
    }

    /// How many vectors each head has room for.
    pub fn capacity(&self) -> usize {
        self.words.dims()[2]
    }

    /// Bytes of the codes.
    pub fn bytes(&self) -> usize {
        bytes(&self.words)
    }

    /// The same vectors in room for `capacity` of them; what follows is zero.
    pub(crate) fn grow(&mut self, capacity: usize) {
        let words = self.words.extract();
        let [batch, kv_heads, count, width] = words.dims();
        let dims = [batch, kv_heads, capacity, width];
        let room = Tensor::<4, Int>::zeros(dims, (&words.device(), words.dtype()));
        self.words = room.slice_assign(s![.., .., 0..count, ..], words);
    }

    /// Overwrites vectors from place `first` on, in place while nobody else holds the words.
    pub(crate) fn set(&mut self, first: usize, vectors: Tensor<4>) {
        let places = first..first.saturating_add(vectors.dims()[2]);
        let new = encode(vectors, self.codes, self.channels.as_ref());
        self.words
            .inplace(|words| words.slice_assign(s![.., .., places, ..], new));
    }

    /// Adds to the vectors at `slots [batch, kv_heads, count]`, all different in a head, or to the first ones.
    pub(crate) fn add(&mut self, slots: Option<&Tensor<3, Int>>, delta: Tensor<4>) {
        let Some(slots) = slots else {
            let count = delta.dims()[2];
            return self.set(0, self.range(0, count, None).add(delta));
        };
        let index = self.index(slots);
        let old = self.with(self.words.clone().gather(2, index));
        self.put(slots, old.vectors().add(delta));
    }

    /// Overwrites the vectors at `slots [batch, kv_heads, count]`, all different in a head, by `vectors [batch, kv_heads, count,
    /// head_dim]`.
    pub(crate) fn put(&mut self, slots: &Tensor<3, Int>, vectors: Tensor<4>) {
        let index = self.index(slots);
        let new = encode(vectors, self.codes, self.channels.as_ref());
        self.words
            .inplace(|words| words.scatter(2, index, new, IndexingUpdateOp::Assign));
    }

    /// The slot of every word of the vectors at `slots [batch, kv_heads, count]`.
    fn index(&self, slots: &Tensor<3, Int>) -> Tensor<4, Int> {
        let [batch, kv_heads, count] = slots.dims();
        let width = self.words.dims()[3];
        let slots = oracle::choice::existing(slots.clone(), self.capacity());
        let slots = slots.unsqueeze_dim::<4>(3);
        slots.expand([batch, kv_heads, count, width])
    }

    /// Where the words lie in memory.
    #[cfg(all(test, feature = "flex"))]
    pub(crate) fn address(&self) -> usize {
        let words = self.words.clone();
        let words = words.try_into_primitive::<burn::backend::Flex>().unwrap();
        words.storage::<i32>().as_ptr() as usize
    }

    fn with(&self, words: Tensor<4, Int>) -> Self {
        Self {
            words,
            channels: self.channels.clone(),
            ..*self
        }
    }
}

fn encode(vectors: Tensor<4>, codes: Codes, channels: Option<&Channels>) -> Tensor<4, Int> {
    match Route::on(&vectors.device()) {
        Route::Plain => oracle::codes::encode(vectors, codes, channels),
        _ => kernel!(CodeOps::encode(vectors, Channels::kernel(channels), codes)),
    }
}
