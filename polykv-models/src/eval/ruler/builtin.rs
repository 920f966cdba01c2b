//! Words, templates and documents of our own, in RULER's forms.

use super::qa::{Asked, Documents};
use super::texts::{Texts, Wording};
use crate::texts::filler;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

const ADJECTIVES: &str = "amber ancient ashen bitter blunt brass brave brisk broken calm careful clever cloudy coarse cold \
    copper crimson crooked curious damp dapper distant double drowsy dusty early eager empty faded faint famous fertile \
    fierce flat foggy folded fragile frosty gentle gilded golden grand green grumpy hasty heavy hidden hollow humble icy \
    idle ivory jolly keen lazy lively lonely loud lucky mellow mild misty modest muddy narrow nimble noble odd pale patient \
    plain polite proud quick quiet rapid rare restless rough round rusty salty scarlet secret shiny silent silver simple \
    sleepy slender smooth sober solid steady stiff stormy stout subtle sturdy sunny tall tender thirsty tidy timid tiny \
    vivid warm weary wide wild windy wooden young";

const NOUNS: &str = "acorn anchor anvil apron arrow attic badge bakery barley barn basin basket beacon bell bench bottle \
    bramble bridge broom bucket button cabin camel candle canoe canvas carpet castle cellar chalk cherry chimney clock coat \
    cobbler comet compass cradle crane cricket curtain dagger desk donkey drawer drum falcon feather fence ferry fiddle \
    flute forge fountain furnace garden gate glove goblet granite hammer harbor harp harvest hazel hedge helmet heron hinge \
    honey horn inkwell island jacket jar kettle kite ladder lamp lantern lemon lever lighthouse lizard magnet maple marble \
    market mast meadow mirror mitten moth mountain needle nest oar orchard otter oven owl paddle parcel pebble pepper piano \
    pigeon pillow plough pocket quarry quilt rabbit radish raft raven ribbon river rocket rudder saddle sailor satchel \
    scarf shovel shutter signal sparrow spoon stable statue stove tailor teapot thimble thistle tower trumpet tunnel turnip \
    umbrella valley velvet village violin wagon walnut weaver well whistle willow window";

const STARTS: [&str; 16] = [
    "Al", "Bren", "Cor", "Dal", "El", "Fen", "Gar", "Hol", "Is", "Kel", "Lor", "Mar", "Nor", "Os",
    "Tel", "Vor",
];
const MIDDLES: [&str; 12] = [
    "a", "ba", "den", "e", "fi", "gon", "i", "la", "mer", "o", "ri", "va",
];
const ENDS: [&str; 10] = [
    "by", "dale", "field", "ham", "low", "mere", "stead", "ton", "wick", "worth",
];
const TRADES: [&str; 12] = [
    "rope", "glass", "cheese", "paper", "bells", "boats", "honey", "lace", "tiles", "wool",
    "cider", "clocks",
];
const KINDS: [&str; 6] = ["village", "town", "harbor", "market town", "hamlet", "port"];

/// Documents per set.
const DOCUMENTS: usize = 600;

pub(super) fn texts(seed: u64) -> Texts {
    let list =
        |words: &str| -> Vec<String> { words.split_whitespace().map(String::from).collect() };
    let (adjectives, nouns) = (list(ADJECTIVES), list(NOUNS));
    // For long lists pairs too.
    let pairs = adjectives
        .iter()
        .flat_map(|one| nouns.iter().map(move |other| format!("{one}{other}")));
    let words = adjectives.iter().chain(&nouns).cloned().chain(pairs);
    let words = words.collect();
    let wording = |template: &str, lead_in: &str, new_tokens| Wording {
        template: template.into(),
        lead_in: lead_in.into(),
        new_tokens,
    };
    let mut rng = StdRng::seed_from_u64(seed);
    Texts {
        niah: [
            wording(
                "The text below hides several magic {type_needle_v}. Remember each of them; at the end you will be asked \
                 for them.\n{context}\nWhich magic {type_needle_v} does the text give for {query}?",
                " The magic {type_needle_v} that the text gives for {query} are",
                128,
            ),
            wording(
                "The text below hides a magic {type_needle_v}. Remember it; at the end you will be asked for it.\n\
                 {context}\nWhich magic {type_needle_v} does the text give for {query}?",
                " The magic {type_needle_v} that the text gives for {query} is",
                128,
            ),
        ],
        tracking: wording(
            "The text below assigns values to variables, some of them by way of other variables. Keep track of them.\n\n\
             {context}\nQuestion: which variables in the text above have the value {query}?",
            " Answer: by the assignments above, {num_v} variables have the value {query}, namely: ",
            30,
        ),
        common: wording(
            "Here is a numbered list of words; some of them come more often than the others. Keep in mind which.\n\
             {context}\nQuestion: which 10 words come most often in the list?",
            " Answer: the 10 words that come most often in the list are:",
            120,
        ),
        frequent: wording(
            "The text below is written in a code. Count how often each code word comes. {context}\nQuestion: which three \
             code words come most often? Leave out the dots and do not explain.",
            " Answer: the three code words that come most often are:",
            50,
        ),
        qa: wording(
            "Read these documents and answer the question about them in as few words as you can.\n\n{context}\n\n\
             Answer the question about the documents in as few words as you can.\n\nQuestion: {query}",
            " Answer:",
            32,
        ),
        needle: "One of the magic {type_needle_v} for {key} is: {value}.".into(),
        noise:
            "The gate is shut. The lamp is lit. The road is long. Nobody comes by. All is quiet."
                .into(),
        // A new text for each sample.
        sentences: Vec::new(),
        adjectives,
        nouns,
        words,
        documents: [one_hop(&mut rng), two_hops(&mut rng)],
    }
}

