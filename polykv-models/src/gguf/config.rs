//! The metadata of a GGUF file as the shape of its model.

use super::GgufFile;
use super::value::quoted;
use crate::config::{Experts, Family, ModelConfig, check_layers, once_each};
use polykv_core::{Error, Result};

/// Texts of the tokens that end a turn, as llama.cpp knows them. Converters name one end token at most by number, so the
/// others are looked up by text.
const END_TOKENS: [&str; 19] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    // Where Qwen Coder goes on to another file.
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<end_of_utterance>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

impl GgufFile {
    /// The model's shape from the keys of its architecture (`llama.*`, `gemma3.*` and so on); other architectures and
    /// options are refused by name.
    ///
    /// A `rope_freqs.weight` tensor is recognised as Llama 3 scaling when its values follow that rule.
    pub fn config(&self) -> Result<ModelConfig> {
        let family = self.family()?;
        let key = |name: &str| key(family, name);
        let heads = self.size(&key("attention.head_count"))?;
        let hidden_size = self.size(&key("embedding_length"))?;
        let head_dim = self.head_dim(family, hidden_size, heads)?;
        let context = self.size(&key("context_length"))?;
        let count = self.size(&key("block_count"))?;
        check_layers(self.place(), count)?;
        let rope = self.rope(family, head_dim, context)?;
        let max_positions = rope.scaling.context(context);
        let config = ModelConfig {
            family,
            vocab_size: self.vocab_size()?,
            hidden_size,
            intermediate_size: self.size(&key("feed_forward_length"))?,
            layers: self.layers(family, count, rope, max_positions)?,
            experts: self.experts(family)?,
            heads,
            kv_heads: match self.uint(&key("attention.head_count_kv"))? {
                Some(_) => self.size(&key("attention.head_count_kv"))?,
                None => heads,
            },
            head_dim,
            max_positions,
            rms_eps: self
                .number(&key("attention.layer_norm_rms_epsilon"))?
                .unwrap_or(1e-5),
            attention_scale: match self.number(&key("attention.scale"))? {
                Some(scale) => Some(scale),
                None => gemma_27b_scale(family, count, hidden_size, heads),
            },
            attention_softcap: self.softcap(family, "attn_logit_softcapping", 50.0)?,
            logit_softcap: self.softcap(family, "final_logit_softcapping", 30.0)?,
            tie_embeddings: self.tensor("output.weight").is_none(),
            bos_token: self.token("tokenizer.ggml.bos_token_id")?,
            eos_tokens: self.end_tokens()?,
        };
        config.validate(self.place())?;
        Ok(config)
    }

    fn softcap(&self, family: Family, name: &str, gemma2: f64) -> Result<Option<f64>> {
        let default = (family == Family::Gemma2).then_some(gemma2);
        Ok(self.number(&key(family, name))?.or(default))
    }

    /// The experts of a family that has some; others are refused.
    fn experts(&self, family: Family) -> Result<Option<Experts>> {
        let key = |name: &str| key(family, name);
        if family == Family::Qwen3Moe {
            // llama.cpp divides the weights of the chosen experts by their sum, whatever the file says.
            return Ok(Some(Experts {
                count: self.size(&key("expert_count"))?,
                used: self.size(&key("expert_used_count"))?,
                intermediate_size: self.size(&key("expert_feed_forward_length"))?,
                normalize: true,
            }));
        }
        match self.uint(&key("expert_count"))? {
            Some(count) if count > 0 => {
                let what = format!("a mixture of experts in architecture {}", family.name());
                Err(Error::unsupported(what, self.place()))
            }
            _ => Ok(None),
        }
    }

