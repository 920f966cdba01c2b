//! A plan as a picture: one bar per layer and phase, its colour the policy, its height the budget. As SVG and PNG.

mod png;

pub use png::png;

use super::{describe_budget, escaped, one_line};
use polykv::{Phase, Plan, Rule};
use std::fmt::Write;

const BAR: usize = 16;
const GAP: usize = 4;
const HEIGHT: usize = 120;
const LEFT: usize = 70;
const TOP: usize = 40;
/// From the top of one phase to that of the next.
const PANEL: usize = HEIGHT + 50;
/// Pixels per letter, generously.
const LETTER: usize = 7;
/// Colours that stay apart for a dozen policies, as red, green and blue.
const COLOURS: [u32; 12] = [
    0x3366aa, 0xdd7733, 0x449966, 0xbb3355, 0x8866bb, 0x997744, 0x55aacc, 0xddaa33, 0x777777,
    0xcc66aa, 0x88aa33, 0x224455,
];

struct Picture {
    width: usize,
    height: usize,
    bars: Vec<Bar>,
    texts: Vec<Text>,
}

/// A filled rectangle; `x` and `y` are its upper left corner.
struct Bar {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    colour: u32,
    /// What it stands for, unless a text beside it says that.
    title: Option<String>,
}

/// `x` and `y` are the anchor on the base line.
struct Text {
    x: usize,
    y: usize,
    anchor: Anchor,
    content: String,
}

#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Picture {
    fn of(plan: &Plan) -> Self {
        let phases = [Phase::Prefill, Phase::Decode];
        let mut labels: Vec<String> = Vec::new();
        for rule in phases.iter().flat_map(|&phase| plan.rules(phase)) {
            let label = label(rule);
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        let title = format!(
            "{}: {}",
            plan.name.as_deref().unwrap_or("plan"),
            describe_budget(plan)
        );
        let letters = |own: &String| own.chars().count() + 3;
        let longest = labels.iter().map(letters).max().unwrap_or(0);
        let legend = TOP + 2 * PANEL;
        let mut picture = Self {
            width: (LEFT + plan.layers * (BAR + GAP) + 20)
                .max(LEFT + LETTER * longest.max(title.chars().count())),
            height: legend + 20 * labels.len() + 10,
            bars: Vec::new(),
            texts: Vec::new(),
        };
        picture.text(10, 20, Anchor::Start, &title);
        for (row, phase) in phases.into_iter().enumerate() {
            picture.phase(plan, phase, TOP + row * PANEL + HEIGHT, &labels);
        }
        for (index, label) in labels.iter().enumerate() {
            let y = legend + 20 * index;
            picture.bars.push(Bar {
                x: LEFT,
                y,
                width: 12,
                height: 12,
                colour: COLOURS[index % COLOURS.len()],
                title: None,
            });
            picture.text(LEFT + 18, y + 11, Anchor::Start, label);
        }
        picture
    }

    /// The bars of one phase, standing on `base`.
    fn phase(&mut self, plan: &Plan, phase: Phase, base: usize, labels: &[String]) {
        let rules = plan.prefill.iter().chain(&plan.decode);
        let most = rules.filter_map(amount).fold(0.0, f64::max);
        self.text(
            LEFT - 10,
            base - HEIGHT / 2,
            Anchor::End,
            &phase.to_string(),
        );
        for (layer, rule) in plan.by_layer(phase).iter().enumerate() {
            // What keeps everything is as high as the picture.
            let share = amount(rule).map_or(1.0, |own| own / most);
            let height = (share * HEIGHT as f64).round().max(1.0) as usize;
            let x = LEFT + layer * (BAR + GAP);
            let own = label(rule);
            let index = labels.iter().position(|known| *known == own).unwrap_or(0);
            self.bars.push(Bar {
                x,
                y: base - height,
                width: BAR,
                height,
                colour: COLOURS[index % COLOURS.len()],
                title: Some(format!("{phase}, layer {layer}: {own}, {}", entries(rule))),
            });
            if layer % 5 == 0 || plan.layers <= 10 {
                self.text(x + BAR / 2, base + 16, Anchor::Middle, &layer.to_string());
            }
        }
    }

    /// Names and parameters come from a file that anybody may have written.
    fn text(&mut self, x: usize, y: usize, anchor: Anchor, content: &str) {
        self.texts.push(Text {
            x,
            y,
            anchor,
            content: one_line(content),
        });
    }
}

