//! The page of `generate --show-kept` and of `/kept` in a chat: a text in which the shade of a token says how many layers kept it.

use super::{Run, describe_budget, escaped, trimmed};
use crate::kept::Token;
use polykv::plan::{Eviction, LayerEvictions};
use polykv::policy::Policies;
use polykv::{Phase, PlanFile, Result, Spans};
use std::fmt::Write;

/// Style and script; what is written goes in the place of the mark.
const FRAME: &str = include_str!("kept/page.html");
const MARK: &str = "<!-- content -->";
/// Colours of policies that [`FRAME`] has.
const COLOURS: usize = 8;

/// When it is asked what was kept.
pub struct Moment {
    /// Tokens that the cache had been given.
    tokens: usize,
    text: &'static str,
    /// Whether decoding may have evicted.
    decoded: bool,
}

impl Moment {
    /// After a prompt of as many tokens.
    pub fn after_the_prompt(tokens: usize) -> Self {
        Self {
            tokens,
            text: "after the prompt, before the first new token; mean over KV heads",
            decoded: false,
        }
    }

    /// After an answer, with as many tokens in all.
    pub fn after_an_answer(tokens: usize) -> Self {
        Self {
            tokens,
            text: "after the last answer; mean over KV heads",
            decoded: true,
        }
    }
}

/// The whole page; it needs nothing from elsewhere. `tokens` with what the cache kept of them at that moment.
///
/// # Errors
/// A plan that cannot be carried out for this prompt.
pub fn page(run: &Run<'_>, moment: &Moment, tokens: &[Token], spans: &Spans) -> Result<String> {
    let cache = run.cache;
    let plan = cache.plan();
    let seen = moment.tokens;
    let layers = plan.resolve(seen, &cache.cost())?.layers;
    let kv_heads = cache.shape().kv_heads;
    let kept: Vec<f64> = (0..layers.len())
        .map(|layer| tokens.iter().map(|token| token.heads[layer]).sum::<usize>() as f64)
        .map(|heads| heads / kv_heads as f64)
        .collect();
    let mut page = header(run, moment, &kept, spans);
    page.push_str(&strip(&layers, &kept, kv_heads, seen));
    page.push_str(&text(tokens, spans, layers.len() * kv_heads));
    Ok(FRAME.replacen(MARK, &page, 1))
}

fn header(run: &Run<'_>, moment: &Moment, kept: &[f64], spans: &Spans) -> String {
    let seen = moment.tokens;
    let mean = kept.iter().sum::<f64>() / kept.len() as f64;
    let least = kept.iter().copied().fold(f64::INFINITY, f64::min);
    let most = kept.iter().copied().fold(0.0, f64::max);
    let plan = run.plan;
    let mut facts = vec![
        (
            "model",
            format!("{}, {}, {}", run.model, run.device, run.dtype),
        ),
        ("plan", format!("{} ({})", name(plan), plan.hash())),
        ("budget", describe_budget(plan)),
        (
            "kept",
            format!(
                "{} of {seen} entries per layer ({:.1} %), min {}, max {}",
                trimmed(mean),
                100.0 * mean / seen as f64,
                trimmed(least),
                trimmed(most)
            ),
        ),
        ("moment", moment.text.into()),
    ];
    if !plan.evicts(Phase::Prefill) && !moment.decoded {
        facts.push(("note", "this plan evicts nothing before decoding".into()));
    }
    if spans.count() > 0 {
        facts.push(("protected", format!("{} tokens, underlined", spans.count())));
    }
    let mut out = String::from("<h1>What the cache kept</h1>\n<dl>\n");
    for (name, fact) in facts {
        out.push_str(&format!("<dt>{name}</dt><dd>{}</dd>\n", escaped(&fact)));
    }
    out.push_str("</dl>\n");
    out
}

/// The plan's own name, or that of its only policy.
fn name(plan: &PlanFile) -> String {
    let [rule] = plan.prefill.as_slice() else {
        return plan.name.clone().unwrap_or_else(|| "without a name".into());
    };
    plan.name
        .clone()
        .unwrap_or_else(|| format!("{} in every layer", rule.policy))
}

/// A bar per layer, and the policies by colour.
fn strip(layers: &[LayerEvictions], kept: &[f64], kv_heads: usize, seen: usize) -> String {
    let most = kept.iter().copied().fold(1.0, f64::max);
    let mut policies: Vec<(String, Vec<usize>)> = Vec::new();
    let mut bars = String::new();
    for (layer, (rules, kept)) in layers.iter().zip(kept).enumerate() {
        let prefill = rules.prefill.as_ref();
        let name = prefill.map_or(Policies::KEEP, |rule| rule.policy.name());
        let known = policies.iter().position(|(other, _)| other == name);
        let index = known.unwrap_or_else(|| {
            policies.push((name.to_string(), Vec::new()));
            policies.len() - 1
        });
        policies[index].1.push(layer);
        let title = format!(
            "layer {layer}: {} of {seen} entries; prefill {}, decode {}",
            trimmed(*kept),
            rule(prefill),
            rule(rules.decode.as_ref())
        );
        bars.push_str(&format!(
            "<button type=\"button\" title=\"{0}\" aria-label=\"{0}\" aria-pressed=\"false\">\
             <i style=\"height:{1:.1}%;--series:var(--p{2})\"></i></button>",
            escaped(&title),
            100.0 * kept / most,
            index % COLOURS
        ));
    }
    let legend: String = policies
        .iter()
        .enumerate()
        .map(|(index, (name, layers))| {
            let place = format!("{} {}", escaped(name), ranges(layers));
            format!(
                "<li style=\"--series:var(--p{})\">{place}</li>",
                index % COLOURS
            )
        })
        .collect();
    format!(
        "<div class=\"strip\" data-heads=\"{kv_heads}\">{bars}</div>\n\
         <div class=\"map\" aria-hidden=\"true\">{}</div>\n\
         <div class=\"ends soft\"><span>layer 0</span><span>highest bar: {} entries</span><span>{}</span></div>\n\
         <ul aria-label=\"prefill policies\">{legend}</ul>\n",
        "<i></i>".repeat(layers.len()),
        trimmed(most),
        layers.len() - 1
    )
}

