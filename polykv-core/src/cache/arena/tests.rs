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
/// moved, summed over all rounds; and the most slots that ranges had and the arena has.
#[derive(Default)]
struct Sums {
    most: usize,
    bound: usize,
    tokens: usize,
    held: usize,
    ranges: usize,
    slots: usize,
    free: usize,
    longest: usize,
    moved: usize,
}

/// Sixteen sequences at a time with prompts of 100 to 8,000 tokens, of which each gets 20 to 600 more, for 8,000 rounds. Slots grow by
/// at least a `growth`th.
fn simulate(capacity: &dyn Fn(usize) -> usize, growth: usize) -> Sums {
    let mut state = 7;
    let mut below = |bound: u64| {
        state += 1;
        (splitmix(state) % bound) as usize
    };
    let (mut free, mut sums) = (Free::default(), Sums::default());
    let take = |free: &mut Free, length: usize| {
        let missing = free.missing(length);
        if missing > 0 {
            free.grow(missing.max(free.bound / growth));
        }
        free.take(length).unwrap()
    };
    let mut sequences: Vec<Sequence> = Vec::new();
    for _ in 0..8_000 {
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
        let mut ranges = 0;
        for one in &mut sequences {
            if one.len == one.own.len() {
                let longer = take(&mut free, capacity(one.len + 1));
                free.give(std::mem::replace(&mut one.own, longer));
                sums.moved += one.len;
            }
            one.len += 1;
            one.left -= 1;
            sums.held += one.prompt.len() + one.len;
            ranges += one.prompt.len() + one.own.len();
        }
        sums.ranges += ranges;
        sums.most = sums.most.max(ranges);
        sums.bound = free.bound;
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
        "| room of a range | growth of all | spare slots in ranges | free slots | of these side by side | slots to the most at once | moved for a token |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|");
    let share = |part: usize, all: usize| 100.0 * part as f64 / all as f64;
    for growth in [4, 16, 64] {
        for slack in [16, 64, 256] {
            let room = |len: usize| len + slack.max(len / SLACK_PART);
            let sums = simulate(&room, growth);
            println!(
                "| {slack} | 1/{growth} | {:.1} % | {:.1} % | {:.0} % | {:.2} | {:.1} |",
                share(sums.ranges - sums.held, sums.slots),
                share(sums.free, sums.slots),
                share(sums.longest, sums.free),
                sums.bound as f64 / sums.most as f64,
                sums.moved as f64 / sums.tokens as f64,
            );
        }
    }
}

/// What was measured is what is done.
#[test]
fn ranges_have_the_room_that_was_chosen() {
    for len in [1, 100, 1_023, 1_024, 5_000] {
        let room = SLACK.max(len / SLACK_PART);
        assert_eq!(capacity(len, usize::MAX), len + room);
    }
    let sums = simulate(&|len| capacity(len, usize::MAX), GROWTH_PART);
    assert!(sums.held <= sums.ranges);
    assert_eq!(sums.ranges + sums.free, sums.slots);
    // Half as many again as were needed at once at most, and a token moves few.
    assert!(
        2 * sums.bound <= 3 * sums.most,
        "{} for {}",
        sums.bound,
        sums.most
    );
    assert!(
        sums.moved <= 4 * sums.tokens,
        "{} for {}",
        sums.moved,
        sums.tokens
    );
}