    fn family(&self) -> Result<Family> {
        let allowed = Family::ALL.map(Family::name).join(", ");
        let Some(found) = self.text("general.architecture")? else {
            return Err(self.refuse("general.architecture", "missing", &allowed));
        };
        let known = Family::ALL.into_iter();
        let mut named = known.filter(|family| family.name() == found);
        named.next().ok_or_else(|| {
            let what = format!("architecture {}", quoted(found));
            let reason = format!("{}: allowed are {allowed}", self.place());
            Error::unsupported(what, reason)
        })
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
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

    /// Keys and values may have widths of their own; only equal ones are implemented.
    fn head_dim(&self, family: Family, hidden: usize, heads: usize) -> Result<usize> {
        let heads_key = key(family, "attention.head_count");
        let even = hidden
            .checked_div(heads)
            .ok_or_else(|| self.refuse(&heads_key, 0, "above 0"))?;
        let length_key = key(family, "attention.key_length");
        let head_dim = match self.uint(&length_key)? {
            Some(_) => self.size(&length_key)?,
            None => even,
        };
        let value_key = key(family, "attention.value_length");
        if let Some(found) = self.uint(&value_key)?
            && found != head_dim as u64
        {
            let reason = format!("{}: the head size is {head_dim}", self.place());
            return Err(Error::unsupported(format!("{value_key} {found}"), reason));
        }
        Ok(head_dim)
    }

    /// The embedding table decides; the token list stands in for it in files without tensors.
    fn vocab_size(&self) -> Result<usize> {
        let tokens = self
            .value("tokenizer.ggml.tokens")
            .and_then(|v| v.as_array())
            .map(<[_]>::len);
        let rows = self
            .tensor("token_embd.weight")
            .and_then(|t| t.shape.first().copied());
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
        for kind in ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
            ids.extend(self.token(&format!("tokenizer.ggml.{kind}_token_id"))?);
        }
        if let Some(tokens) = self.texts("tokenizer.ggml.tokens")? {
            for end in END_TOKENS {
                ids.extend(tokens.iter().position(|t| *t == end).map(|id| id as u32));
            }
        }
        Ok(once_each(ids))
    }
}

/// The factor before the softmax of the largest Gemmas, which files do not state: llama.cpp knows them by their number of
/// layers. Their heads are narrower than hidden_size / heads, and the scale follows the latter.
fn gemma_27b_scale(family: Family, layers: usize, hidden: usize, heads: usize) -> Option<f64> {
    let large = matches!(
        (family, layers),
        (Family::Gemma2, 46) | (Family::Gemma3, 62)
    );
    large.then(|| 1.0 / (hidden.checked_div(heads).unwrap_or(hidden) as f64).sqrt())
}

/// The name of an architecture's key; ggml's names of architectures are ours of families.
pub(super) fn key(family: Family, name: &str) -> String {
    format!("{}.{name}", family.name())
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::super::testing::tiny_llama;
    use crate::config::RopeScaling;

    #[test]
    fn config_of_a_tiny_file() {
        let config = tiny_llama().open().config().unwrap();
        assert_eq!(config.fingerprint(), "llama-1x2q1kv4d-8h-261v");
        assert_eq!((config.rms_eps, config.max_positions), (1e-5, 128));
        assert_eq!(config.eos_tokens, [258, 256]);
        assert!(config.tie_embeddings);
        assert_eq!(config.rope().scaling, RopeScaling::None);
    }

    #[test]
    fn every_token_that_ends_a_turn_is_found_by_its_text() {
        let ends = [
            "<|im_end|>",
            "<|eot_id|>",
            "<end_of_turn>",
            "<|end|>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<|eom_id|>",
            "<|file_sep|>",
            "<EOT>",
            "[EOT]",
            "<|return|>",
        ];
        let tokens = |end: &str| {
            let texts = (0..261).map(|i| match i {
                7 => end.to_owned(),
                _ => format!("t{i}"),
            });
            Value::Array(texts.map(Value::String).collect())
        };
        for end in ends {
            let file = tiny_llama().replace("tokenizer.ggml.tokens", &tokens(end));
            assert_eq!(file.open().config().unwrap().eos_tokens, [258, 7], "{end}");
        }
        for kind in ["eot", "eom", "fim_pad"] {
            let key = format!("tokenizer.ggml.{kind}_token_id");
            let file = tiny_llama().replace("tokenizer.ggml.tokens", &tokens("x"));
            let file = file.value(&key, &Value::Uint(9)).open();
            assert_eq!(file.config().unwrap().eos_tokens, [258, 9], "{kind}");
        }
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
}