fn rule(eviction: Option<&Eviction>) -> String {
    match eviction {
        Some(rule) => format!("{} {}", rule.policy.name(), rule.budget),
        None => Policies::KEEP.to_string(),
    }
}

/// `0-14, 20`
fn ranges(layers: &[usize]) -> String {
    let runs = layers.chunk_by(|a, b| a + 1 == *b);
    let texts: Vec<_> = runs
        .map(|run| match run {
            [only] => only.to_string(),
            run => format!("{}-{}", run[0], run[run.len() - 1]),
        })
        .collect();
    texts.join(", ")
}

/// The prompt, one element per token: `data-p` has its positions, `data-h` the KV heads that keep it per layer, `--k`
/// the share of the `most` heads of all layers.
fn text(tokens: &[Token], spans: &Spans, most: usize) -> String {
    let mut out = String::from(
        "<div class=\"scale\"><span>no layer</span><i></i><span>all layers</span>\
         <span class=\"soft\">grey letters: evicted everywhere</span></div>\n<pre>",
    );
    for token in tokens {
        let kept: usize = token.heads.iter().sum();
        let share = kept as f64 / (most * token.positions.len()) as f64;
        let mut classes = Vec::new();
        if kept == 0 {
            classes.push("none");
        }
        if token.special {
            classes.push("special");
        }
        if token.positions.clone().any(|at| spans.contains(at)) {
            classes.push("kept");
        }
        let (first, last) = (token.positions.start, token.positions.end - 1);
        let place = match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let heads: Vec<_> = token.heads.iter().map(usize::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<span class=\"{}\" style=\"--k:{share:.4}\" data-p=\"{place}\" data-h=\"{}\"",
            classes.join(" "),
            heads.join(" ")
        );
        let shown = visible(&token.text);
        if shown != escaped(&token.text) {
            let _ = write!(out, " data-t=\"{}\"", escaped(&format!("{:?}", token.text)));
        }
        let _ = write!(out, ">{shown}</span>");
    }
    out.push_str("</pre>\n");
    out
}

/// Escaped text with marks for what cannot be seen: line ends, control characters, nothing at all.
fn visible(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' => out.push_str("<b>↵</b>\n"),
            '\t' => out.push_str("<b>⇥</b>\t"),
            '\u{7f}' => out.push_str("<b>␡</b>"),
            // The pictures of the first 32 control characters follow each other.
            c if (c as u32) < 0x20 => {
                let picture = char::from_u32(0x2400 + c as u32).unwrap_or('\u{FFFD}');
                out.push_str(&format!("<b>{picture}</b>"));
            }
            c if c.is_control() => out.push_str("<b>\u{FFFD}</b>"),
            c => out.push_str(&escaped(c.encode_utf8(&mut [0; 4]))),
        }
    }
    if out.is_empty() {
        out.push_str("<b>∅</b>");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, positions: std::ops::Range<usize>, heads: &[usize]) -> Token {
        Token {
            text: text.into(),
            positions,
            special: text.starts_with("<|"),
            heads: heads.into(),
        }
    }

    #[test]
    fn tokens_carry_shares_and_text_stays_text() {
        // Two layers of two KV heads.
        let tokens = [
            token("<|im_start|>", 0..1, &[2, 2]),
            token("<script>alert('&\"')</script>", 1..2, &[0, 0]),
            token("\u{1F600}", 2..5, &[3, 0]),
        ];
        let html = text(&tokens, &Spans::new([1..2, 2..3]), 4);
        for part in [
            "<span class=\"special\" style=\"--k:1.0000\" data-p=\"0\" data-h=\"2 2\">&lt;|im_start|&gt;</span>",
            "<span class=\"none kept\" style=\"--k:0.0000\" data-p=\"1\" data-h=\"0 0\">\
             &lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;</span>",
            "<span class=\"kept\" style=\"--k:0.2500\" data-p=\"2-4\" data-h=\"3 0\">\u{1F600}</span>",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("<script"));
    }

    #[test]
    fn what_cannot_be_seen_gets_a_mark() {
        assert_eq!(visible("a\n"), "a<b>↵</b>\n");
        assert_eq!(
            visible("\0\u{1b}\u{7f}\u{85}"),
            "<b>␀</b><b>␛</b><b>␡</b><b>\u{FFFD}</b>"
        );
        assert_eq!(visible(""), "<b>∅</b>");
        // The bar at the bottom names the character itself.
        let html = text(&[token("\n", 0..1, &[1])], &Spans::default(), 1);
        assert!(html.contains("data-t=\"&quot;\\n&quot;\""), "{html}");
    }

    #[test]
    fn neighbouring_layers_share_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }

    #[test]
    fn the_frame_has_its_mark_and_asks_for_nothing() {
        assert_eq!(FRAME.matches(MARK).count(), 1);
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!FRAME.contains(outside), "{outside}");
        }
    }
}
