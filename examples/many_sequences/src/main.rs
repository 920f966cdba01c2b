//! Questions about texts of different lengths, each under a plan of its own: they decode together, reading the weights once.
//!
//! ```sh
//! cargo run --release -p many-sequences
//! ```

use polykv::models::engine::{Engine, EngineEvent, EngineOptions, Request};
use polykv::models::{GenerateOptions, hub, load};
use polykv::policy::{H2o, Tova};
use polykv::{Budget, DeviceSpec, Phase, Plan};
use std::collections::BTreeMap;
use std::sync::Arc;

const TEXT: &str = include_str!("../../handbook.txt");
const QUESTION: &str = "What is the password that opens the emergency locker?";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = hub::resolve("smollm2-135m", false, &mut |_| ())?;
    let model = load(&folder, &DeviceSpec::Auto.open()?)?;
    let layers = model.model.config().layers.len();
    let tova = Plan::uniform(
        layers,
        Arc::new(Tova::default()),
        Budget::Tokens(256),
        &Phase::BOTH,
    );
    let h2o = Plan::uniform(
        layers,
        Arc::new(H2o::default()),
        Budget::Ratio(0.25),
        &[Phase::Prefill],
    );
    let mut engine = Engine::new(
        &model,
        EngineOptions {
            kv_memory: Some(512 << 20),
            ..EngineOptions::default()
        },
    );
    let mut texts = BTreeMap::new();
    for (share, plan) in [
        (1, Plan::full(layers)),
        (1, tova.clone()),
        (2, h2o),
        (8, tova),
    ] {
        let part: String = TEXT.chars().take(TEXT.len() / share).collect();
        let prompt = model.prompt(&format!("{part}\n\n{QUESTION}"))?;
        let options = GenerateOptions {
            max_new_tokens: 32,
            ..GenerateOptions::default()
        };
        let id = engine.submit(Request::new(prompt, plan, options))?;
        texts.insert(id, String::new());
    }
    while !engine.is_idle() {
        for (id, event) in engine.step() {
            let text = texts.entry(id).or_default();
            match event {
                EngineEvent::Token(token) => text.push_str(&token.text),
                EngineEvent::Done(answer) => {
                    text.push_str(&answer.text);
                    let (cache, entries) = (&answer.cache, answer.cache.kept_mean());
                    println!(
                        "{id}: {text}\n   {entries:.0} of {} entries per layer, {} of {} bytes",
                        cache.seen, cache.bytes, cache.full_bytes
                    );
                }
                EngineEvent::Failed { error, .. } => println!("{id}: {error}"),
                _ => {}
            }
        }
    }
    Ok(())
}
