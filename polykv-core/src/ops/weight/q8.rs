//! What 8-bit weights are.

use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};

/// Values of a row that share a scale in 8-bit weights.
pub const Q8_BLOCK: usize = 32;

/// burn's name for 8-bit weights as they are loaded: symmetric, one f32 scale per [`Q8_BLOCK`] values of a row.
pub fn q8_scheme() -> QuantScheme {
    QuantScheme::default()
        .with_value(QuantValue::Q8S)
        .with_store(QuantStore::Native)
        .per_block([Q8_BLOCK as u8], ScaleDtype::F32)
}
