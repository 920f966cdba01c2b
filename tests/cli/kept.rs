//! `polykv generate --show-kept`.

use super::LONG;
use crate::cli_support::{generate, generate_args, generate_json, path_str, polykv, tiny_model};

/// The values of an attribute, in order.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    html.split(&start)
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect()
}

#[test]
fn the_page_counts_what_the_cache_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept.html");
    let prompt = format!("{LONG} <script>alert('no')</script> \u{1F600}");
    let run = [
        "-p",
        &prompt,
        "-n",
        "4",
        "--policy",
        "snapkv",
        "--budget",
        "40",
        "--protect-prefix",
        "3",
    ];
    let json = generate_json(&[&run[..], &["--show-kept", path_str(&file)]].concat());
    let html = std::fs::read_to_string(&file).unwrap();

    let tokens = json["prompt_tokens"].as_u64().unwrap() as usize;
    let mut heads = [0; 3];
    for token in attributes(&html, "data-h") {
        for (sum, own) in heads.iter_mut().zip(token.split(' ')) {
            *sum += own.parse::<usize>().unwrap();
        }
    }
    assert_eq!(heads, [2 * 40; 3], "40 entries for each of two KV heads");
    let places = attributes(&html, "data-p");
    let bounds = |place: &str| {
        let (first, last) = place.split_once('-').unwrap_or((place, place));
        (
            first.parse::<usize>().unwrap(),
            last.parse::<usize>().unwrap(),
        )
    };
    let (mut next, mut kept) = (0, 0.0);
    let spans = html
        .split("<span class=")
        .filter(|span| span.contains("--k:"));
    for (place, span) in places.iter().zip(spans) {
        let (first, last) = bounds(place);
        assert_eq!(first, next);
        next = last + 1;
        let share = span
            .split("--k:")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        kept += share.parse::<f64>().unwrap() * (3 * (next - first)) as f64;
        assert_eq!(
            span.starts_with("\"kept") || span.starts_with("\"special kept"),
            first < 3
        );
    }
    assert_eq!(next, tokens);
    assert!((kept - 120.0).abs() < 0.05, "{kept}");
    let (head, rest) = html.split_once("<pre>").unwrap();
    let (body, _) = rest.split_once("</pre>").unwrap();
    assert!(!body.contains("<script") && body.contains("&lt;") && body.contains('\u{1F600}'));
    for part in [
        format!("40 of {tokens} entries per layer"),
        "40 entries per layer on average".into(),
        "before the first new token".into(),
        "3 tokens, underlined".into(),
        "snapkv 0-2".into(),
        "prefill snapkv 40, decode snapkv 40".into(),
    ] {
        assert!(head.contains(&part), "{part}: {head}");
    }

    // The page changes nothing else.
    let text = json["text"].as_str().unwrap();
    assert_eq!(
        generate(&[&run[..], &["--no-stats"]].concat()).stdout,
        format!("{text}\n")
    );
}

#[test]
fn a_page_without_a_place_is_refused_first() {
    for (file, found) in [
        ("/nonexistent/kept.html", "in no folder"),
        ("/", "a folder"),
    ] {
        let args = generate_args(&tiny_model(), &["-p", "x", "--show-kept", file]);
        let answer = polykv(&args);
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (3, ""),
            "{}",
            answer.stderr
        );
        assert!(
            answer.stderr.contains(file) && answer.stderr.contains(found),
            "{}",
            answer.stderr
        );
    }
}
