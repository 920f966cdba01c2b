//! Text that says nothing, from a seed: what a needle is hidden in.

use rand::Rng;

const WHO: [&str; 12] = [
    "The lamp maker",
    "A tired surveyor",
    "The youngest of the cooks",
    "My aunt from the valley",
    "The night porter",
    "An apprentice",
    "The man with the green umbrella",
    "Somebody from the choir",
    "The retired pilot",
    "Her brother",
    "The new librarian",
    "A girl with two baskets",
];

const WHAT: [&str; 12] = [
    "carried the chairs into the yard",
    "looked for a pair of scissors",
    "swept the stairs twice",
    "asked about the price of plums",
    "painted the fence blue",
    "folded the blankets",
    "listened to the radio",
    "fed the geese behind the mill",
    "wrote a postcard",
    "sharpened all the pencils",
    "waited beside the fountain",
    "put the kettle on",
];

const HOW: [&str; 12] = [
    "before anybody else was awake.",
    "although nobody had asked for it.",
    "while the snow was melting.",
    "and then forgot about it.",
    "because the shop had closed early.",
    "with great patience.",
    "just as in every other spring.",
    "until the clock struck noon.",
    "and hummed an old tune.",
    "in spite of the wind.",
    "after a short rest.",
    "without looking up once.",
];

/// One sentence.
pub fn sentence(rng: &mut impl Rng) -> String {
    let (who, what, how) = (pick(rng, &WHO), pick(rng, &WHAT), pick(rng, &HOW));
    format!("{who} {what} {how}")
}

fn pick(rng: &mut impl Rng, list: &[&'static str]) -> &'static str {
    let drawn = list.get(rng.random_range(0..list.len()));
    drawn.copied().unwrap_or_default()
}
