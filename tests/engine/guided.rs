//! Answers that follow a guide of one's own, alone and beside others.

use super::{LAYERS, Log, alone, model, options, prompt};
use polykv::models::engine::{Engine, EngineOptions, Request};
use polykv::models::guide::Guide;
use polykv::models::{Finish, GenerateOptions};
use polykv::{Error, Plan, Result};

/// Ids that grow by small steps, `left` of them.
#[derive(Clone, Debug)]
struct Growing {
    next: u32,
    left: usize,
}

impl Guide for Growing {
    fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        if self.next as usize >= logits.len() {
            return Err(Error::Failed("there is no id above".into()));
        }
        let (next, end) = (
            self.next as usize,
            logits.len().min(self.next as usize + 40),
        );
        logits[..next].fill(f32::NEG_INFINITY);
        logits[end..].fill(f32::NEG_INFINITY);
        Ok(())
    }

    fn push(&mut self, token: u32) -> Result<bool> {
        assert!(token >= self.next);
        self.next = token + 1;
        self.left -= 1;
        Ok(self.left == 0)
    }

    fn copy(&self) -> Box<dyn Guide> {
        Box::new(self.clone())
    }
}

fn guided(seed: u32, guide: Growing) -> Request {
    let options = GenerateOptions {
        guide: Some(Box::new(guide)),
        ..options(12)
    };
    Request::new(prompt(20, seed), Plan::full(LAYERS), options)
}

#[test]
fn an_own_guide_is_followed() {
    let model = model();
    let mut engine = Engine::new(&model, EngineOptions::default());
    let mut first = guided(1, Growing { next: 3, left: 4 });
    // Each answer follows it from the start.
    first.choices = 2;
    let last = u32::try_from(model.model.config().vocab_size).unwrap() - 1;
    let ended = guided(
        2,
        Growing {
            next: last,
            left: 9,
        },
    );
    let free = Request::new(prompt(20, 1), Plan::full(LAYERS), options(12));
    let [one, broken, other] =
        [&first, &ended, &free].map(|request| engine.submit(request.clone()).unwrap());
    let mut log = Log::default();
    log.run(&mut engine);
    // A guide that cannot go on ends its own request.
    let error = log.errors.remove(&broken).unwrap().to_string();
    assert!(error.contains("no id above"), "{error}");
    for choice in 0..2 {
        let (tokens, text) = log.answer(one, choice);
        assert_eq!((tokens.clone(), text), alone(&first));
        assert_eq!(tokens.len(), 4);
        assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
        assert_eq!(log.answers[&(one, choice)].finish, Finish::Stop);
    }
    assert_eq!(log.answer(other, 0), alone(&free));
}
