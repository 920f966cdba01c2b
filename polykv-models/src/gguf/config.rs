//! The metadata of a GGUF file as the shape of its model.

use super::GgufFile;
use super::value::quoted;
use crate::config::once_each;
use crate::config::{Family, ModelConfig};
use polykv_core::{Error, Result};

/// Texts of the tokens that end a turn, as llama.cpp knows them. Converters name one end token at most by number, so the
/// others are looked up by text.
const END_TOKENS: [&str; 16] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
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
    /// The model's shape from the `llama.*` or `qwen3.*` keys; other architectures and options are refused by name.
    ///
    /// A `rope_freqs.weight` tensor is recognised as Llama 3 scaling when its values follow that rule.
    pub fn config(&self) -> Result<ModelConfig> {
        let family = self.family()?;
        let key = |name: &str| key(family, name);
        if self.uint(&key("expert_count"))?.is_some_and(|n| n > 0) {
            return Err(Error::unsupported("a mixture of experts", self.place()));
        }
        let heads = self.size(&key("attention.head_count"))?;
        let hidden_size = self.size(&key("embedding_length"))?;
        let head_dim = self.head_dim(family, hidden_size, heads)?;
        let rope_theta = self.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        let context = self.size(&key("context_length"))?;
        self.refuse_window(family, context)?;
        let rope_scaling = match self.tensor("rope_freqs.weight") {
            Some(_) => self.llama3_scaling(rope_theta, head_dim)?,
            None => self.rope_scaling(family, context)?,
        };
        let config = ModelConfig {
            family,
            vocab_size: self.vocab_size()?,
            hidden_size,
            intermediate_size: self.size(&key("feed_forward_length"))?,
            layers: self.size(&key("block_count"))?,
            heads,
            kv_heads: match self.uint(&key("attention.head_count_kv"))? {
                Some(_) => self.size(&key("attention.head_count_kv"))?,
                None => heads,
            },
            head_dim,
            max_positions: rope_scaling.context(context),
            rms_eps: self
                .number(&key("attention.layer_norm_rms_epsilon"))?
                .unwrap_or(1e-5),
            rope_theta,
            rope_scaling,
            tie_embeddings: self.tensor("output.weight").is_none(),
            bos_token: self.token("tokenizer.ggml.bos_token_id")?,
            eos_tokens: self.end_tokens()?,
        };
        config.validate(self.place())?;
        Ok(config)
    }

    /// A window that the context does not fit into would hide tokens from some layers; there is no code for it.
    fn refuse_window(&self, family: Family, context: usize) -> Result<()> {
        let key = key(family, "attention.sliding_window");
        match self.uint(&key)? {
            Some(window) if window > 0 && window < context as u64 => Err(Error::unsupported(
                format!("{key} {window}"),
                format!(
                    "{}: allowed is a window of at least the context, {context}",
                    self.place()
                ),
            )),
            _ => Ok(()),
        }
    }

    fn family(&self) -> Result<Family> {
        let allowed = "llama or qwen3";
        match self.text("general.architecture")? {
            Some("llama") => Ok(Family::Llama),
            Some("qwen3") => Ok(Family::Qwen3),
            Some(other) => Err(Error::unsupported(
                format!("architecture {}", quoted(other)),
                format!("{}: allowed are {allowed}", self.place()),
            )),
            None => Err(self.refuse("general.architecture", "missing", allowed)),
        }
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

    /// Key, value and rotary widths may be given apart; only equal ones are implemented.
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
        for name in ["attention.value_length", "rope.dimension_count"] {
            let key = key(family, name);
            if let Some(found) = self.uint(&key)?
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
        for kind in ["eos", "eot", "eom"] {
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
        assert_eq!(config.rope_scaling, RopeScaling::None);
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
        for kind in ["eot", "eom"] {
            let key = format!("tokenizer.ggml.{kind}_token_id");
            let file = tiny_llama().replace("tokenizer.ggml.tokens", &tokens("x"));
            let file = file.value(&key, &Value::Uint(9)).open();
            assert_eq!(file.config().unwrap().eos_tokens, [258, 9], "{kind}");
        }
    }

    #[test]
    fn a_window_is_refused_unless_it_holds_the_context() {
        let key = "llama.attention.sliding_window";
        let with = |window| {
            tiny_llama()
                .value(key, &Value::Uint(window))
                .open()
                .config()
        };
        let message = with(64).unwrap_err().to_string();
        assert!(message.contains(&format!("{key} 64")), "{message}");
        assert!(message.contains("the context, 128"), "{message}");
        for window in [0, 128] {
            assert_eq!(with(window).unwrap().max_positions, 128);
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
