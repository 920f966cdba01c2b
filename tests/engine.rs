//! Many sequences over one model: each gets what it would get alone, whoever comes and goes beside it.

#[path = "common/mod.rs"]
mod common;
#[path = "engine/guided.rs"]
mod guided;
#[path = "engine/memory.rs"]
mod memory;
#[path = "engine/operations.rs"]
mod operations;
#[path = "engine/rows.rs"]
mod rows;

use burn::tensor::Device;
use common::{all_variants, rule, uniform, written};
use polykv::allocate::least_budget;
use polykv::models::engine::{
    Answer, Engine, EngineEvent, EngineOptions, Refusal, Request, RequestId, Token,
};
use polykv::models::sample::SamplingParams;
use polykv::models::{Finish, GenerateOptions, Generator, LoadedModel, load};
use polykv::{Budget, Error, Phase, Plan};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// Layers and vocabulary of the model below.
const LAYERS: usize = 3;
const VOCABULARY: u32 = 320;

fn model_on(device: &Device) -> LoadedModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    load::load_as(&folder, polykv::Storage::F32, device).unwrap()
}

fn model() -> LoadedModel {
    model_on(&Device::flex())
}

/// A prompt without end tokens.
fn prompt(tokens: usize, seed: u32) -> Vec<u32> {
    let id = |i: u32| 3 + (i * 31 + seed * 57 + i * i * 7) % (VOCABULARY - 3);
    (0..tokens as u32).map(id).collect()
}

fn options(new: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: new,
        ..GenerateOptions::default()
    }
}

