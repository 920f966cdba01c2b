//! What GGUF files of the llama architecture say about their model, and how their tensors map to checkpoint names.

use super::GgufFile;
use super::value::quoted;
use crate::config::{Family, ModelConfig, RopeScaling};
use polykv_core::{Error, Result};

/// Texts of tokens that end a chat turn. Converters list only one end token, so these are looked up by name.
const END_TOKENS: [&str; 2] = ["<|im_end|>", "<|eot_id|>"];

impl GgufFile {
    /// The model's shape from the `llama.*` keys; other architectures and options are refused by name.
    ///
    /// A `rope_freqs.weight` tensor is recognised as Llama 3 scaling when its values follow that rule.
    pub fn config(&self) -> Result<ModelConfig> {
        match self.text("general.architecture")? {
            Some("llama") => {}
            Some(other) => {
                let what = format!("architecture {}", quoted(other));
                return Err(Error::unsupported(
                    what,
                    format!("{}: only llama can be loaded", self.place()),
                ));
            }
            None => return Err(self.refuse("general.architecture", "missing", "\"llama\"")),
        }
        if self.uint("llama.expert_count")?.is_some_and(|n| n > 0) {
            return Err(Error::unsupported("a mixture of experts", self.place()));
        }
        let heads = self.size("llama.attention.head_count")?;
        let hidden_size = self.size("llama.embedding_length")?;
        let head_dim = self.head_dim(hidden_size, heads)?;
        let rope_theta = self.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
        let config = ModelConfig {
            family: Family::Llama,
            vocab_size: self.vocab_size()?,
            hidden_size,
            intermediate_size: self.size("llama.feed_forward_length")?,
            layers: self.size("llama.block_count")?,
            heads,
            kv_heads: match self.uint("llama.attention.head_count_kv")? {
                Some(_) => self.size("llama.attention.head_count_kv")?,
                None => heads,
            },
            head_dim,
            max_positions: self.size("llama.context_length")?,
            rms_eps: self
                .number("llama.attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-5),
            rope_theta,
            rope_scaling: self.rope_scaling(rope_theta, head_dim)?,
            tie_embeddings: self.tensor("output.weight").is_none(),
            bos_token: self.token("tokenizer.ggml.bos_token_id")?,
            eos_tokens: self.end_tokens()?,
        };
        config.validate(self.place())?;
        Ok(config)
    }

    fn size(&self, key: &str) -> Result<usize> {
        let found = self
            .uint(key)?
            .ok_or_else(|| self.refuse(key, "missing", "a whole number"))?;
        usize::try_from(found).map_err(|_| self.refuse(key, found, "a size"))
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        self.uint(key)?
            .map(|id| u32::try_from(id).map_err(|_| self.refuse(key, id, "a token id")))
            .transpose()
    }

    /// Key, value and rotary widths may be given apart; only equal ones are implemented.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize> {
        let even = hidden
            .checked_div(heads)
            .ok_or_else(|| self.refuse("llama.attention.head_count", 0, "above 0"))?;
        let head_dim = match self.uint("llama.attention.key_length")? {
            Some(_) => self.size("llama.attention.key_length")?,
            None => even,
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(found) = self.uint(key)?
                && found != head_dim as u64
            {
                let reason = format!("{}: the head size is {head_dim}", self.place());
                return Err(Error::unsupported(format!("{key} {found}"), reason));
            }
        }
        Ok(head_dim)
    }

    /// The embedding table decides; the token list stands in for it in files without tensors.
    fn vocab_size(&self) -> Result<usize> {
        let tokens = self
            .value("tokenizer.ggml.tokens")
            .and_then(|v| v.as_array())
            .map(<[_]>::len);
        let rows = self.tensor("token_embd.weight").map(|t| t.shape[0]);
        match (rows, tokens) {
            (Some(rows), Some(tokens)) if tokens > rows => Err(self.refuse(
                "tokenizer.ggml.tokens",
                format!("{tokens} tokens"),
                &format!("up to the {rows} rows of token_embd.weight"),
            )),
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => Err(self.refuse("token_embd.weight", "missing", "present")),
        }
    }

