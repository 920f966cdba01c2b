//! Every operator that has kernels, on every device, against f64 on the host.

use crate::case::{CASE, CASES, Case, behind, shuffled};
use crate::host::{self, Vectors, numbers};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};
use polykv::ops::{self, AttentionBlock, Mask, Places, Protect, Protected};

/// The largest differences found, by operator.
struct Table<'a> {
    device: &'a str,
    rows: Vec<(String, f64)>,
}

impl Table<'_> {
    /// Elements are about 1 or smaller.
    fn add<const D: usize>(&mut self, what: &str, found: Tensor<D>, wanted: &[f64]) {
        let found: Vec<f32> = found.try_into_vec_as().unwrap();
        assert_eq!(found.len(), wanted.len(), "{}, {what}", self.device);
        let pairs = found.iter().zip(wanted);
        let worst = pairs.fold(0.0f64, |worst, (a, b)| {
            let difference = (f64::from(*a) - b).abs() / (1.0 + b.abs());
            assert!(
                difference.is_finite(),
                "{}, {what}: {a} for {b}",
                self.device
            );
            worst.max(difference)
        });
        println!("{:5} {what:48} {worst:.1e}", self.device);
        self.rows.push((what.to_string(), worst));
    }

    fn finish(self) {
        for (what, worst) in &self.rows {
            // burn's own products compute in the type that is stored; GPUs use them for prompts that nobody observes.
            let most = match what.starts_with("attention alone") {
                true if what.ends_with("BF16") => 8e-3,
                true if what.ends_with("F16") => 1e-3,
                _ => 2e-5,
            };
            assert!(*worst <= most, "{}, {what}: {worst}", self.device);
        }
    }
}

/// No mask, a soft-cap and a window together, and windows of one token and of more than there are.
const MASKS: [(Option<usize>, Option<f64>); 4] = [
    (None, None),
    (Some(30), Some(2.0)),
    (Some(1), None),
    (Some(500), None),
];

pub fn attention(name: &str, device: &Device) {
    let mut table = Table {
        device: name,
        rows: Vec::new(),
    };
    let cases = CASES.iter().enumerate();
    let cases = cases.filter(|(_, case)| device.supports_dtype(case.dtype));
    for (index, case) in cases {
        // Every case without a mask and with both parts of one, the first with all.
        let masks = if index == 0 { &MASKS[..] } else { &MASKS[..2] };
        for &(window, softcap) in masks {
            masked(&mut table, case, window, softcap, device);
        }
    }
    table.finish();
}

