//! The CPU kernels beside what plain tensor operations give, in one run, and on GPUs the GEMV of weights in blocks beside that
//! of the same weights as a tensor; the last lines are the ratios.
//!
//! ```sh
//! cargo bench --workspace --bench kernels                          # add --features wgpu or cuda for GPUs
//! ```

use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::Criterion;
use polykv::DeviceSpec;
use polykv::device::run_on;
use polykv::ops::{self, AttentionBlock, BlockType, BlockWeight, Mask, Weight, oracle};
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

/// The same from the probabilities.
fn plain_sum(rows: Tensor<4>) -> polykv::Result<()> {
    black_box(oracle::column_sums(rows, 3));
    Ok(())
}

struct Pair {
    name: String,
    kernel: Box<dyn Fn()>,
    oracle: Box<dyn Fn()>,
}

fn pair(name: impl Into<String>, kernel: impl Fn() + 'static, oracle: impl Fn() + 'static) -> Pair {
    Pair {
        name: name.into(),
        kernel: Box::new(kernel),
        oracle: Box::new(oracle),
    }
}

fn attention_pairs() -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut add = |name: String, [q, k, v]: [Tensor<4>; 3], sums: bool| {
        let (q2, k2, v2) = (q.clone(), k.clone(), v.clone());
        let kernel = move || {
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            match sums {
                true => black_box(ops::attend(q, k, v, &Mask::default(), Some(&mut sum))).ok(),
                false => black_box(ops::attend(q, k, v, &Mask::default(), None)).ok(),
            };
        };
        let oracle = move || {
            let (q, k, v) = (q2.clone(), k2.clone(), v2.clone());
            match sums {
                true => black_box(oracle::attend(
                    q,
                    k,
                    v,
                    &Mask::default(),
                    Some(&mut plain_sum),
                ))
                .ok(),
                false => black_box(oracle::attend(q, k, v, &Mask::default(), None)).ok(),
            };
        };
        pairs.push(pair(name, kernel, oracle));
    };
    for tokens in [512, 2048] {
        let name = format!("prompt attention, {tokens} tokens");
        add(name, tensors(tokens, tokens), false);
        let name = format!("prompt attention with column sums (h2o), {tokens} tokens");
        add(name, tensors(tokens, tokens), true);
    }
    for entries in [257, 2048] {
        let name = format!("token attention, {entries} entries");
        let [q, k, v] = tensors(1, entries);
        add(name, [q.clone(), k.clone(), v.clone()], false);
        let name = format!("token attention, {entries} entries in f16");
        add(name, [q, k.cast(DType::F16), v.cast(DType::F16)], false);
    }
    pairs
}

/// In 4 bits, as Q4_1 since 576 is no multiple of 256.
fn blocks(weight: &Tensor<2>) -> Weight {
    let values: Vec<f32> = weight.clone().try_into_vec_as().unwrap();
    Weight::q4k(weight.dims(), &values, &Device::flex()).unwrap()
}

/// On a GPU the products of one row with blocks and with the same weight in f32, and in f16 where there is that type: reading
/// a number of the result ends each.
fn block_pairs(name: &str, device: &Device) -> Vec<Pair> {
    let [outputs, inputs] = [4096, 2048];
    let random = |dims| Tensor::<2>::random(dims, Distribution::Default, device);
    let (x, dense) = (random([1, inputs]), random([outputs, inputs]));
    let values: Vec<f32> = dense.clone().try_into_vec_as().unwrap();
    let product = |weight: Weight| {
        let x = x.clone();
        move || {
            let first = ops::linear(x.clone(), &weight).slice([0..1, 0..1]);
            black_box(first.into_data());
        }
    };
    let mut pairs = Vec::new();
    for kind in [BlockType::Q8_0, BlockType::Q4_1, BlockType::Q4K] {
        let blocks = BlockWeight::quantize(kind, [outputs, inputs], &values).unwrap();
        let blocks = Weight::on_device(blocks, device).unwrap();
        for dtype in [DType::F32, DType::F16] {
            if device.supports_dtype(dtype) {
                pairs.push(pair(
                    format!("{name}: {kind} for {dtype:?}, 1 row of {inputs} with {outputs}"),
                    product(blocks.clone()),
                    product(dense.clone().cast(dtype).into()),
                ));
            }
        }
    }
    pairs
}

fn gpu_pairs() -> Vec<Pair> {
    let specs = [("wgpu", DeviceSpec::Wgpu(0)), ("cuda", DeviceSpec::Cuda(0))];
    let devices = specs
        .into_iter()
        .filter_map(|(name, spec)| Some((name, spec.open().ok()?)));
    devices
        .flat_map(|(name, device)| block_pairs(name, &device))
        .collect()
}

/// SmolLM2's output head, norm and rotary embedding.
fn layer_pairs() -> Vec<Pair> {
    let random =
        |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Default, &Device::flex());
    let mut pairs = Vec::new();
    let head = random([49_152, 576]);
    let formats = [
        ("f32", Weight::new(head.clone())),
        ("f16", Weight::new(head.clone().cast(DType::F16))),
        ("q8", Weight::q8(head.clone())),
        ("Q4_1", blocks(&head)),
    ];
    let mut product = |rows: usize, format: &str, weight: Weight, wide: &Tensor<2>| {
        let (x, wide) = (random([rows, 576]), wide.clone());
        let (x2, outputs) = (x.clone(), wide.dims()[0]);
        pairs.push(pair(
            format!("{rows} rows times 576 x {outputs} in {format} (oracle: f32)"),
            move || {
                black_box(ops::linear(x.clone(), &weight));
            },
            move || {
                black_box(x2.clone().matmul(wide.clone().transpose()));
            },
        ));
    };
    for (format, weight) in formats {
        product(1, format, weight, &head);
    }
    let gate = random([1536, 576]);
    product(512, "Q4_1", blocks(&gate), &gate);
    for rows in [1, 512] {
        let (x, weight) = (random([rows, 576]), random([1, 576]).reshape([576]));
        let (x2, weight2) = (x.clone(), weight.clone());
        pairs.push(pair(
            format!("RMS norm, {rows} rows of 576"),
            move || {
                black_box(ops::rms_norm(x.clone(), weight.clone(), 1e-5));
            },
            move || {
                black_box(oracle::rms_norm(x2.clone(), weight2.clone(), 1e-5));
            },
        ));
        let [x, ..] = tensors(rows, 1);
        let tables = [(); 2].map(|()| random([rows, 32]).reshape([1, 1, rows, 32]));
        let (x2, [cos, sin]) = (x.clone(), tables);
        let (cos2, sin2) = (cos.clone(), sin.clone());
        pairs.push(pair(
            format!("rotary embedding, 9 heads, {rows} tokens"),
            move || {
                black_box(ops::rotate(x.clone(), cos.clone(), sin.clone()));
            },
            move || {
                black_box(oracle::rotate(x2.clone(), cos2.clone(), sin2.clone()));
            },
        ));
    }
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
    let pairs = attention_pairs().into_iter().chain(layer_pairs());
    for pair in pairs.chain(gpu_pairs()) {
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