/// What a request alone gets.
fn alone(request: &Request) -> (Vec<u32>, String) {
    let mut generator = Generator::new(model(), request.plan.clone()).unwrap();
    generator.protect(request.protect.clone());
    let generation = generator
        .generate(&request.prompt, &request.options, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", written(&request.plan)));
    (generation.tokens, generation.text)
}

/// What came of requests.
#[derive(Default)]
struct Log {
    tokens: BTreeMap<(RequestId, usize), Vec<Token>>,
    answers: BTreeMap<(RequestId, usize), Answer>,
    errors: BTreeMap<RequestId, Error>,
}

impl Log {
    fn add(&mut self, events: Vec<(RequestId, EngineEvent)>) {
        for (id, event) in events {
            assert!(!self.errors.contains_key(&id), "an event after the error");
            match event {
                EngineEvent::Token(token) => {
                    let key = (id, token.choice);
                    assert!(!self.answers.contains_key(&key), "a token after the end");
                    self.tokens.entry(key).or_default().push(token);
                }
                EngineEvent::Done(answer) => {
                    let before = self.answers.insert((id, answer.choice), *answer);
                    assert!(before.is_none(), "two ends");
                }
                EngineEvent::Failed { error, .. } => {
                    self.errors.insert(id, error);
                }
                _ => {}
            }
        }
    }

    fn run(&mut self, engine: &mut Engine<'_>) {
        while !engine.is_idle() {
            self.add(engine.step());
        }
    }

    /// The tokens and the text of an answer, as they came.
    fn answer(&self, id: RequestId, choice: usize) -> (Vec<u32>, String) {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        let answer = &self.answers[&(id, choice)];
        let tokens = self.tokens.get(&(id, choice));
        let tokens = tokens.map_or(&[][..], Vec::as_slice);
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        assert_eq!(ids, answer.tokens);
        let texts = tokens.iter().map(|token| token.text.as_str());
        let text = texts.chain([answer.text.as_str()]).collect();
        (ids, text)
    }
}

/// Every policy in both phases, prompts of other lengths, and each joins while the others are at work.
#[test]
fn each_gets_what_it_gets_alone() {
    let model = model();
    let mut engine = Engine::new(
        &model,
        EngineOptions {
            chunk: 16,
            ..EngineOptions::default()
        },
    );
    let mut log = Log::default();
    let mut requests = Vec::new();
    for (index, policy) in all_variants().into_iter().enumerate() {
        let budget = least_budget(&*policy).unwrap() + 4 + index % 5;
        let plan = Plan::uniform(LAYERS, policy, Budget::Tokens(budget), &Phase::BOTH);
        let tokens = 1 + budget * (index % 4) + index;
        let request = Request::new(prompt(tokens, index as u32), plan, options(12 + index % 7));
        let id = engine.submit(request.clone()).unwrap();
        requests.push((id, request));
        for _ in 0..index % 9 {
            log.add(engine.step());
        }
    }
    log.run(&mut engine);
    assert_eq!(engine.stats().reserved_bytes, 0);
    for (id, request) in requests {
        let found = log.answer(id, 0);
        assert_eq!(found, alone(&request), "{}", written(&request.plan));
        let cache = &log.answers[&(id, 0)].cache;
        // The last token is fed when an end token was chosen after it.
        let all = request.prompt.len() + found.0.len();
        assert!(
            [all - 1, all].contains(&cache.seen),
            "{} of {all}",
            cache.seen
        );
    }
}

#[test]
fn choices_share_a_prompt_and_differ_by_their_seeds() {
    let model = model();
    let mut engine = Engine::new(&model, EngineOptions::default());
    let mut request = Request::new(
        prompt(40, 3),
        uniform(LAYERS, "tova", Budget::Tokens(12), &Phase::BOTH),
        GenerateOptions {
            sampling: SamplingParams {
                temperature: 1.0,
                seed: 5,
                ..SamplingParams::default()
            },
            ..options(10)
        },
    );
    request.choices = 3;
    request.logprobs = Some(2);
    request.kept = true;
    let id = engine.submit(request.clone()).unwrap();
    let mut log = Log::default();
    let mut kept = None;
    while !engine.is_idle() {
        let mut events = engine.step();
        for (_, event) in &mut events {
            if let EngineEvent::Prompt(prompted) = event {
                assert_eq!(prompted.cache.kept, [12.0; LAYERS]);
                kept = prompted.kept.take();
            }
        }
        log.add(events);
    }
    let kept = kept.unwrap();
    assert_eq!(kept.len(), 40);
    assert!((kept.iter().sum::<f32>() - 12.0).abs() < 1e-4, "{kept:?}");
    let mut texts = Vec::new();
    for choice in 0..3 {
        let mut one = request.clone();
        one.options.sampling.seed += choice as u64;
        let found = log.answer(id, choice);
        assert_eq!(found, alone(&one), "choice {choice}");
        for token in &log.tokens[&(id, choice)] {
            let probability = token.probability.as_ref().unwrap();
            assert_eq!(probability.top.len(), 2);
            assert!(probability.top[0].1 >= probability.logprob, "{token:?}");
            assert!(probability.logprob < 0.0);
        }
        texts.push(found.1);
    }
    texts.dedup();
    assert!(texts.len() > 1, "{texts:?}");
}

#[test]
fn answers_end_at_stop_texts_limits_and_the_context() {
    let model = model();
    let mut engine = Engine::new(&model, EngineOptions::default());
    let plan = || Plan::full(LAYERS);
    let (ids, text) = alone(&Request::new(prompt(9, 1), plan(), options(20)));
    let stop: String = text.chars().skip(4).take(3).collect();
    let stopped = GenerateOptions {
        stop: vec![stop.clone()],
        ..options(20)
    };
    let stopped = engine
        .submit(Request::new(prompt(9, 1), plan(), stopped))
        .unwrap();
    let none = engine
        .submit(Request::new(prompt(9, 1), plan(), options(0)))
        .unwrap();
    // Without end tokens.
    let endless = |new| {
        let mut options = options(new);
        options.sampling.logit_bias = vec![(70, 100.0)];
        options
    };
    let full = engine
        .submit(Request::new(prompt(505, 1), plan(), endless(99)))
        .unwrap();
    let packed = GenerateOptions {
        packed: true,
        ..endless(30)
    };
    let tova = uniform(LAYERS, "tova", Budget::Tokens(8), &Phase::BOTH);
    let packed = engine
        .submit(Request::new(prompt(505, 1), tova, packed))
        .unwrap();
    let mut log = Log::default();
    log.run(&mut engine);
    let (found, cut) = log.answer(stopped, 0);
    assert_eq!(cut, text[..text.find(&stop).unwrap()]);
    assert!(ids.starts_with(&found), "{ids:?} {found:?}");
    let finish = |id| log.answers[&(id, 0)].finish;
    assert_eq!(finish(stopped), Finish::Stop);
    assert_eq!(log.answer(none, 0), (vec![], String::new()));
    assert_eq!(finish(none), Finish::Length);
    // The last token that fits is chosen from the logits of the one before it.
    assert_eq!(log.answer(full, 0).0.len(), 512 - 505 + 1);
    assert_eq!(log.answer(packed, 0).0.len(), 30);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let model = model();
    let mut engine = Engine::new(&model, EngineOptions::default());
    let full = || Plan::full(LAYERS);
    let mut refused = |request: Request, text: &str| {
        match engine.submit(request).map_err(|refused| refused.refusal) {
            Err(Refusal::Invalid(error)) => {
                assert!(
                    error.is_refusal() && error.to_string().contains(text),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        };
    };
    refused(Request::new(vec![], full(), options(1)), "0 tokens");
    refused(
        Request::new(prompt(513, 1), full(), options(1)),
        "513 tokens",
    );
    refused(
        Request::new(vec![VOCABULARY], full(), options(1)),
        "token id is 320",
    );
    refused(
        Request::new(vec![3], Plan::full(2), options(1)),
        "layers is 2",
    );
    let mut many = Request::new(vec![3], full(), options(1));
    many.choices = 17;
    refused(many, "choices is 17");
    let mut hot = options(1);
    hot.sampling.temperature = -1.0;
    refused(Request::new(vec![3], full(), hot), "temperature");
    assert!(engine.is_idle());
    // What only the prompt's run can find out ends this request and no other.
    let mut tight = uniform(LAYERS, "tova", Budget::Tokens(4), &Phase::BOTH);
    tight.layers[1].prefill = rule("h2o");
    let mut protected = Request::new(prompt(30, 1), tight, options(3));
    protected.protect = polykv::Spans::prefix(20);
    let other = Request::new(prompt(30, 1), full(), options(3));
    let failing = engine.submit(protected);
    let going = engine.submit(other.clone()).unwrap();
    let mut log = Log::default();
    log.run(&mut engine);
    if let Ok(id) = failing {
        let error = log.errors.remove(&id).unwrap();
        assert!(error.is_refusal(), "{error}");
    }
    assert_eq!(log.answer(going, 0), alone(&other));
    assert_eq!(engine.stats().reserved_bytes, 0);
}

/// A sequence that goes on is one that was never put aside; whoever is cancelled or refused loses nothing.
#[test]
fn sequences_go_on() {
    let model = model();
    let mut engine = Engine::new(&model, EngineOptions::default());
    for name in ["tova", "h2o", "snapkv"] {
        let plan = uniform(LAYERS, name, Budget::Tokens(40), &Phase::BOTH);
        let mut generator = Generator::new(self::model(), plan.clone()).unwrap();
        let mut held = None;
        for turn in 0..3 {
            let mut request = Request::new(prompt(30, turn), plan.clone(), options(7));
            request.keep = true;
            request.after = held.take();
            // Cancelled in its prompt and while it decodes, in a queue that is full: nothing is lost.
            if request.after.is_some() {
                let id = engine.submit(request).unwrap();
                engine.step();
                let before = engine.cancel(id);
                request = Request::new(prompt(600, turn), plan.clone(), options(7));
                request.keep = true;
                request.after = before;
                let refused = engine.submit(request).unwrap_err();
                assert!(
                    refused.to_string().contains("in a context of 512"),
                    "{refused}"
                );
                request = *refused.request;
                request.prompt = prompt(30, turn);
            }
            let alone = generator
                .generate(&request.prompt, &request.options, &mut |_| {
                    ControlFlow::Continue(())
                })
                .unwrap();
            let id = engine.submit(request).unwrap();
            let mut log = Log::default();
            log.run(&mut engine);
            assert_eq!(
                log.answer(id, 0),
                (alone.tokens, alone.text),
                "{name}, turn {turn}"
            );
            held = log.answers.remove(&(id, 0)).unwrap().held;
            let held = held.as_ref().unwrap();
            assert_eq!(held.tokens(), generator.tokens());
            assert_eq!(held.pending(), generator.pending());
        }
    }
    assert_eq!(engine.stats().reserved_bytes, 0);
}

#[cfg(feature = "wgpu")]
#[test]
fn the_gpu_gives_the_same_tokens() {
    let device = match polykv::DeviceSpec::Wgpu(0).open() {
        Ok(device) => device,
        Err(error) if std::env::var_os("POLYKV_REQUIRE_WGPU").is_some() => panic!("{error}"),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let model = model_on(&device);
    let mut engine = Engine::new(&model, EngineOptions::default());
    let mut log = Log::default();
    let mut requests = Vec::new();
    for (index, name) in ["tova", "h2o", "snapkv"].into_iter().enumerate() {
        let plan = uniform(LAYERS, name, Budget::Tokens(40), &Phase::BOTH);
        let request = Request::new(prompt(60 + 9 * index, index as u32), plan, options(6));
        requests.push((engine.submit(request.clone()).unwrap(), request));
        log.add(engine.step());
    }
    log.run(&mut engine);
    for (id, request) in requests {
        assert_eq!(log.answer(id, 0), alone(&request));
    }
}
