//! config.json.

use polykv_models::ModelConfig;
use polykv_models::layers::Rope;

const MOST_PARAMETERS: u64 = 1 << 41;

pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match ModelConfig::from_hf_json("config.json", text) {
        Ok(config) => accepted(&config),
        Err(error) => super::refused(&error),
    }
}

/// What holds for every config that was accepted, whatever file it came from.
pub fn accepted(config: &ModelConfig) {
    config.validate("config").expect("a config that is valid");
    assert!(config.parameters() <= MOST_PARAMETERS);
    assert!(config.layers.len() <= 1024 && config.heads.is_multiple_of(config.kv_heads));
    assert!(
        config
            .eos_tokens
            .iter()
            .all(|&id| (id as usize) < config.vocab_size)
    );
    let ropes = Rope::new(&config.layers);
    for layer in 0..config.layers.len() {
        let rope = ropes.facts(layer);
        assert!(rope.frequencies.len() <= config.head_dim / 2);
        let finite = rope
            .frequencies
            .iter()
            .all(|frequency| frequency.is_finite());
        assert!(finite && rope.magnitude.is_finite(), "{config:?}");
    }
}