    fn end_tokens(&self) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        ids.extend(self.token("tokenizer.ggml.eos_token_id")?);
        ids.extend(self.token("tokenizer.ggml.eot_token_id")?);
        if let Some(tokens) = self.texts("tokenizer.ggml.tokens")? {
            for end in END_TOKENS {
                ids.extend(tokens.iter().position(|t| *t == end).map(|id| id as u32));
            }
        }
        let mut unique = Vec::new();
        for id in ids {
            if !unique.contains(&id) {
                unique.push(id);
            }
        }
        Ok(unique)
    }

    fn rope_scaling(&self, theta: f64, head_dim: usize) -> Result<RopeScaling> {
        if let Some(freqs) = self.tensor("rope_freqs.weight") {
            if freqs.elements() != head_dim / 2 {
                let allowed = format!("{} numbers, half the head size", head_dim / 2);
                let found = format!("{:?}", freqs.shape);
                return Err(self.refuse("tensor rope_freqs.weight", found, &allowed));
            }
            return self.llama3_scaling(theta, head_dim);
        }
        let factor = match self.number("llama.rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("llama.rope.scale_linear")?,
        };
        match (self.text("llama.rope.scaling.type")?, factor) {
            (Some("none"), _) | (None, None) => Ok(RopeScaling::None),
            (None | Some("linear"), Some(1.0)) => Ok(RopeScaling::None),
            (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
            (Some("linear"), None) => {
                Err(self.refuse("llama.rope.scaling.factor", "missing", "a number"))
            }
            (Some(other), _) => Err(Error::unsupported(
                format!("llama.rope.scaling.type {}", quoted(other)),
                format!("{}: allowed are none and linear", self.place()),
            )),
        }
    }

    /// The file holds only the divisors of the frequencies; the published parameters that give them are found by trial.
    fn llama3_scaling(&self, theta: f64, head_dim: usize) -> Result<RopeScaling> {
        let divisors = self.read_f32("rope_freqs.weight")?;
        let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
        let (low, high, original) = (1.0, 4.0, 8192usize);
        let fits = divisors.len() == head_dim / 2
            && divisors.iter().enumerate().all(|(pair, found)| {
                let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
                let expected = llama3_divisor(frequency, factor, low, high, original as f64);
                (f64::from(*found) / expected - 1.0).abs() < 1e-3
            });
        if !fits {
            let reason = format!(
                "{}: only Llama 3 scaling with frequency factors {low} and {high} from {original} positions is known",
                self.place()
            );
            return Err(Error::unsupported(
                "the scaling in rope_freqs.weight",
                reason,
            ));
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: original,
        })
    }
}