/// The whole file.
pub fn svg(plan: &Plan) -> String {
    let Picture {
        width,
        height,
        bars,
        texts,
    } = Picture::of(plan);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    // Writing to a String cannot fail.
    for bar in bars {
        let _ = write!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#{:06x}\"",
            bar.x, bar.y, bar.width, bar.height, bar.colour
        );
        let _ = match bar.title {
            Some(title) => writeln!(svg, "><title>{}</title></rect>", escaped(&one_line(&title))),
            None => writeln!(svg, "/>"),
        };
    }
    for text in texts {
        let anchor = match text.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            text.x,
            text.y,
            escaped(&text.content)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn label(rule: &Rule) -> String {
    let params = super::describe_params(&rule.params);
    match params.is_empty() {
        true => rule.policy.clone(),
        false => format!("{} {params}", rule.policy),
    }
}

/// Entries or share, whichever the plan states; none for what keeps everything.
fn amount(rule: &Rule) -> Option<f64> {
    match (rule.tokens, rule.policy.as_str()) {
        (Some(tokens), _) => Some(tokens as f64),
        (None, "full") => None,
        (None, _) => Some(rule.share.unwrap_or(1.0)),
    }
}

fn entries(rule: &Rule) -> String {
    match (rule.tokens, amount(rule)) {
        (Some(tokens), _) => format!("{tokens} entries"),
        (None, Some(share)) => format!("share {share}"),
        (None, None) => "everything".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_by_hand() {
        let plan = "{schema: 1, name: 'a < b & c', layers: 3, budget: {tokens: 20}, prefill:
            [{layers: 0, policy: tova, tokens: 40}, {layers: 1-2, policy: h2o, tokens: 10}],
            decode: [{layers: 0-2, policy: full}]}";
        let svg = svg(&Plan::from_yaml("test", plan).unwrap());
        assert!(svg.contains("a &lt; b &amp; c"), "{svg}");
        let bars = |height: usize| {
            svg.matches(&format!("width=\"16\" height=\"{height}\""))
                .count()
        };
        assert_eq!((bars(120), bars(30)), (1 + 3, 2));
        for part in [
            "layer 1: h2o, 10 entries",
            "layer 2: full, everything",
            "prefill",
            "decode",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        // Every element is closed, and nothing but elements opens.
        let opened = svg.matches('<').count() - svg.matches("</").count();
        assert_eq!(
            opened,
            svg.matches("/>").count() + svg.matches("</").count()
        );
    }

    #[test]
    fn the_png_shows_the_same_bars() {
        let plan = "{schema: 1, layers: 3, budget: {tokens: 20}, prefill:
            [{layers: 0, policy: tova, tokens: 40}, {layers: 1-2, policy: h2o, tokens: 10}],
            decode: [{layers: 0-2, policy: full}]}";
        let plan = Plan::from_yaml("test", plan).unwrap();
        let file = png(&plan).unwrap();
        let mut reader = ::png::Decoder::new(std::io::Cursor::new(file))
            .read_info()
            .unwrap();
        let (width, height) = (reader.info().width as usize, reader.info().height as usize);
        let picture = Picture::of(&plan);
        let scale = width / picture.width;
        assert_eq!(
            (width, height),
            (scale * picture.width, scale * picture.height)
        );
        let mut pixels = vec![0; width * height * 3];
        reader.next_frame(&mut pixels).unwrap();
        let at = |x: usize, y: usize| {
            let start = (y * scale * width + x * scale) * 3;
            let own = &pixels[start..start + 3];
            u32::from_be_bytes([0, own[0], own[1], own[2]])
        };
        for bar in &picture.bars {
            assert_eq!(
                at(bar.x + bar.width / 2, bar.y + bar.height / 2),
                bar.colour
            );
        }
        assert_eq!(at(1, 1), 0xffffff);
        // The title is there: something dark near its place.
        assert!((10..60).any(|x| at(x, 15) != 0xffffff));
    }
}
