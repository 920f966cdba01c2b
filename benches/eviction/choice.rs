//! Scoring, selecting and compacting.

use crate::{DIM, HEADS, KV_HEADS, Setup, medians, random, timed};
use burn::tensor::{Device, Int, Tensor, s};
use polykv::ops::{self, Places, Protect, Protected, oracle};
use std::hint::black_box;

/// Window score, selection and compaction against burn's products, softmax and topk.
pub fn choice(setup: &Setup) {
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
            oldest: 0,
        };
        let places = Places {
            positions: positions.clone(),
            seen: n,
            window: None,
        };
        let entries = || (k.clone(), v.clone(), positions.clone());
        let mut kernels = || {
            timed(device, || {
                let (sums, _) = ops::window_score(q.clone(), k.clone(), &places, None);
                let chosen = ops::choose(sums, positions.clone(), protected, setup.budget);
                let (slots, _) = chosen.expect("no score is NaN");
                black_box(ops::compact(entries(), slots, setup.budget + 1));
            })
        };
        let on_cpu = ops::is_cpu(device);
        let mut plain = || {
            timed(device, || {
                let attention = oracle::window_attention(q.clone(), k.clone(), &places, None);
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
                let dims = [1, KV_HEADS, setup.budget, DIM];
                let index = slots.clone().unsqueeze_dim::<4>(3).expand(dims);
                let moved = |entries: &Tensor<4>| {
                    let room = [1, KV_HEADS, setup.budget + 1, DIM];
                    let kept = entries.clone().gather(2, index.clone());
                    Tensor::<4>::zeros(room, device)
                        .slice_assign(s![.., .., 0..setup.budget, ..], kept)
                };
                let kept = positions.clone().gather(2, slots);
                let places = Tensor::<3, Int>::zeros([1, KV_HEADS, setup.budget + 1], device)
                    .slice_assign(s![.., .., 0..setup.budget], kept);
                black_box((moved(&k), moved(&v), places));
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

fn in_order(kv_heads: usize, entries: usize, device: &Device) -> Tensor<3, Int> {
    Tensor::<1, Int>::arange(0..entries as i64, device)
        .reshape([1, 1, entries])
        .repeat_dim(1, kv_heads)
}