/// What Llama 3 scaling divides one rotary frequency (radians per position) by.
fn llama3_divisor(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = std::f64::consts::TAU / frequency;
    if wavelength < original / high {
        1.0
    } else if wavelength > original / low {
        factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

/// The checkpoint name of a GGUF tensor: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.
///
/// `None` for tensors that have no counterpart, such as `rope_freqs.weight`.
pub fn hf_name(gguf_name: &str) -> Option<String> {
    match gguf_name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, part) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let module = match part.strip_suffix(".weight")? {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.weight"))
}

/// Puts the rows of a GGUF query or key weight, shape `[heads * head_dim, inner]`, into checkpoint order.
///
/// GGUF llama files order them for interleaved rotation, `[heads, head_dim / 2, 2, inner]`; checkpoints rotate
/// halves, `[heads, 2, head_dim / 2, inner]`. Fails when the length is not `heads * head_dim * inner` or
/// `head_dim` is odd.
pub fn unpermute_rope_rows(
    data: &[f32],
    heads: usize,
    head_dim: usize,
    inner: usize,
) -> Result<Vec<f32>> {
    let expected = heads
        .checked_mul(head_dim)
        .and_then(|rows| rows.checked_mul(inner));
    if expected != Some(data.len()) || data.is_empty() || !head_dim.is_multiple_of(2) {
        let allowed = format!("{heads} heads of an even size {head_dim}, rows of {inner}");
        return Err(Error::invalid(
            "query or key weight",
            "length",
            data.len(),
            allowed,
        ));
    }
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(data.len());
    for head in data.chunks_exact(head_dim * inner) {
        for side in 0..2 {
            for pair in 0..half {
                let row = (pair * 2 + side) * inner;
                out.extend_from_slice(&head[row..row + inner]);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::super::testing::tiny_llama;
    use super::*;

    #[test]
    fn config_of_a_tiny_file() {
        let config = tiny_llama().open().config().unwrap();
        assert_eq!(config.fingerprint(), "llama-1x2q1kv4d-8h-261v");
        assert_eq!((config.rms_eps, config.max_positions), (1e-5, 128));
        assert_eq!(config.eos_tokens, [258]);
        assert!(config.tie_embeddings);
        assert_eq!(config.rope_scaling, RopeScaling::None);
    }

    #[test]
    fn config_refusals() {
        let cases = [
            ("general.architecture", Value::String("mamba".into())),
            ("llama.expert_count", Value::Uint(8)),
            ("llama.block_count", Value::Uint(0)),
            ("llama.attention.head_count", Value::Uint(0)),
            ("llama.attention.head_count_kv", Value::Array(vec![])),
            ("llama.rope.dimension_count", Value::Uint(2)),
            ("llama.rope.scaling.type", Value::String("yarn".into())),
            ("llama.embedding_length", Value::Int(-1)),
            ("llama.rope.freq_base", Value::Float(f64::NAN)),
        ];
        for (key, value) in cases {
            let file = tiny_llama().replace(key, &value).open();
            let message = file.config().unwrap_err().to_string();
            assert!(message.contains(file.place()), "{message}");
        }
    }

    #[test]
    fn llama3_factors_are_recognised() {
        // 32 pairs with theta 500000 and factor 8 reach all three branches.
        let divisors: Vec<f32> = (0..32)
            .map(|i| {
                let frequency = 500_000f64.powf(-2.0 * f64::from(i) / 64.0);
                llama3_divisor(frequency, 8.0, 1.0, 4.0, 8192.0) as f32
            })
            .collect();
        let load = |values: &[f32]| {
            tiny_llama()
                .f32_tensor("rope_freqs.weight", &[32], values)
                .open()
                .llama3_scaling(500_000.0, 64)
        };
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        assert_eq!(load(&divisors).unwrap(), expected);
        let mut other = divisors;
        other[16] *= 1.1;
        assert!(load(&other).unwrap_err().is_refusal());
    }

    #[test]
    fn names() {
        let name = |n| hf_name(n).unwrap();
        assert_eq!(name("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(
            name("blk.12.attn_output.weight"),
            "model.layers.12.self_attn.o_proj.weight"
        );
        assert_eq!(
            name("blk.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight"
        );
        for other in ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.1.attn_q"] {
            assert_eq!(hf_name(other), None);
        }
    }

    #[test]
    fn rows_return_to_checkpoint_order() {
        // Two heads of four rows of two numbers; checkpoint row r holds r and -r.
        let checkpoint: Vec<f32> = (0..8).flat_map(|r| [r as f32, -(r as f32)]).collect();
        let permuted: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7]
            .into_iter()
            .flat_map(|r: usize| checkpoint[r * 2..r * 2 + 2].to_vec())
            .collect();
        assert_eq!(unpermute_rope_rows(&permuted, 2, 4, 2).unwrap(), checkpoint);
        assert!(unpermute_rope_rows(&permuted, 2, 4, 3).is_err());
        assert!(unpermute_rope_rows(&permuted, usize::MAX, 4, 3).is_err());
    }
}
