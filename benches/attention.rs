//! The CPU kernels beside what plain tensor operations give, in one run; the last lines are the ratios.
//!
//! ```sh
//! cargo bench --workspace --bench attention
//! ```

use burn::tensor::{Device, Distribution, Tensor};
use criterion::Criterion;
use polykv::device::run_on;
use polykv::ops::{self, AttentionBlock, oracle};
use std::hint::black_box;
use std::time::Instant;

/// SmolLM2's attention: 9 query heads over 3 KV heads of 64.
fn tensors(tokens: usize, entries: usize) -> [Tensor<4>; 3] {
    let random = |heads, tokens| {
        Tensor::random(
            [1, heads, tokens, 64],
            Distribution::Default,
            &Device::flex(),
        )
    };
    [random(9, tokens), random(3, entries), random(3, entries)]
}

fn sum(block: &AttentionBlock) -> polykv::Result<()> {
    black_box(block.column_sums());
    Ok(())
}

struct Pair {
    name: String,
    kernel: Box<dyn Fn()>,
    oracle: Box<dyn Fn()>,
}

fn pairs() -> Vec<Pair> {
    let mut pairs = Vec::new();
    for tokens in [512, 2048] {
        let [q, k, v] = tensors(tokens, tokens);
        let inputs = move || (q.clone(), k.clone(), v.clone());
        let (a, b, c, d) = (inputs.clone(), inputs.clone(), inputs.clone(), inputs);
        pairs.push(Pair {
            name: format!("prompt attention, {tokens} tokens"),
            kernel: Box::new(move || {
                let (q, k, v) = a();
                black_box(ops::attend(q, k, v, None)).ok();
            }),
            oracle: Box::new(move || {
                let (q, k, v) = b();
                black_box(oracle::attend(q, k, v, None)).ok();
            }),
        });
        pairs.push(Pair {
            name: format!("prompt attention with column sums (h2o), {tokens} tokens"),
            kernel: Box::new(move || {
                let (q, k, v) = c();
                black_box(ops::attend(q, k, v, Some(&mut sum))).ok();
            }),
            oracle: Box::new(move || {
                let (q, k, v) = d();
                black_box(oracle::attend(q, k, v, Some(&mut sum))).ok();
            }),
        });
    }
    for entries in [257, 2048] {
        let [q, k, v] = tensors(1, entries);
        let inputs = move || (q.clone(), k.clone(), v.clone());
        let (a, b) = (inputs.clone(), inputs);
        pairs.push(Pair {
            name: format!("token attention, {entries} entries"),
            kernel: Box::new(move || {
                let (q, k, v) = a();
                black_box(ops::attend(q, k, v, None)).ok();
            }),
            oracle: Box::new(move || {
                let (q, k, v) = b();
                black_box(oracle::attend(q, k, v, None)).ok();
            }),
        });
    }
    let x = Tensor::<2>::random([1, 576], Distribution::Default, &Device::flex());
    let weight = Tensor::<2>::random([1536, 576], Distribution::Default, &Device::flex());
    let (x2, weight2) = (x.clone(), weight.clone());
    pairs.push(Pair {
        name: "product of one row, 576 x 1536".into(),
        kernel: Box::new(move || {
            black_box(ops::linear(x.clone(), weight.clone()));
        }),
        oracle: Box::new(move || {
            black_box(x2.clone().matmul(weight2.clone().transpose()));
        }),
    });
    pairs
}

/// Median seconds of both, in turns, so that a machine that changes its speed changes both.
fn medians(pair: &Pair) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..15 {
        for (work, times) in [&pair.kernel, &pair.oracle].into_iter().zip(&mut times) {
            let start = Instant::now();
            work();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn main() {
    // Where generation runs its kernels too.
    run_on(&Device::flex(), run);
}

fn run() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    // `cargo test --benches` runs everything once and has no use for ratios.
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let mut lines = Vec::new();
    for pair in pairs() {
        criterion.bench_function(&format!("{}/kernel", pair.name), |b| {
            b.iter(|| (pair.kernel)())
        });
        criterion.bench_function(&format!("{}/oracle", pair.name), |b| {
            b.iter(|| (pair.oracle)())
        });
        if measuring {
            let [kernel, oracle] = medians(&pair);
            lines.push(format!(
                "{:5.2} x  {} ({:.0} µs, {:.0} µs)",
                oracle / kernel,
                pair.name,
                oracle * 1e6,
                kernel * 1e6
            ));
        }
    }
    criterion.final_summary();
    if measuring {
        println!(
            "oracle / kernel, medians of 15 runs in turns:\n{}",
            lines.join("\n")
        );
    }
}