fn masked(
    table: &mut Table<'_>,
    case: &Case,
    window: Option<usize>,
    softcap: Option<f64>,
    device: &Device,
) {
    let of = |what: &str| match window {
        None => format!("{what}, {}", case.name()),
        Some(window) => format!("{what}, window {window}, {}", case.name()),
    };
    let q = case.vectors(case.heads, case.tokens, 1, 2.0);
    let k = case.vectors(case.kv_heads, case.entries, 2, 2.0);
    let v = case.vectors(case.kv_heads, case.entries, 3, 1.0);
    let (hidden, seen) = (case.entries - case.tokens, case.entries + 9);
    let heads = case.batch * case.kv_heads;
    let first = (seen - case.tokens) as i64;
    let in_window = |query: usize, position: i64| {
        window.is_none_or(|window| position + window as i64 > first + query as i64)
    };
    let places = behind(heads, case.entries, case.tokens, seen);
    let visible = |batch: usize, head: usize, i: usize, j: usize| {
        let at = (batch * case.kv_heads + head) * case.entries + j;
        j <= hidden + i && in_window(i, places[at])
    };
    let mask = Mask {
        softcap,
        places: window.map(|_| Places {
            positions: case.positions(&places, device),
            seen,
            window,
        }),
    };
    let wanted = host::attention(case.batch, &q, &k, &v, softcap, &visible);
    let (queries, keys, values) = (
        case.tensor(&q, device),
        case.cached(&k, device),
        case.cached(&v, device),
    );
    let mut sums = Tensor::<3>::zeros([case.batch, case.kv_heads, case.entries], device);
    let mut most = sums.clone();
    let (mut row, mut hits) = (None, None);
    // As many queries as digits fit an f32.
    let bits = (usize::BITS - (case.heads / case.kv_heads).leading_zeros()) as usize;
    let looked_at = case.tokens.min(24 / bits);
    let mut observe = |block: &AttentionBlock| {
        let part = block.column_sums();
        let seen = part.dims()[2];
        let old = sums.clone().slice(s![.., .., 0..seen]);
        sums = sums.clone().slice_assign(s![.., .., 0..seen], old + part);
        let part = block.column_max();
        let old = most.clone().slice(s![.., .., 0..seen]);
        most = most
            .clone()
            .slice_assign(s![.., .., 0..seen], old.max_pair(part));
        row = Some(block.last_row());
        let tokens = block.tokens();
        hits = Some(block.hits(tokens - looked_at.min(tokens)..tokens, bits));
        Ok(())
    };
    let (k2, v2) = (keys.clone(), values.clone());
    let output = ops::attend(queries.clone(), k2, v2, &mask, Some(&mut observe)).unwrap();
    table.add(&of("attention"), output, &wanted.output);
    table.add(&of("column sums"), sums, &wanted.column_sums);
    table.add(&of("column maxima"), most, &wanted.column_max);
    table.add(&of("last row"), row.unwrap(), &wanted.last_row);
    let (digits, counts) = hits.unwrap();
    let [wanted_digits, wanted_counts] = wanted.hits(case.kv_heads, case.entries, looked_at, bits);
    table.add(&of("hits"), counts, &wanted_counts);
    table.add(&of("digits of hits"), digits, &wanted_digits);
    let plain = ops::attend(queries.clone(), keys.clone(), values, &mask, None).unwrap();
    table.add(&of("attention alone"), plain, &wanted.output);
    let last = queries.clone().narrow(2, case.tokens - 1, 1);
    let row = ops::attention_row(last, keys.clone(), &mask);
    table.add(&of("attention row"), row, &wanted.last_row);

    let places = shuffled(heads, case.entries, seen);
    let visible = |batch: usize, head: usize, i: usize, j: usize| {
        let position = places[(batch * case.kv_heads + head) * case.entries + j];
        position <= first + i as i64 && in_window(i, position)
    };
    let wanted = host::attention(case.batch, &q, &k, &v, softcap, &visible);
    let places = Places {
        positions: case.positions(&places, device),
        seen,
        window,
    };
    let (sum, variance) = ops::window_score(queries, keys, &places, softcap);
    table.add(&of("window sums"), sum, &wanted.window[0]);
    table.add(&of("window variances"), variance, &wanted.window[1]);
}

/// One query per head over as many entries as its KV head has, also where a GPU's cube of 128 keys ends.
pub fn lengths(name: &str, device: &Device) {
    let mut table = Table {
        device: name,
        rows: Vec::new(),
    };
    for case in CASES
        .iter()
        .filter(|case| device.supports_dtype(case.dtype))
    {
        let n = case.entries;
        let q = case.vectors(case.heads, 1, 1, 2.0);
        let k = case.vectors(case.kv_heads, n, 2, 2.0);
        let v = case.vectors(case.kv_heads, n, 3, 1.0);
        let mut tried: Vec<usize> = vec![n, 1, 127, 129, n - 1, 128, n / 2, 33];
        tried.retain(|&length| length <= n);
        let heads = case.batch * case.kv_heads;
        for first in (0..tried.len()).step_by(heads) {
            let lengths: Vec<usize> = (0..heads)
                .map(|head| tried[(first + head) % tried.len()])
                .collect();
            let seen = |batch: usize, head: usize, _: usize, slot: usize| {
                slot < lengths[batch * case.kv_heads + head]
            };
            let wanted = host::attention(case.batch, &q, &k, &v, None, &seen);
            let data = TensorData::new(
                lengths.iter().map(|&length| length as i64).collect(),
                [case.batch, case.kv_heads],
            );
            let (output, row) = ops::attend_lengths(
                case.tensor(&q, device),
                case.cached(&k, device),
                case.cached(&v, device),
                Tensor::from_data(data, device),
            );
            let of = |what: &str| format!("{what} over {lengths:?}, {}", case.name());
            table.add(&of("attention"), output, &wanted.output);
            let found: Vec<f32> = row.clone().try_into_vec_as().unwrap();
            let beyond = found
                .iter()
                .zip(&wanted.last_row)
                .filter(|(_, p)| **p == 0.0);
            assert!(beyond.into_iter().all(|(p, _)| *p == 0.0), "{}", of(name));
            table.add(&of("row"), row, &wanted.last_row);
        }
    }
    table.finish();
}

