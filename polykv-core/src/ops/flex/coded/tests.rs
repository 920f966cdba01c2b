use super::{Level, OwnedExact, attend_at};
use crate::codes::Codes;
use crate::ops::coded::{Channels, Coded, CodedEntries, Exact, Format};
use crate::ops::flex::bridge::{flex, float, float_back};
use crate::ops::kernels::{self, ExactEntries};
use crate::ops::oracle;
use crate::ops::{Mask, Places};
use burn::backend::Flex;
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

fn attend_on(
    level: Level,
    q: Tensor<4>,
    coded: &CodedEntries,
    n: usize,
    mask: &Mask,
) -> (Tensor<4>, Tensor<4>) {
    let channels = coded.keys.channels.as_ref();
    let exact = coded.exact.as_ref().map(|exact| ExactEntries::Rows {
        keys: float(exact.keys.clone()),
        values: float(exact.values.clone()),
        slots: flex(exact.slots.clone()).int(),
    });
    let words = |all: &Coded| flex(all.words.clone()).int();
    let coded = super::Coded {
        keys: words(&coded.keys),
        values: words(&coded.values),
        channels: channels
            .map(|all| super::Channels([&all.mean, &all.scale].map(|x| float(x.clone())))),
        exact: OwnedExact::of(exact.unwrap_or(ExactEntries::None)),
        codes: coded.keys.codes,
    };
    let window = mask.window().map(|(places, size)| kernels::Window::Latest {
        positions: flex(places.positions.clone()).int(),
        size,
        seen: places.seen,
    });
    let mask = kernels::Mask::<Flex> {
        softcap: mask.softcap.map(|cap| cap as f32),
        window: window.unwrap_or(kernels::Window::None),
    };
    let (output, row) = attend_at(level, float(q), &coded, n, mask);
    (float_back(output), float_back(row))
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
                        let (output, found) = attend_on(level, q.clone(), &coded, n, mask);
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

/// What a reader of the format on the host gets.
#[test]
fn vectors_are_those_of_the_format() {
    for dim in DIMS {
        let vectors = keys([1, 2, 9, dim]);
        for codes in Codes::ALL {
            let coded = Coded::of(vectors.clone(), codes, None);
            let format = Format { codes, dim };
            let words = oracle::codes::encode(vectors.clone(), codes, None);
            let numbers: Vec<i32> = words.clone().try_into_vec_as().unwrap();
            let numbers: Vec<u32> = numbers.into_iter().map(|word| word as u32).collect();
            assert_eq!(coded.numbers().unwrap(), numbers);
            let wanted = vec(oracle::codes::decode(words, format, None));
            close(&vec(coded.vectors()), &wanted, 1e-6);
        }
    }
}

fn slots(numbers: &[i64], dims: [usize; 3]) -> Tensor<3, Int> {
    Tensor::from_data(TensorData::new(numbers.to_vec(), dims), &Device::flex())
}

fn read(tensor: &Tensor<3, Int>) -> Vec<i64> {
    tensor.clone().try_into_vec_as().unwrap()
}

#[test]
fn entries_are_moved_and_overwritten_alone() {
    let dims = [2, 3, 9, 40];
    let (k, v, new) = (keys(dims), random(dims), keys([2, 3, 1, 40]));
    let positions = slots(&(0..9).collect::<Vec<_>>().repeat(6), [2, 3, 9]);
    for codes in Codes::ALL {
        let channels = Channels::of(k.clone());
        let mut coded =
            CodedEntries::of([k.clone(), v.clone()], &positions, codes, channels.clone());
        let before = [coded.keys(9), coded.values(9)];
        let kept: Vec<i64> = (0..6).flat_map(|i| [8, i + 1, 0]).collect();
        let kept = slots(&kept, [2, 3, 3]);
        let places = coded.keep(positions.clone(), &kept, 5);
        assert_eq!(read(&places.clone().narrow(2, 0, 3)), read(&kept));
        let after = [coded.keys(3), coded.values(3)];
        for (after, before) in after.iter().zip(&before) {
            let wanted = crate::ops::take(before.clone(), kept.clone());
            assert_eq!(vec(after.clone()), vec(wanted));
        }
        // What the new key and value are after coding.
        let alone = |channels| vec(Coded::of(new.clone(), codes, channels).vectors());
        let wanted = [alone(Some(channels.clone())), alone(None)];
        let exact = codes == Codes::Q4;
        let places = coded.write(places, 3, [new.clone(), new.clone()], 77);
        assert_eq!(read(&places.clone().narrow(2, 3, 1)), [77; 6]);
        for (found, wanted) in coded.at(3).into_iter().zip(&wanted) {
            let wanted = if exact {
                vec(new.clone())
            } else {
                wanted.clone()
            };
            assert_eq!(vec(found), wanted);
        }
        // The one in slot 3 takes the places of others, and what is exact goes with it. The oldest that was exact is so no longer.
        let after = [coded.keys(3), coded.values(3)];
        let victims = slots(&[0, 1, 2, 2, 1, 0], [2, 3, 1]);
        let places = coded.replace(places, victims.clone(), 3, [new.clone(), new.clone()], 77);
        assert_eq!(read(&places.gather(2, victims.clone())), [77; 6]);
        let found = [coded.keys(3), coded.values(3)];
        for ((found, after), wanted) in found.into_iter().zip(after).zip(&wanted) {
            let moved = if exact {
                vec(new.clone())
            } else {
                wanted.clone()
            };
            let moved = Tensor::from_data(TensorData::new(moved, [2, 3, 1, 40]), &Device::flex());
            let wanted = crate::ops::put(after, victims.clone(), moved);
            assert_eq!(vec(found), vec(wanted));
        }
        coded.grow(7);
        assert_eq!(coded.capacity(), 7);
    }
}

#[test]
fn exact_entries_are_the_first_and_the_latest() {
    let of = |numbers: &[i64]| {
        let count = numbers.len();
        let vectors = random([1, 1, count, 4]);
        let exact = Exact::of([&vectors, &vectors], &slots(numbers, [1, 1, count]));
        let found = read(&exact.slots);
        for (place, &slot) in found.iter().enumerate() {
            if slot >= 0 {
                let row = vec(exact.keys.clone().narrow(2, place, 1));
                assert_eq!(row, vec(vectors.clone().narrow(2, slot as usize, 1)));
            }
        }
        found
    };
    // Out of order, with the first token and without.
    assert_eq!(of(&[5, 0, 9, 3]), [1, -1, -1, -1, -1, -1, 3, 0, 2]);
    assert_eq!(of(&[5, 4]), [-1, -1, -1, -1, -1, -1, -1, 1, 0]);
    let many: Vec<i64> = (0..20).rev().collect();
    assert_eq!(of(&many), [19, 7, 6, 5, 4, 3, 2, 1, 0]);
}

#[test]
fn exact_entries_follow_what_happens_to_entries() {
    let vectors = random([1, 1, 12, 4]);
    let positions = slots(&(0..12).collect::<Vec<_>>(), [1, 1, 12]);
    let start = || Exact::of([&vectors, &vectors], &positions);
    let one = |slot: i64| slots(&[slot], [1, 1, 1]);
    assert_eq!(read(&start().slots), [0, 4, 5, 6, 7, 8, 9, 10, 11]);
    let mut exact = start();
    exact.push(12, random([1, 1, 1, 4]), random([1, 1, 1, 4]));
    assert_eq!(read(&exact.slots), [0, 12, 5, 6, 7, 8, 9, 10, 11]);
    exact.replace(one(7), 12);
    assert_eq!(read(&exact.slots), [0, 7, 5, 6, -1, 8, 9, 10, 11]);
    // The last one itself goes.
    exact.replace(one(11), 11);
    assert_eq!(read(&exact.slots), [0, 7, 5, 6, -1, 8, 9, 10, -1]);
    exact.keep(&slots(&[10, 3, 0, 5], [1, 1, 4]));
    assert_eq!(read(&exact.slots), [2, -1, 3, -1, -1, -1, -1, 0, -1]);
    exact.forget(&slots(&[3, 1], [1, 1, 2]));
    assert_eq!(read(&exact.slots), [2, -1, -1, -1, -1, -1, -1, 0, -1]);
    exact.forget_first(1);
    assert_eq!(read(&exact.slots), [2, -1, -1, -1, -1, -1, -1, -1, -1]);
}

/// The operators without kernels do the same.
#[test]
fn plain_operators_agree() {
    let dims = [2, 2, 7, 40];
    let (k, v) = (keys(dims), random(dims));
    let positions = slots(&(3..10).collect::<Vec<_>>().repeat(4), [2, 2, 7]);
    let kept = slots(&[6, 0, 2, 5, 1, 3, 99, -4], [2, 2, 2]);
    for codes in Codes::ALL {
        let channels = Channels::of(k.clone());
        let mut coded =
            CodedEntries::of([k.clone(), v.clone()], &positions, codes, channels.clone());
        if let Some(exact) = &coded.exact {
            let victims = slots(&[6, 0, 2, 5], [2, 2, 1]);
            let plain = oracle::codes::move_exact(exact.slots.clone(), victims.clone(), 6);
            let mut moved = exact.clone();
            moved.replace(victims, 6);
            assert_eq!(read(&moved.slots), read(&plain));
            let format = Format { codes, dim: 40 };
            for first in [0, 2] {
                let words = coded.keys.words.clone().narrow(2, first, 4);
                let plain = oracle::codes::decode(words, format, Some(&channels));
                let plain = oracle::codes::put_exact(plain, &exact.keys, &exact.slots, first);
                let found = coded
                    .keys
                    .range(first, 4, Some((&exact.keys, &exact.slots)));
                close(&vec(found), &vec(plain), 1e-5);
            }
        }
        let words = [&coded.keys, &coded.values].map(|all| all.words.clone());
        let [keys, values] = words;
        let (keys, values, places) =
            oracle::codes::compact(keys, values, positions.clone(), kept.clone(), 3);
        let found = coded.keep(positions.clone(), &kept, 3);
        assert_eq!(read(&found), read(&places));
        for (found, plain) in [(&coded.keys, keys), (&coded.values, values)] {
            let plain: Vec<i32> = plain.try_into_vec_as().unwrap();
            let plain: Vec<u32> = plain.into_iter().map(|word| word as u32).collect();
            assert_eq!(found.numbers().unwrap(), plain);
        }
    }
}
