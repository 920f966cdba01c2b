//! Variable tracking: a chain of assignments among noise, and one solved example before it.

use super::{Draft, Maker};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::index;

const HOPS: usize = 4;
/// Lines of a chain.
pub const LINES: usize = HOPS + 1;
/// Noise of the example.
const EXAMPLE: usize = 5;

/// `size` is the number of repetitions of the noise.
pub fn draft(maker: &Maker<'_>, size: usize) -> Draft {
    let mut rng = maker.rng();
    let (context, question, lead_in, names) = chain(maker, &mut rng, EXAMPLE, 3);
    let example = format!("{context}{question}{lead_in} {}\n\n", names.join(" "));
    let (context, question, lead_in, answers) = chain(maker, &mut rng, size, 5);
    Draft {
        context: format!("{example}{context}"),
        question,
        lead_in,
        answers,
    }
}

/// A filled template and the names that its answer has; they are of `letters` letters.
fn chain(
    maker: &Maker<'_>,
    rng: &mut StdRng,
    size: usize,
    letters: usize,
) -> (String, String, String, Vec<String>) {
    let mut names: Vec<String> = Vec::new();
    while names.len() < LINES {
        let name = (0..letters).map(|_| char::from(rng.random_range(b'A'..=b'Z')));
        let name: String = name.collect();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value = rng.random_range(10_000..99_999u32).to_string();
    let mut assignments = vec![format!("VAR {} = {value}", names[0])];
    assignments.extend(
        names
            .windows(2)
            .map(|pair| format!("VAR {} = VAR {} ", pair[1], pair[0])),
    );
    let mut places = index::sample(rng, size.max(LINES), LINES).into_vec();
    places.sort_unstable();
    let mut next = assignments.into_iter().zip(places).peekable();
    let mut lines = Vec::new();
    for at in 0..size.max(LINES) {
        while let Some((assignment, _)) = next.next_if(|(_, place)| *place <= at) {
            lines.push(assignment);
        }
        lines.push(maker.texts.noise.clone());
    }
    let context = lines.join("\n");
    let number = LINES.to_string();
    let fields = [("query", value.as_str()), ("num_v", number.as_str())];
    let (context, question, lead_in) = maker.texts.tracking.fill(&context, &fields);
    (context, question, lead_in, names)
}