/// Names the first difference only: there may be thousands.
fn equal(found: &[i64], wanted: &[i64], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let pairs = found.iter().zip(wanted).enumerate();
    let apart: Vec<_> = pairs
        .filter(|(_, (found, wanted))| found != wanted)
        .collect();
    let first = apart.first();
    assert!(
        first.is_none(),
        "{what}: {} differ, first {first:?}",
        apart.len()
    );
}

pub fn choices(name: &str, device: &Device) {
    let spans = [20..24, 31..32];
    // Few different scores, so that ties are common.
    for (entries, budget, ordered, levels) in [
        (77, 20, true, 6.0),
        (77, 76, false, 6.0),
        (513, 512, false, 1e6),
        (1500, 700, true, 1e6),
        (1500, 1500, false, 40.0),
        (16, 9, true, 1.0),
    ] {
        let what = format!("{name}, {budget} of {entries}, in order: {ordered}");
        let case = Case {
            batch: 2,
            kv_heads: 3,
            entries,
            ..CASE
        };
        let heads = case.batch * case.kv_heads;
        let seen = entries + 40;
        let places = match ordered {
            true => (0..heads).flat_map(|_| 0..entries as i64).collect(),
            false => shuffled(heads, entries, seen),
        };
        let mut scores = numbers(heads * entries, 5, levels);
        scores.iter_mut().for_each(|x| *x = x.floor());
        let protected = Protected {
            protect: Protect {
                sinks: 2,
                recent: if ordered { 43 } else { 3 },
            },
            spans: if budget > 12 { &spans } else { &[] },
            seen,
            // Within a span, behind the sinks.
            oldest: if ordered { 0 } else { 22 },
        };
        let protected = match budget < 12 {
            true => Protected {
                protect: Protect {
                    sinks: 2,
                    recent: 0,
                },
                ..protected
            },
            false => protected,
        };
        let safe = |position: i64| {
            position >= protected.oldest as i64
                && (position < protected.protect.sinks as i64
                    || position >= (seen - protected.protect.recent) as i64
                    || protected
                        .spans
                        .iter()
                        .any(|span| span.contains(&(position as usize))))
        };
        let of_heads = || scores.chunks(entries).zip(places.chunks(entries));
        let dims = [case.batch, case.kv_heads, entries];
        let on_device = || Tensor::<3>::from_data(TensorData::new(scores.clone(), dims), device);
        let positions = case.positions(&places, device);
        let kept = ops::select(on_device(), positions.clone(), protected, budget).unwrap();
        let wanted: Vec<i64> = of_heads()
            .flat_map(|(scores, places)| host::kept(scores, places, &safe, budget))
            .collect();
        let read = |slots: &Tensor<3, Int>| slots.clone().try_into_vec_as::<i64>().unwrap();
        equal(&read(&kept), &wanted, &what);

        if budget < entries {
            let (victim, nans) = ops::drop_lowest(on_device(), positions.clone(), protected);
            nans.check().unwrap();
            let victims: Vec<i64> = of_heads()
                .map(|(scores, places)| host::lowest(scores, places, &safe))
                .collect();
            equal(&read(&victim), &victims, &what);
        }
        let taken = ops::top(on_device(), positions.clone(), seen, budget);
        let taken: Vec<i64> = taken.int().try_into_vec_as().unwrap();
        let wanted: Vec<i64> = of_heads()
            .flat_map(|(scores, places)| {
                let best = host::kept(scores, places, &|_| false, budget);
                (0..entries as i64).map(move |slot| i64::from(best.contains(&slot)))
            })
            .collect();
        assert_eq!(taken, wanted, "{what}");
    }
    not_a_number(device);
}

