//! Slots, positions and lengths that no cache has: results are those of the slots that they count as, on the CPU and in
//! plain tensor operations.

use super::*;
use crate::ops::{self, Pool, oracle};
use burn::tensor::{Int, TensorData};

const N: usize = 5;
/// Of two heads, two slots each; then what they count as.
const WRONG: [i64; 4] = [-3, 1, 2, 99];
const MEANT: [i64; 4] = [4, 1, 2, 4];

fn slots(values: &[i64]) -> Tensor<3, Int> {
    let dims = [1, 2, values.len() / 2];
    Tensor::from_data(TensorData::new(values.to_vec(), dims), &Device::flex())
}

fn numbers(tensor: Tensor<3, Int>) -> Vec<i64> {
    tensor.try_into_vec_as().unwrap()
}

fn entries() -> ops::Entries {
    let position = slots(&[0, 1, 2, 3, 4, 4, 3, 2, 1, 0]);
    (random(1, 2, N, 8), random(1, 2, N, 8), position)
}

fn moved((keys, values_of, positions): ops::Entries) -> (Vec<f32>, Vec<f32>, Vec<i64>) {
    (values(keys), values(values_of), numbers(positions))
}

#[test]
fn wrong_slots_count_as_the_last_one() {
    let all = entries();
    let compact = |which: &[i64]| moved(ops::compact(all.clone(), slots(which), 3));
    assert_eq!(compact(&WRONG), compact(&MEANT));
    let [key, value] = [(); 2].map(|()| random(1, 2, 1, 8));
    let replace = |which: &[i64]| {
        let (key, value) = (key.clone(), value.clone());
        moved(ops::replace(all.clone(), slots(which), key, value, 9))
    };
    assert_eq!(replace(&[-1, 7]), replace(&[4, 4]));
    let statistics = all.0.clone();
    let left = |which: &[i64]| values(ops::move_last(statistics.clone(), slots(which)));
    assert_eq!(left(&[-1, 7]), left(&[4, 4]));
    let plain = |which: &[i64]| values(oracle::choice::move_last(statistics.clone(), slots(which)));
    assert_eq!(plain(&[-1, 7]), left(&[4, 4]));

    let order = slots(&[0, 1, 2, 3, 4, 4, 3, 2, 1, 0]);
    for moved in [false, true] {
        let dropped = ops::drop_from_order(order.clone(), slots(&[-1, 7]), moved);
        assert_eq!(dropped.dims(), [1, 2, N - 1]);
    }
    let scores = random(1, 2, N, 1).reshape([1, 2, N]);
    let pool = |order: &[i64]| {
        let order = slots(order);
        let plain = oracle::pool::pool(scores.clone(), Some(&order), 1, 3, Pool::Max);
        let found = ops::pool(scores.clone(), Some(&order), 1, 3, Pool::Max);
        [values(found), values(plain)]
    };
    let [found, plain] = pool(&[0, 1, 2, 3, -8, 4, 3, 2, 1, 0]);
    let [wanted, _] = pool(&[0, 1, 2, 3, 4, 4, 3, 2, 1, 0]);
    assert_eq!((&found, &plain), (&wanted, &wanted));
}

#[test]
fn wrong_slots_of_keys_count_as_the_last_one_and_wrong_places_add_nothing() {
    let (keys, vectors, positions) = entries();
    let kept = [0, 3, 3, 4];
    let closest = |evicted: &[i64], kept: &[i64]| {
        let (cosines, places) = ops::closest(keys.clone(), slots(evicted), slots(kept));
        (values(cosines), numbers(places))
    };
    assert_eq!(closest(&WRONG, &kept), closest(&MEANT, &kept));
    assert_eq!(closest(&kept, &WRONG), closest(&kept, &MEANT));
    let parts = || random(1, 2, 2, 1).abs().reshape([1, 2, 2]);
    let parts: Tensor<3> = parts();
    let merge = |evicted: &[i64], kept: &[i64], places: &[i64], parts: &Tensor<3>| {
        let [evicted, kept, places] = [evicted, kept, places].map(slots);
        let all = (vectors.clone(), evicted, kept, places, parts.clone());
        let (v, e, k, p, w) = all.clone();
        let plain = oracle::keys::merge_into(v, e, k, p, w);
        let (v, e, k, p, w) = all;
        [values(ops::merge_into(v, e, k, p, w)), values(plain)]
    };
    let places = [0, 1, 1, 0];
    let [wanted, _] = merge(&MEANT, &kept, &places, &parts);
    let wrong = merge(&WRONG, &kept, &places, &parts);
    wrong
        .iter()
        .for_each(|found| assert_close(found, &wanted, 1e-6, "merged"));
    let none = parts.zeros_like();
    let [wanted, _] = merge(&MEANT, &kept, &places, &none);
    let wrong = merge(&MEANT, &kept, &[-1, 2, 9, i64::from(i32::MAX)], &parts);
    wrong
        .iter()
        .for_each(|found| assert_close(found, &wanted, 0.0, "places"));
    let spread = |evicted: &[i64], kept: &[i64]| {
        let (v, p) = (vectors.clone(), positions.clone());
        values(ops::spread_into(
            v,
            p,
            slots(evicted),
            slots(kept),
            parts.clone(),
            2,
        ))
    };
    assert_eq!(spread(&[1, 99, -1, 2], &kept), spread(&[1, 4, 4, 2], &kept));
    // A slot that goes and stays at once, and slots in no order, end all the same.
    assert_eq!(spread(&[3, 0, 3, 3], &[3, 0, 4, 3]).len(), 2 * 2 * 8);
}

#[test]
fn wrong_lengths_count_as_the_nearest_right_ones() {
    let q = random(1, 4, 1, 8);
    let (k, v, _) = entries();
    let attend = |lengths: [i64; 2]| {
        let lengths = || Tensor::<2, Int>::from_data([lengths], &Device::flex());
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        let plain = oracle::attend_token(
            q.clone(),
            k.clone(),
            v.clone(),
            Some(lengths()),
            &Mask::default(),
        );
        let found = ops::attend_lengths(q, k, v, lengths());
        [found, plain].map(|(output, row)| (values(output), values(row)))
    };
    let [wanted, _] = attend([1, 5]);
    for found in attend([-2, 6]) {
        assert_close(&found.0, &wanted.0, 1e-6, "output");
        assert_close(&found.1, &wanted.1, 1e-6, "row");
    }
}

#[test]
#[should_panic(expected = "a value per key")]
fn shapes_that_do_not_fit_are_refused() {
    let (k, _, _) = entries();
    let _ = ops::attend(
        random(1, 4, 1, 8),
        k,
        random(1, 2, N - 1, 8),
        &Mask::default(),
        None,
    );
}
