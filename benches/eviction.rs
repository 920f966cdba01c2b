//! What eviction costs beside the work around it, on the CPU and on wgpu where there is an adapter: everything that is
//! compared runs in turns, and the lines are ratios.
//!
//! ```sh
//! cargo bench --workspace --bench eviction
//! ```
//!
//! Shapes are SmolLM2's layer (9 query heads over 3 KV heads of 64, hidden size 576) and, for decode attention, 16
//! query heads over 4 KV heads of 128.

use burn::tensor::module::attention;
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use polykv::device::run_on;
use polykv::ops::{self, AttentionBlock, Protected, oracle};
use polykv::policy::{Params, Protect};
use polykv::{Budget, DeviceSpec, KvCache, LayerShape, Phase, Plan};
use std::hint::black_box;
use std::time::Instant;

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
/// Tokens per call of a prefill.
const CHUNK: usize = 512;

/// What is measured where, and how often.
struct Setup {
    device: Device,
    name: &'static str,
    prompt: usize,
    budget: usize,
    steps: usize,
    turns: usize,
}

fn main() {
    // `cargo test --benches` runs everything once and small.
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let setup = |device, name, prompt, turns| match measuring {
        true => Setup {
            device,
            name,
            prompt,
            budget: 512,
            steps: 64,
            turns,
        },
        false => Setup {
            device,
            name,
            prompt: 96,
            budget: 48,
            steps: 2,
            turns: 1,
        },
    };
    println!("medians of runs in turns");
    let cpu = setup(Device::flex(), "cpu", 4096, 7);
    run_on(&Device::flex(), || run(&cpu, measuring));
    // A test of whether the bench runs is no reason to wait for a software adapter's compiler.
    if !measuring {
        return;
    }
    match DeviceSpec::Wgpu(0).open() {
        Ok(device) => run(&setup(device, "wgpu", 4096, 3), measuring),
        Err(error) => println!("wgpu: {error}"),
    }
}

fn run(setup: &Setup, measuring: bool) {
    choice(setup);
    decode_attention(setup, measuring);
    prompt_attention(setup);
    prefill_shares(setup);
    decode_shares(setup);
}