fn not_a_number(device: &Device) {
    let mut scores = numbers(2 * 50, 6, 1.0);
    scores[61] = f32::NAN;
    let scores = Tensor::<3>::from_data(TensorData::new(scores, [1, 2, 50]), device);
    let places: Vec<i64> = (0..2).flat_map(|_| 0..50).collect();
    let case = Case {
        kv_heads: 2,
        entries: 50,
        ..CASE
    };
    let positions = case.positions(&places, device);
    let nothing = Protected {
        protect: Protect::default(),
        spans: &[],
        seen: 50,
        oldest: 0,
    };
    let error = ops::select(scores.clone(), positions.clone(), nothing, 9).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
    let (_, nans) = ops::drop_lowest(scores, positions, nothing);
    assert!(nans.check().unwrap_err().to_string().contains("NaN"));
}

/// Compaction and replacement move numbers and change none.
pub fn moves(name: &str, device: &Device) {
    for case in CASES
        .iter()
        .filter(|case| device.supports_dtype(case.dtype))
    {
        let what = format!("{name}, {}", case.name());
        let (heads, n, count) = (case.batch * case.kv_heads, case.entries, case.entries / 2);
        let k = case.vectors(case.kv_heads, n, 2, 2.0);
        let v = case.vectors(case.kv_heads, n, 3, 1.0);
        let places = shuffled(heads, n, n + 9);
        let slots: Vec<i64> = shuffled(heads, count, n);
        let entries = (
            case.cached(&k, device),
            case.cached(&v, device),
            case.positions(&places, device),
        );
        let dims = [case.batch, case.kv_heads, count];
        let index = Tensor::<3, Int>::from_data(TensorData::new(slots.clone(), dims), device);
        let capacity = count + 2;
        let moved = ops::compact(entries, index, capacity);
        let expected = |vectors: &Vectors| -> Vec<f32> {
            let of_head = |head: usize| {
                let mut rows: Vec<f32> = slots[head * count..(head + 1) * count]
                    .iter()
                    .flat_map(|&slot| {
                        vectors.row(head / case.kv_heads, head % case.kv_heads, slot as usize)
                    })
                    .copied()
                    .collect();
                rows.resize(capacity * case.dim, 0.0);
                rows
            };
            (0..heads).flat_map(of_head).collect()
        };
        let (mut keys, mut values) = (expected(&k), expected(&v));
        let mut moved_places: Vec<i64> = (0..heads)
            .flat_map(|head| {
                let slots = &slots[head * count..(head + 1) * count];
                let places = slots.iter().map(|&slot| places[head * n + slot as usize]);
                places.chain([0, 0]).collect::<Vec<_>>()
            })
            .collect();
        let read = |entries: &ops::Entries| {
            let wide = |t: &Tensor<4>| -> Vec<f32> {
                t.clone().cast(DType::F32).try_into_vec_as().unwrap()
            };
            let places: Vec<i64> = entries.2.clone().try_into_vec_as().unwrap();
            (wide(&entries.0), wide(&entries.1), places)
        };
        let wanted = (keys.clone(), values.clone(), moved_places.clone());
        assert_eq!(read(&moved), wanted, "{what}");

        let new = case.vectors(case.kv_heads, 1, 7, 1.0);
        let victims: Vec<i64> = (0..heads).map(|head| (head * 5 % count) as i64).collect();
        for (head, victim) in victims.iter().enumerate() {
            let at = head * capacity + *victim as usize;
            let row = new.row(head / case.kv_heads, head % case.kv_heads, 0);
            keys[at * case.dim..(at + 1) * case.dim].copy_from_slice(row);
            values[at * case.dim..(at + 1) * case.dim].copy_from_slice(row);
            moved_places[at] = 1234;
        }
        let victim = TensorData::new(victims, [case.batch, case.kv_heads, 1]);
        let entry = case.tensor(&new, device).cast(case.dtype);
        let victim = Tensor::from_data(victim, device);
        let replaced = ops::replace(moved, victim, entry.clone(), entry, 1234);
        assert_eq!(read(&replaced), (keys, values, moved_places), "{what}");
    }
}
