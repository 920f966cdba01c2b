//! Needles in a haystack: one or several keys, values and questions.

use super::texts::fill;
use super::{Draft, Maker};
use crate::texts::filler;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom, index};

/// Needles are hidden at this many different depths of an essay.
const DEPTHS: usize = 40;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Haystack {
    /// One sentence over and over.
    Noise,
    Essay,
    /// Other needles.
    Needles,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Words,
    Numbers,
    Uuids,
}

#[derive(Clone, Copy)]
struct Shape {
    haystack: Haystack,
    key: Kind,
    value: Kind,
    keys: usize,
    values: usize,
    queries: usize,
}

fn shape(task: &str) -> Shape {
    let single = Shape {
        haystack: Haystack::Essay,
        key: Kind::Words,
        value: Kind::Numbers,
        keys: 1,
        values: 1,
        queries: 1,
    };
    match task {
        "niah_single_1" => Shape {
            haystack: Haystack::Noise,
            ..single
        },
        "niah_single_3" => Shape {
            value: Kind::Uuids,
            ..single
        },
        "niah_multikey_1" => Shape { keys: 4, ..single },
        "niah_multikey_2" => Shape {
            haystack: Haystack::Needles,
            ..single
        },
        "niah_multikey_3" => Shape {
            haystack: Haystack::Needles,
            key: Kind::Uuids,
            value: Kind::Uuids,
            ..single
        },
        "niah_multivalue" => Shape {
            values: 4,
            ..single
        },
        "niah_multiquery" => Shape {
            keys: 4,
            queries: 4,
            ..single
        },
        _ => single,
    }
}

/// As many pieces of haystack as needles, so that each has a place of its own.
pub fn least(task: &str) -> usize {
    let shape = shape(task);
    shape.keys * shape.values
}

/// `size` is the number of sentences, of repetitions of the noise, or of other needles.
pub fn draft(maker: &Maker<'_>, size: usize) -> Draft {
    let shape = shape(maker.task);
    let mut rng = maker.rng();
    let plural = kind_name(shape.value);
    let mut needles = Vec::new();
    let mut facts: Vec<(String, Vec<String>)> = Vec::new();
    for _ in 0..shape.keys {
        let key = random(maker, &mut rng, shape.key);
        let values: Vec<String> = (0..shape.values)
            .map(|_| random(maker, &mut rng, shape.value))
            .collect();
        needles.extend(
            values
                .iter()
                .map(|value| needle(maker, plural, &key, value)),
        );
        facts.push((key, values));
    }
    needles.shuffle(&mut rng);
    let asked = index::sample(&mut rng, facts.len(), shape.queries);
    let asked: Vec<&(String, Vec<String>)> = asked.iter().map(|at| &facts[at]).collect();

    let context = match shape.haystack {
        Haystack::Essay => in_essay(maker, &mut rng, &needles, size),
        Haystack::Noise => {
            let noise = vec![maker.texts.noise.clone(); size];
            among(&mut rng, noise, &needles)
        }
        Haystack::Needles => {
            let others = (0..size).map(|_| {
                let key = random(maker, &mut rng, shape.key);
                let value = random(maker, &mut rng, shape.value);
                needle(maker, plural, &key, &value)
            });
            let others = others.collect();
            among(&mut rng, others, &needles)
        }
    };

    let keys: Vec<&str> = asked.iter().map(|(key, _)| key.as_str()).collect();
    let query = match keys.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{}, and {last}", rest.join(", ")),
        Some((last, _)) => last.to_string(),
        None => String::new(),
    };
    let one = shape.values * shape.queries == 1;
    let wording = &maker.texts.niah[usize::from(one)];
    let kind = match one {
        true => plural.trim_end_matches('s'),
        false => plural,
    };
    let fields = [("type_needle_v", kind), ("query", query.as_str())];
    let (context, question, lead_in) = wording.fill(&context, &fields);
    Draft {
        context,
        question,
        lead_in,
        answers: asked
            .iter()
            .flat_map(|(_, values)| values.clone())
            .collect(),
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Words => "words",
        Kind::Numbers => "numbers",
        Kind::Uuids => "uuids",
    }
}

fn needle(maker: &Maker<'_>, kind: &str, key: &str, value: &str) -> String {
    let fields = [("type_needle_v", kind), ("key", key), ("value", value)];
    fill(&maker.texts.needle, &fields)
}

/// Between the sentences, at different depths.
fn in_essay(maker: &Maker<'_>, rng: &mut StdRng, needles: &[String], size: usize) -> String {
    let mut depths = index::sample(rng, DEPTHS, needles.len()).into_vec();
    depths.sort_unstable();
    let mut next = needles.iter().zip(depths).peekable();
    let mut parts: Vec<String> = Vec::new();
    for at in 0..=size {
        while let Some((needle, _)) = next.next_if(|(_, depth)| depth * size / (DEPTHS - 1) <= at) {
            parts.push(needle.clone());
        }
        if at < size {
            parts.push(match maker.texts.sentences.as_slice() {
                [] => filler::sentence(rng),
                sentences => sentences[at % sentences.len()].clone(),
            });
        }
    }
    parts.join(" ")
}

/// On lines of their own between other lines.
fn among(rng: &mut StdRng, lines: Vec<String>, needles: &[String]) -> String {
    let mut places = index::sample(rng, lines.len(), needles.len()).into_vec();
    places.sort_unstable();
    let mut next = needles.iter().zip(places).peekable();
    let mut parts = Vec::with_capacity(lines.len() + needles.len());
    for (at, line) in lines.into_iter().enumerate() {
        while let Some((needle, _)) = next.next_if(|(_, place)| *place <= at) {
            parts.push(needle.clone());
        }
        parts.push(line);
    }
    parts.join("\n")
}

fn random(maker: &Maker<'_>, rng: &mut StdRng, kind: Kind) -> String {
    match kind {
        Kind::Numbers => rng.random_range(1_000_000..10_000_000u32).to_string(),
        Kind::Words => {
            let mut pick = |list: &[String]| list.choose(rng).cloned().unwrap_or_default();
            let adjective = pick(&maker.texts.adjectives);
            format!("{adjective}-{}", pick(&maker.texts.nouns))
        }
        Kind::Uuids => {
            // Version 4, variant 1.
            let bits = rng.random::<u128>() & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
            let hex = format!("{bits:032x}");
            let parts = [
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..],
            ];
            parts.join("-")
        }
    }
}