/// Median seconds of each, in turns.
fn medians(turns: usize, works: &mut [&mut dyn FnMut() -> f64]) -> Vec<f64> {
    let mut times = vec![Vec::new(); works.len()];
    // The first turn compiles kernels and is not counted where there are others.
    for turn in 0..=turns {
        for (work, times) in works.iter_mut().zip(&mut times) {
            let seconds = work();
            if turn > 0 {
                times.push(seconds);
            }
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

/// Seconds until the device has done what `work` asked for.
fn timed(device: &Device, work: impl FnOnce()) -> f64 {
    device.sync().ok();
    let start = Instant::now();
    work();
    device.sync().ok();
    start.elapsed().as_secs_f64()
}

fn random<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Default, device)
}

fn in_order(kv_heads: usize, entries: usize, device: &Device) -> Tensor<3, Int> {
    Tensor::<1, Int>::arange(0..entries as i64, device)
        .reshape([1, 1, entries])
        .repeat_dim(1, kv_heads)
}

/// Window score, selection and compaction against burn's products, softmax and topk.
fn choice(setup: &Setup) {
    let (device, n) = (&setup.device, setup.prompt);
    for window in [32, 8] {
        let q = random([1, HEADS, window, DIM], device);
        let k = random([1, KV_HEADS, n, DIM], device);
        let v = random([1, KV_HEADS, n, DIM], device);
        let positions = in_order(KV_HEADS, n, device);
        let protected = Protected {
            protect: Protect {
                sinks: 0,
                recent: window,
            },
            spans: &[],
            seen: n,
        };
        let entries = || (k.clone(), v.clone(), positions.clone());
        let mut kernels = || {
            timed(device, || {
                let (sums, _) = ops::window_score(q.clone(), k.clone(), positions.clone(), n);
                let chosen = ops::choose(sums, positions.clone(), protected, setup.budget);
                let (slots, _) = chosen.expect("no score is NaN");
                black_box(ops::compact(entries(), slots, setup.budget + 1));
            })
        };
        let on_cpu = ops::is_cpu(device);
        let mut plain = || {
            timed(device, || {
                let attention =
                    oracle::window_attention(q.clone(), k.clone(), positions.clone(), n);
                let sums = attention.sum_dim(3).mean_dim(2).reshape([1, KV_HEADS, n]);
                let slots = match on_cpu {
                    true => {
                        let safe = protected.mask(positions.clone());
                        let guarded = sums.mask_fill(safe, f32::MAX);
                        guarded.topk_with_indices(setup.budget, 2).1
                    }
                    // On other devices topk is not made for so many.
                    false => {
                        oracle::choice::select(sums, positions.clone(), protected, setup.budget)
                            .expect("no score is NaN")
                    }
                };
                let kept = (
                    ops::take(k.clone(), slots.clone()),
                    ops::take(v.clone(), slots.clone()),
                    positions.clone().gather(2, slots),
                );
                black_box(ops::grow(kept, setup.budget + 1));
            })
        };
        let times = medians(setup.turns, &mut [&mut kernels, &mut plain]);
        println!(
            "{:5} {:6.2} x  score, select and compact, window {window}, {n} to {} entries, plain ({:.2} ms) over kernels ({:.2} ms)",
            setup.name,
            times[1] / times[0],
            setup.budget,
            times[1] * 1e3,
            times[0] * 1e3,
        );
    }
}

/// One query over a compressed cache, against burn's attention with expanded keys and values and against folded
/// products.
fn decode_attention(setup: &Setup, measuring: bool) {
    let (heads, kv_heads, dim) = (16, 4, 128);
    let device = &setup.device;
    let lengths: &[usize] = match measuring {
        true => &[512, 2048, 8192],
        false => &[64],
    };
    for &n in lengths {
        let q = random([1, heads, 1, dim], device);
        let k = random([1, kv_heads, n, dim], device);
        let v = random([1, kv_heads, n, dim], device);
        let expanded = |x: &Tensor<4>| {
            x.clone()
                .reshape([1, kv_heads, 1, n * dim])
                .repeat_dim(2, heads / kv_heads)
                .reshape([1, heads, n, dim])
        };
        let mut kernel = || {
            timed(device, || {
                black_box(ops::attend(q.clone(), k.clone(), v.clone(), None)).ok();
            })
        };
        let mut stock = || {
            timed(device, || {
                black_box(attention(
                    q.clone(),
                    expanded(&k),
                    expanded(&v),
                    None,
                    None,
                    Default::default(),
                ));
            })
        };
        let (all_keys, all_values) = (expanded(&k), expanded(&v));
        let mut ready = || {
            timed(device, || {
                let (k, v) = (all_keys.clone(), all_values.clone());
                black_box(attention(q.clone(), k, v, None, None, Default::default()));
            })
        };
        let mut folded = || {
            timed(device, || {
                black_box(oracle::attend(q.clone(), k.clone(), v.clone(), None)).ok();
            })
        };
        let works: &mut [&mut dyn FnMut() -> f64] =
            &mut [&mut kernel, &mut stock, &mut ready, &mut folded];
        let times = medians(3 * setup.turns, works);
        println!(
            "{:5} {:6.2} x  decode attention, G 4, {n} entries: burn's own over the kernel ({:.2} ms); {:.2} x if K and V are expanded before; {:.2} x folded products",
            setup.name,
            times[1] / times[0],
            times[0] * 1e3,
            times[2] / times[0],
            times[3] / times[0],
        );
    }
}

fn sum(block: &AttentionBlock) -> polykv::Result<()> {
    black_box(block.column_sums());
    Ok(())
}

/// Attention of a prompt, alone and with the sums of its columns, against products and softmax in blocks.
fn prompt_attention(setup: &Setup) {
    let (device, n) = (&setup.device, setup.prompt / 4);
    let layer = Layer::new(n, device);
    let [q, k, v] = layer.part(0, n);
    let inputs = || (q.clone(), k.clone(), v.clone());
    let mut alone = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(ops::kernels::attend_prompt(q, k, v));
        })
    };
    let mut plain = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(oracle::attend(q, k, v, None)).ok();
        })
    };
    let mut summed = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(ops::attend(q, k, v, Some(&mut sum))).ok();
        })
    };
    let mut plain_summed = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(oracle::attend(q, k, v, Some(&mut sum))).ok();
        })
    };
    let works: &mut [&mut dyn FnMut() -> f64] =
        &mut [&mut alone, &mut plain, &mut summed, &mut plain_summed];
    let times = medians(setup.turns, works);
    println!(
        "{:5} {:6.2} x  attention of {n} tokens, plain over kernels ({:.1} ms); {:.2} x with column sums ({:.1} ms)",
        setup.name,
        times[1] / times[0],
        times[0] * 1e3,
        times[3] / times[2],
        times[2] * 1e3,
    );
}

/// Inputs of a layer for a prompt and the tokens after it.
struct Layer {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    x: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
    projections: [Tensor<2>; 4],
}

impl Layer {
    fn new(tokens: usize, device: &Device) -> Self {
        let weight = |out, input| random([out, input], device).mul_scalar(0.02);
        Self {
            q: random([1, HEADS, tokens, DIM], device).mul_scalar(2.0),
            k: random([1, KV_HEADS, tokens, DIM], device).mul_scalar(2.0),
            v: random([1, KV_HEADS, tokens, DIM], device),
            x: random([tokens, HIDDEN], device),
            gate: weight(INNER, HIDDEN),
            up: weight(INNER, HIDDEN),
            down: weight(HIDDEN, INNER),
            projections: [
                weight(HEADS * DIM, HIDDEN),
                weight(KV_HEADS * DIM, HIDDEN),
                weight(KV_HEADS * DIM, HIDDEN),
                weight(HIDDEN, HEADS * DIM),
            ],
        }
    }

