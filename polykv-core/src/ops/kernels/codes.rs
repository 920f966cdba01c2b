//! Entries in codes, see [`ops::coded`](crate::ops::coded).
//!
//! Shapes: words `[batch, kv_heads, n, words]`, 32-bit integers; vectors `[batch, kv_heads, n, d]`, in f32 or as the cache stores
//! floats. Slots are as in [`EntryOps`](super::EntryOps).

use super::Mask;
#[cfg(feature = "cube")]
use super::shapes;
use crate::codes::Codes;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};

/// What vectors are coded relative to, see [`Channels`](crate::ops::coded::Channels).
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Relative<B: Backend> {
    /// Nothing.
    No,
    /// `[batch, kv_heads, 1, d]` both, in f32.
    Channels {
        mean: FloatTensor<B>,
        scale: FloatTensor<B>,
    },
}

/// Vectors that are kept in floats as well, as the cache stores these.
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum ExactRows<B: Backend> {
    None,
    Rows {
        /// `[batch, kv_heads, count, d]`
        rows: FloatTensor<B>,
        /// Where they are among the entries, `[batch, kv_heads, count]`; what is no slot stands for none.
        slots: IntTensor<B>,
    },
}

/// The same of keys and values.
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum ExactEntries<B: Backend> {
    None,
    Rows {
        keys: FloatTensor<B>,
        values: FloatTensor<B>,
        slots: IntTensor<B>,
    },
}

/// Which slot of each head is overwritten.
#[derive(Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum Place<B: Backend> {
    /// The same of all.
    Same { slot: usize },
    /// `[batch, kv_heads, 1]`
    Each { slots: IntTensor<B> },
}

/// Coding, moving and attending to entries.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
)]
pub trait CodeOps: Backend {
    /// The words of vectors.
    #[fusion(meta = |vectors, _relative, codes| {
        let [batch, kv_heads, n, dim] = [0, 1, 2, 3].map(|axis| vectors.shape[axis]);
        shapes::numbers([batch, kv_heads, n, codes.words(dim)])
    })]
    fn encode(
        vectors: FloatTensor<Self>,
        #[extension_type] relative: Relative<Self>,
        codes: Codes,
    ) -> IntTensor<Self>;

    /// The `count` vectors of `dim` numbers from slot `first` on, in f32.
    #[fusion(meta = |words, _relative, _exact, _codes, dim, _first, count| {
        shapes::floats([words.shape[0], words.shape[1], *count, *dim])
    })]
    fn decode(
        words: IntTensor<Self>,
        #[extension_type] relative: Relative<Self>,
        #[extension_type] exact: ExactRows<Self>,
        codes: Codes,
        dim: usize,
        first: usize,
        count: usize,
    ) -> FloatTensor<Self>;

    /// [`EntryOps::compact`](super::EntryOps::compact) of entries in codes.
    #[fusion(meta = |keys, _values, positions, _slots, capacity| {
        let entries = [keys.shape[0], keys.shape[1], *capacity, keys.shape[3]];
        (
            shapes::like(keys, entries),
            shapes::like(keys, entries),
            shapes::like(positions, [entries[0], entries[1], entries[2]]),
        )
    })]
    fn compact_codes(
        keys: IntTensor<Self>,
        values: IntTensor<Self>,
        positions: IntTensor<Self>,
        slots: IntTensor<Self>,
        capacity: usize,
    ) -> (IntTensor<Self>, IntTensor<Self>, IntTensor<Self>);

    /// Codes `key` and `value [batch, kv_heads, 1, d]`, the key relative to its channels, into one slot of each head, at
    /// `position`, in place while the tensors are not shared.
    #[fusion(meta = |keys, values, positions, _place, _key, _value, _relative, _codes, _position| (
        keys.clone(), values.clone(), positions.clone(),
    ))]
    fn put_codes(
        keys: IntTensor<Self>,
        values: IntTensor<Self>,
        positions: IntTensor<Self>,
        #[extension_type] place: Place<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] relative: Relative<Self>,
        codes: Codes,
        position: usize,
    ) -> (IntTensor<Self>, IntTensor<Self>, IntTensor<Self>);

    /// [`TokenOps::attend_token`](super::TokenOps::attend_token) over entries in codes.
    #[fusion(meta = |q, keys, _values, _relative, _exact, _codes, entries, _mask| {
        let row = [keys.shape[0], keys.shape[1], q.shape[1] / keys.shape[1], *entries];
        (q.clone(), shapes::like(q, row))
    })]
    fn attend_codes(
        q: FloatTensor<Self>,
        keys: IntTensor<Self>,
        values: IntTensor<Self>,
        #[extension_type] relative: Relative<Self>,
        #[extension_type] exact: ExactEntries<Self>,
        codes: Codes,
        entries: usize,
        #[extension_type] mask: Mask<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Slots of exact vectors `[batch, kv_heads, count]` after the entry in slot `last` of each head has moved into that of
    /// `victims [batch, kv_heads, 1]`, whose own entry is gone: −1 then.
    #[fusion(meta = |slots, _victims, _last| slots.clone())]
    fn move_exact(slots: IntTensor<Self>, victims: IntTensor<Self>, last: usize)
    -> IntTensor<Self>;
}
