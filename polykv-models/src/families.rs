//! Which family has which layer.

pub(crate) use crate::gemma::GemmaLayer;
pub(crate) use crate::llama::LlamaLayer;
pub(crate) use crate::qwen2::Qwen2Layer;
pub(crate) use crate::qwen3::Qwen3Layer;
pub(crate) use crate::qwen3_moe::Qwen3MoeLayer;

/// Calls a function that is generic over the layer with that of a family.
macro_rules! with_layer {
    ($family:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        use $crate::config::Family;
        use $crate::families::*;
        match $family {
            Family::Llama | Family::Phi3 | Family::SmolLm3 => {
                $function::<LlamaLayer>($($argument),*)
            }
            Family::Qwen2 => $function::<Qwen2Layer>($($argument),*),
            Family::Qwen3 => $function::<Qwen3Layer>($($argument),*),
            Family::Qwen3Moe => $function::<Qwen3MoeLayer>($($argument),*),
            Family::Gemma2 | Family::Gemma3 => $function::<GemmaLayer>($($argument),*),
        }
    }};
}

pub(crate) use with_layer;