    fn mlp(&self, first: usize, count: usize) {
        let x = self.x.clone().narrow(0, first, count);
        let [gate, up] = ops::linears(x, [self.gate.clone(), self.up.clone()]);
        black_box(ops::linear(ops::silu_mul(gate, up), self.down.clone()));
    }

    fn project(&self, first: usize) {
        for weight in &self.projections {
            let x = self.x.clone().narrow(0, first, 1);
            black_box(ops::linear(x, weight.clone()));
        }
    }

    fn part(&self, first: usize, count: usize) -> [Tensor<4>; 3] {
        [&self.q, &self.k, &self.v].map(|x| x.clone().narrow(2, first, count))
    }

    fn prefill(&self, cache: &mut KvCache, tokens: usize) {
        cache.begin_prefill(tokens).expect("a valid plan");
        for first in (0..tokens).step_by(CHUNK) {
            let [q, k, v] = self.part(first, CHUNK.min(tokens - first));
            black_box(cache.prefill(0, q, k, v).expect("shapes match"));
        }
        cache.end_prefill(0).expect("no score is NaN");
    }
}

fn cache(policy: &str, setup: &Setup) -> KvCache {
    let phases = [Phase::Prefill, Phase::Decode];
    let plan = match policy {
        "full" => Plan::full(1),
        _ => Plan::uniform(
            1,
            policy,
            Params::new(),
            Budget::Tokens(setup.budget),
            &phases,
        ),
    };
    let shape = LayerShape {
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        dtype: DType::F32,
    };
    KvCache::new(plan, shape, &setup.device).expect("a valid shape")
}

/// What each policy adds to the attention and MLP of one layer's prefill.
fn prefill_shares(setup: &Setup) {
    let (device, n) = (&setup.device, setup.prompt);
    let layer = Layer::new(n, device);
    let run = |policy: &'static str| {
        let layer = &layer;
        move || {
            let mut cache = cache(policy, setup);
            timed(device, || layer.prefill(&mut cache, n))
        }
    };
    for policy in [
        "streaming-llm",
        "snapkv",
        "pyramidkv",
        "cake",
        "tova",
        "knorm",
        "keydiff",
        "h2o",
        "d2o",
        "scissorhands",
    ] {
        let mut mlp = || timed(device, || layer.mlp(0, n));
        let works: &mut [&mut dyn FnMut() -> f64] =
            &mut [&mut run("full"), &mut run(policy), &mut mlp];
        let times = medians(setup.turns, works);
        println!(
            "{:5} {:6.1} %  {policy} beside attention and MLP of a {n}-token prefill ({:.0} ms)",
            setup.name,
            (times[1] - times[0]) / (times[0] + times[2]) * 100.0,
            (times[0] + times[2]) * 1e3,
        );
    }
}

/// What each policy adds to one layer's decode step at the budget.
fn decode_shares(setup: &Setup) {
    let (device, steps) = (&setup.device, setup.steps);
    let start = setup.budget;
    let layer = Layer::new(start + 1 + steps, device);
    let run = |policy: &'static str| {
        let layer = &layer;
        move || {
            let mut cache = cache(policy, setup);
            layer.prefill(&mut cache, start);
            // The first step may make room.
            let [q, k, v] = layer.part(start, 1);
            cache.decode(0, q, k, v).expect("shapes match");
            let seconds = timed(device, || {
                for step in start + 1..start + 1 + steps {
                    let [q, k, v] = layer.part(step, 1);
                    black_box(cache.decode(0, q, k, v).expect("shapes match"));
                }
            });
            seconds / steps as f64
        }
    };
    for policy in ["streaming-llm", "tova", "h2o", "cake", "snapkv"] {
        let mut weights = || {
            timed(device, || {
                for step in 0..steps {
                    layer.project(step);
                    layer.mlp(step, 1);
                }
            }) / steps as f64
        };
        let works: &mut [&mut dyn FnMut() -> f64] =
            &mut [&mut run("full"), &mut run(policy), &mut weights];
        let times = medians(setup.turns, works);
        println!(
            "{:5} {:6.1} %  {policy} beside a layer's decode step at {start} entries ({:.3} ms); attention and eviction {:.3} ms, attention {:.3} ms",
            setup.name,
            (times[1] - times[0]) / (times[0] + times[2]) * 100.0,
            (times[0] + times[2]) * 1e3,
            times[1] * 1e3,
            times[0] * 1e3,
        );
    }
}
