//! Attention over caches, and of prompts.

use crate::layer::Layer;
use crate::{HEADS, KV_HEADS, Setup, medians, random, timed};
use burn::tensor::Tensor;
use burn::tensor::module::attention;
use polykv::ops::{self, AttentionBlock, Mask, oracle};
use std::hint::black_box;

/// One query over a compressed cache, against burn's attention with expanded keys and values and against folded
/// products.
pub fn decode(setup: &Setup, measuring: bool) {
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
                black_box(ops::attend(
                    q.clone(),
                    k.clone(),
                    v.clone(),
                    &Mask::default(),
                    None,
                ))
                .ok();
            })
        };
        let mut burns = || {
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
                black_box(oracle::attend(
                    q.clone(),
                    k.clone(),
                    v.clone(),
                    &Mask::default(),
                    None,
                ))
                .ok();
            })
        };
        let works: &mut [&mut dyn FnMut() -> f64] =
            &mut [&mut kernel, &mut burns, &mut ready, &mut folded];
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

/// An observer that asks for nothing: the kernel runs on every device.
fn look(block: &AttentionBlock) -> polykv::Result<()> {
    black_box(block.entries());
    Ok(())
}

fn plain_sum(rows: Tensor<4>) -> polykv::Result<()> {
    black_box(oracle::column_sums(rows, HEADS / KV_HEADS));
    Ok(())
}

/// Attention of a prompt, alone and with the sums of its columns, against products and softmax in blocks.
pub fn prompt(setup: &Setup) {
    let (device, n) = (&setup.device, setup.prompt / 4);
    let layer = Layer::new(n, device);
    let [q, k, v] = layer.part(0, n);
    let inputs = || (q.clone(), k.clone(), v.clone());
    let mut alone = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(ops::attend(q, k, v, &Mask::default(), Some(&mut look))).ok();
        })
    };
    let mut plain = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(oracle::attend(q, k, v, &Mask::default(), None)).ok();
        })
    };
    let mut summed = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(ops::attend_summed(q, k, v, &Mask::default(), &mut sum)).ok();
        })
    };
    let mut plain_summed = || {
        let (q, k, v) = inputs();
        timed(device, || {
            black_box(oracle::attend(
                q,
                k,
                v,
                &Mask::default(),
                Some(&mut plain_sum),
            ))
            .ok();
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
