use super::{Level, attend_at};
use crate::codes::Codes;
use crate::ops::coded::{Channels, Coded, CodedEntries};
use crate::ops::oracle;
use crate::ops::{Mask, Places};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

const DIMS: [usize; 7] = [1, 7, 32, 40, 64, 80, 128];

fn random(dims: [usize; 4]) -> Tensor<4> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

/// Keys with channels of very different means and spreads, as models have them.
fn keys(dims: [usize; 4]) -> Tensor<4> {
    let [_, heads, _, dim] = dims;
    let channel = |f: fn(f32) -> f32| {
        let numbers: Vec<f32> = (0..heads * dim).map(|i| f(i as f32)).collect();
        Tensor::<4>::from_data(
            TensorData::new(numbers, [1, heads, 1, dim]),
            &Device::flex(),
        )
    };
    let scale = channel(|i| 0.1 + (i * 0.7).sin().powi(8) * 20.0);
    random(dims) * scale + channel(|i| (i * 1.3).cos() * 30.0)
}

#[test]
fn every_number_is_within_a_step() {
    for dim in DIMS {
        let vectors = random([2, 3, 5, dim]);
        for codes in Codes::ALL {
            let back = vec(Coded::of(vectors.clone(), codes, None).vectors());
            let most = ((1 << codes.bits()) - 1) as f32;
            let (rows, found) = (vec(vectors.clone()), back.chunks_exact(dim));
            for (row, found) in rows.chunks_exact(dim).zip(found) {
                for (row, found) in row.chunks(Codes::RUN).zip(found.chunks(Codes::RUN)) {
                    let least = row.iter().copied().fold(f32::MAX, f32::min);
                    let largest = row.iter().copied().fold(f32::MIN, f32::max);
                    let step =
                        ((largest - least) / most).max(largest.abs().max(least.abs()) / 2047.0);
                    for (x, y) in row.iter().zip(found) {
                        // At the ends a whole one, since 0 has a code.
                        let inside = (least + step..largest - step).contains(x);
                        let allowed = if inside { 0.51 } else { 1.01 } * step;
                        assert!((x - y).abs() <= allowed, "{codes} {dim}: {x} {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_was_decoded_has_the_same_codes() {
    // A run of one number is coded finely enough to see the rounding of its channel.
    for dim in DIMS.into_iter().filter(|&dim| dim > 1) {
        let (plain, keys) = (random([1, 2, 60, dim]), keys([1, 2, 60, dim]));
        let channels = Channels::of(keys.clone());
        for codes in Codes::ALL {
            for (vectors, channels) in [(&plain, None), (&keys, Some(channels.clone()))] {
                let once = Coded::of(vectors.clone(), codes, channels.clone()).vectors();
                let twice = Coded::of(once.clone(), codes, channels).vectors();
                let (once, twice) = (vec(once), vec(twice));
                let near = |(a, b): &(&f32, &f32)| (*a - *b).abs() <= 1e-4 * a.abs().max(1.0);
                let same = once.iter().zip(&twice).filter(near).count();
                assert!(
                    same * 100 >= once.len() * 99,
                    "{codes} {dim}: {same} of {}",
                    once.len()
                );
            }
        }
    }
}

#[test]
fn channels_keep_small_ones_beside_large_ones() {
    let vectors = keys([1, 2, 200, 64]);
    let channels = Channels::of(vectors.clone());
    let small = channels.scale.clone().lower_elem(0.5).float();
    let error = |channels| {
        let back = Coded::of(vectors.clone(), Codes::Q4, channels).vectors();
        let squares = (back - vectors.clone()).square().mean_dim(2);
        let of_small = (squares.clone() * small.clone()).sum() / small.clone().sum();
        [squares.mean(), of_small].map(|error| error.into_scalar::<f32>())
    };
    let [all, of_small] = error(None);
    let [relative, relative_of_small] = error(Some(channels));
    assert!(relative * 1.5 < all, "{relative} {all}");
    assert!(
        relative_of_small * 20.0 < of_small,
        "{relative_of_small} {of_small}"
    );
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    let vectors = random([1, 1, 2, 64]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut numbers = vec(vectors.clone());
        numbers[70] = bad;
        let vectors =
            Tensor::<4>::from_data(TensorData::new(numbers, [1, 1, 2, 64]), &Device::flex());
        for codes in Codes::ALL {
            let back = vec(Coded::of(vectors.clone(), codes, None).vectors());
            assert!(back[..64].iter().all(|x| x.is_finite()));
            assert!(back[64..].iter().any(|x| !x.is_finite()), "{bad} {codes}");
        }
    }
}

/// Against attention in plain tensor operations over the decoded vectors.
#[test]
fn attention_is_that_over_the_decoded_vectors() {
    for (dim, group) in [
        (7, 1),
        (32, 3),
        (40, 4),
        (64, 3),
        (80, 2),
        (128, 8),
        (256, 1),
    ] {
        // Memory of these tests is given out once, behind which a byte too many is found.
        let lengths: &[usize] = match dim {
            64 => &[1, 3, 70, 600],
            _ => &[33, 70],
        };
        for &n in lengths {
            let [batch, heads] = [2, 2];
            let dims = [batch, heads, n, dim];
            let q = random([batch, heads * group, 1, dim]);
            let (k, v) = (keys([1, heads, n, dim]).expand(dims), random(dims));
            let positions = Tensor::<1, Int>::arange(0..n as i64, &Device::flex());
            let places = Places {
                positions: positions
                    .clone()
                    .reshape([1, 1, n])
                    .expand([batch, heads, n]),
                seen: n,
                window: Some(40),
            };
            let masks = [
                Mask::default(),
                Mask {
                    softcap: Some(20.0),
                    places: None,
                },
                Mask {
                    softcap: None,
                    places: Some(places),
                },
            ];
            for codes in Codes::ALL {
                let both = [k.clone(), v.clone()];
                let positions = positions
                    .clone()
                    .reshape([1, 1, n])
                    .expand([batch, heads, n]);
                let coded = CodedEntries::of(both, &positions, codes, Channels::of(k.clone()));
                for mask in &masks {
                    let (k, v) = (coded.keys(n), coded.values(n));
                    let (want, row) = oracle::attend_token(q.clone(), k, v, None, mask);
                    let (want, row) = (vec(want), vec(row));
                    for level in Level::available() {
                        let (output, found) = attend_at(level, q.clone(), &coded, n, mask);
                        close(&vec(output), &want, 1e-4);
                        close(&vec(found), &row, 1e-4);
                    }
                }
            }
        }
    }
}

fn close(found: &[f32], want: &[f32], allowed: f32) {
    assert_eq!(found.len(), want.len());
    for (x, y) in found.iter().zip(want) {
        assert!((x - y).abs() <= allowed * y.abs().max(1.0), "{x} {y}");
    }
}

#[test]
fn entries_are_moved_and_overwritten_alone() {
    let device = Device::flex();
    let vectors = keys([2, 3, 9, 40]);
    let new = keys([2, 3, 1, 40]);
    for codes in Codes::ALL {
        let channels = Channels::of(vectors.clone());
        let mut coded = Coded::of(vectors.clone(), codes, Some(channels.clone()));
        let before = coded.vectors();
        let slots: Vec<i64> = (0..6).flat_map(|i| [8, i, 0]).collect();
        let slots = Tensor::<3, Int>::from_data(TensorData::new(slots, [2, 3, 3]), &device);
        coded.keep(&slots, 5);
        let kept = crate::ops::take(before, slots);
        assert_eq!(vec(coded.first(3).vectors()), vec(kept.clone()));
        let victims = Tensor::<3, Int>::from_data([[[0], [1], [2]], [[2], [1], [0]]], &device);
        coded.put(&victims, new.clone());
        let wanted = Coded::of(new.clone(), codes, Some(channels.clone())).vectors();
        let wanted = crate::ops::put(kept, victims, wanted);
        assert_eq!(vec(coded.first(3).vectors()), vec(wanted));
        coded.write(4, new.clone());
        assert_eq!(
            vec(coded.at(4).vectors()),
            vec(Coded::of(new.clone(), codes, Some(channels)).vectors())
        );
        coded.grow(7);
        assert_eq!(coded.capacity(), 7);
    }
}