/// What there is to know of a place.
struct Place {
    name: String,
    river: String,
    founder: String,
    year: u32,
    trade: &'static str,
    text: String,
}

/// Places of different names with texts about them.
fn places(rng: &mut StdRng, count: usize) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    while places.len() < count {
        let (name, river) = (name(rng, &ENDS), name(rng, &["a", "er", "in", "ow"]));
        let founder = person(rng);
        if places
            .iter()
            .any(|known| known.name == name || known.founder == founder)
        {
            continue;
        }
        let year = rng.random_range(1100..1900);
        let trade = pick(rng, &TRADES);
        let kind = pick(rng, &KINDS);
        let text = format!(
            "{name}\n{name} is a {kind} on the river {river}. It was founded in {year} by {founder}. {} It is known for \
             its {trade}. {}",
            filler::sentence(rng),
            filler::sentence(rng),
        );
        places.push(Place {
            name,
            river,
            founder,
            year,
            trade,
            text,
        });
    }
    places
}

/// Questions that one document answers.
fn one_hop(rng: &mut StdRng) -> Documents {
    let places = places(rng, DOCUMENTS);
    let questions = places.iter().enumerate().map(|(at, place)| {
        let name = &place.name;
        let (question, answer) = match rng.random_range(0..4) {
            0 => (format!("On which river is {name}?"), place.river.clone()),
            1 => (format!("Who founded {name}?"), place.founder.clone()),
            2 => (format!("When was {name} founded?"), place.year.to_string()),
            _ => (
                format!("What is {name} known for?"),
                place.trade.to_string(),
            ),
        };
        Asked {
            question,
            answers: vec![answer],
            sources: vec![at],
            near: Vec::new(),
        }
    });
    let mut questions: Vec<Asked> = questions.collect();
    questions.shuffle(rng);
    Documents {
        questions,
        texts: places.into_iter().map(|place| place.text).collect(),
    }
}

/// Questions that need two documents: one about a person, and one about the place where they were born.
fn two_hops(rng: &mut StdRng) -> Documents {
    let places = places(rng, DOCUMENTS / 2);
    let mut texts: Vec<String> = places.iter().map(|place| place.text.clone()).collect();
    let mut questions: Vec<Asked> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let person = loop {
            let one = person(rng);
            if !texts.iter().any(|text| text.contains(&one)) {
                break one;
            }
        };
        let work = pick(
            rng,
            &[
                "painter", "surveyor", "singer", "judge", "botanist", "printer",
            ],
        );
        let born = &place.name;
        let text = format!(
            "{person}\n{person} was a {work} who was born in {born}. {} {}",
            filler::sentence(rng),
            filler::sentence(rng),
        );
        let (question, answer) = match rng.random_range(0..3) {
            0 => (
                format!("On which river is the birthplace of {person}?"),
                place.river.clone(),
            ),
            1 => (
                format!("Who founded the place where {person} was born?"),
                place.founder.clone(),
            ),
            _ => (
                format!("What is the birthplace of {person} known for?"),
                place.trade.to_string(),
            ),
        };
        questions.push(Asked {
            question,
            answers: vec![answer],
            sources: vec![at, texts.len()],
            near: Vec::new(),
        });
        texts.push(text);
    }
    questions.shuffle(rng);
    Documents { texts, questions }
}

fn name(rng: &mut StdRng, ends: &[&'static str]) -> String {
    let (start, middle, end) = (pick(rng, &STARTS), pick(rng, &MIDDLES), pick(rng, ends));
    format!("{start}{middle}{end}")
}

fn person(rng: &mut StdRng) -> String {
    let first = format!(
        "{}{}",
        pick(rng, &STARTS),
        pick(rng, &["a", "en", "ic", "or", "us"])
    );
    format!(
        "{first} {}",
        name(rng, &["sen", "man", "ski", "ert", "well"])
    )
}

fn pick(rng: &mut StdRng, list: &[&'static str]) -> &'static str {
    list.choose(rng).copied().unwrap_or_default()
}
