//! What the room that ranges have for more costs and saves, by simulation: `cargo test --release --lib -- --ignored --nocapture
//! room_of_ranges`.

use super::free::Free;
use super::{GROWTH_PART, SLACK, SLACK_PART, capacity};
use crate::random::splitmix;
use std::ops::Range;

/// A sequence that keeps everything: its prompt, which has no room for more, and what came after it.
struct Sequence {
    prompt: Range<usize>,
    own: Range<usize>,
    len: usize,
    /// Tokens that it will still be given.
    left: usize,
}

/// Entries of all sequences, slots of their ranges and of the arena, those that are free and those side by side, and entries that have
/// moved, summed over all rounds.
#[derive(Default)]
struct Sums {
    tokens: usize,
    held: usize,
    ranges: usize,
    slots: usize,
    free: usize,
    longest: usize,
    moved: usize,
}

/// Sixteen sequences at a time with prompts of 100 to 8,000 tokens, of which each gets 20 to 600 more, for 40,000 rounds.
fn simulate(capacity: &dyn Fn(usize) -> usize) -> Sums {
    let mut state = 7;
    let mut below = |bound: u64| {
        state += 1;
        (splitmix(state) % bound) as usize
    };
    let (mut free, mut sums) = (Free::default(), Sums::default());
    let take = |free: &mut Free, length: usize| {
        let missing = free.missing(length);
        if missing > 0 {
            free.grow(missing.max(free.bound / GROWTH_PART));
        }
        free.take(length).unwrap()
    };
    let mut sequences: Vec<Sequence> = Vec::new();
    for _ in 0..40_000 {
        while sequences.len() < 16 {
            // As many of 100 to 900 as of 900 to 8,000.
            let prompt = match below(2) {
                0 => 100 + below(800),
                _ => 900 + below(7_100),
            };
            sequences.push(Sequence {
                prompt: take(&mut free, prompt),
                own: take(&mut free, capacity(0)),
                len: 0,
                left: 20 + below(580),
            });
        }
        for one in &mut sequences {
            if one.len == one.own.len() {
                let longer = take(&mut free, capacity(one.len + 1));
                free.give(std::mem::replace(&mut one.own, longer));
                sums.moved += one.len;
            }
            one.len += 1;
            one.left -= 1;
            sums.held += one.prompt.len() + one.len;
            sums.ranges += one.prompt.len() + one.own.len();
        }
        sums.tokens += sequences.len();
        sums.slots += free.bound;
        sums.free += free.count();
        sums.longest += free.longest();
        sequences.retain(|one| {
            if one.left == 0 {
                free.give(one.prompt.clone());
                free.give(one.own.clone());
            }
            one.left > 0
        });
    }
    sums
}

#[test]
#[ignore = "a measurement"]
fn room_of_ranges() {
    println!(
        "| room | spare slots of ranges | free slots | of these side by side | all slots to entries | entries moved for a token |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    let share = |part: usize, all: usize| 100.0 * part as f64 / all as f64;
    for (slack, part) in [(16, 16), (32, 16), (64, 16), (64, 4), (128, 16), (256, 16)] {
        let room = |len: usize| len + slack.max(len / part);
        let sums = simulate(&room);
        println!(
            "| {slack} or a {part}th | {:.1} % | {:.1} % | {:.0} % | {:.2} | {:.1} |",
            share(sums.ranges - sums.held, sums.slots),
            share(sums.free, sums.slots),
            share(sums.longest, sums.free),
            sums.slots as f64 / sums.held as f64,
            sums.moved as f64 / sums.tokens as f64,
        );
    }
}

/// What is measured is what is done.
#[test]
fn ranges_have_the_room_that_was_chosen() {
    for len in [1, 100, 1_023, 1_024, 5_000] {
        assert_eq!(capacity(len, usize::MAX), len + SLACK.max(len / SLACK_PART));
    }
    let sums = simulate(&|len| capacity(len, usize::MAX));
    assert!(sums.held <= sums.ranges && sums.ranges + sums.free == sums.slots);
    // Half as many slots again as entries at most, and a token moves few.
    assert!(
        sums.slots * 2 <= sums.held * 3,
        "{} for {}",
        sums.slots,
        sums.held
    );
    assert!(
        sums.moved <= 40 * sums.tokens,
        "{} for {}",
        sums.moved,
        sums.tokens
    );
}
