//! A plan as a picture: one bar per layer and phase that evicts, its colour the policy, its height the budget.

use super::describe_budget;
use polykv::plan::FileRule;
use polykv::{Error, Phase, PlanFile, Result};
use resvg::usvg::fontdb::{Family, Query};
use resvg::{tiny_skia, usvg};
use std::fmt::Write;

const BAR: usize = 16;
const GAP: usize = 4;
const HEIGHT: usize = 120;
const LEFT: usize = 90;
const TOP: usize = 40;
/// From the top of one phase to that of the next.
const PANEL: usize = HEIGHT + 50;
/// Pixels per letter, generously.
const LETTER: usize = 7;

/// Pixels of a PNG per unit of the SVG.
const SCALE: f32 = 2.0;

/// The whole SVG file.
pub fn svg(plan: &PlanFile) -> String {
    let both = Phase::BOTH.into_iter();
    let (phases, full): (Vec<Phase>, Vec<Phase>) = both.partition(|phase| plan.evicts(*phase));
    let mut labels: Vec<String> = Vec::new();
    for rule in phases.iter().flat_map(|&phase| plan.rules(phase)) {
        let label = label(rule);
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    let mut title = format!(
        "{}: {}",
        plan.name.as_deref().unwrap_or("plan"),
        describe_budget(plan)
    );
    for phase in full {
        let _ = write!(title, "; {phase} keeps everything");
    }
    let longest = labels
        .iter()
        .map(|label| label.chars().count() + 3)
        .max()
        .unwrap_or(0);
    let width = (LEFT + plan.layers * (BAR + GAP) + 20)
        .max(LEFT + LETTER * longest.max(title.chars().count()));
    let legend = TOP + phases.len() * PANEL;
    let height = legend + 20 * labels.len() + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, 10, 20, "start", &title);
    for (row, phase) in phases.into_iter().enumerate() {
        let base = TOP + row * PANEL + HEIGHT;
        let layers = plan.by_layer(phase);
        let amounts: Vec<f64> = layers.iter().filter_map(amount).collect();
        let most = amounts.iter().copied().fold(0.0, f64::max);
        text(
            &mut svg,
            LEFT - 10,
            base - HEIGHT + 10,
            "end",
            &highest(&layers, &amounts, most),
        );
        text(
            &mut svg,
            LEFT - 10,
            base - HEIGHT / 2,
            "end",
            &phase.to_string(),
        );
        for (layer, rule) in layers.iter().enumerate() {
            // What keeps everything is as high as the picture.
            let share = amount(rule).map_or(1.0, |amount| amount / most);
            let bar = (share * HEIGHT as f64).round().max(1.0) as usize;
            let x = LEFT + layer * (BAR + GAP);
            let name = label(rule);
            let index = labels.iter().position(|known| *known == name).unwrap_or(0);
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{}\" width=\"{BAR}\" height=\"{bar}\" fill=\"{}\"><title>{}</title></rect>",
                base - bar,
                colour(index),
                safe(&format!(
                    "{phase}, layer {layer}: {name}, {}",
                    entries(rule)
                ))
            );
            if layer % 5 == 0 || plan.layers <= 10 {
                text(
                    &mut svg,
                    x + BAR / 2,
                    base + 16,
                    "middle",
                    &layer.to_string(),
                );
            }
        }
    }
    for (index, label) in labels.iter().enumerate() {
        let y = legend + 20 * index;
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            colour(index)
        );
        text(&mut svg, LEFT + 18, y + 11, "start", label);
    }
    svg.push_str("</svg>\n");
    svg
}

/// An SVG file as a PNG file.
///
/// # Errors
/// A machine without fonts, on which the labels would be missing, and a picture beyond the memory.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let failed = |why: &dyn std::fmt::Display| Error::Failed(format!("PNG picture: {why}"));
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_system_fonts();
    let wanted = Query {
        families: &[Family::SansSerif],
        ..Query::default()
    };
    if fonts.query(&wanted).is_none() {
        let any = fonts
            .faces()
            .find_map(|face| Some(face.families.first()?.0.clone()));
        let none = "this machine has no fonts for the labels; an .svg file needs none";
        fonts.set_sans_serif_family(any.ok_or_else(|| failed(&none))?);
    }
    let tree = usvg::Tree::from_str(svg, &options).map_err(|e| failed(&e))?;
    let size = tree.size().to_int_size();
    let pixels = |units: u32| (units as f32 * SCALE) as u32;
    let mut picture = tiny_skia::Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| failed(&"too large"))?;
    let scale = tiny_skia::Transform::from_scale(SCALE, SCALE);
    resvg::render(&tree, scale, &mut picture.as_mut());
    picture.encode_png().map_err(|e| failed(&e))
}

fn label(rule: &FileRule) -> String {
    let params = super::describe_params(&rule.params);
    match params.is_empty() {
        true => rule.policy.clone(),
        false => format!("{} {params}", rule.policy),
    }
}

/// Entries or share, whichever the plan states; none for what keeps everything.
fn amount(rule: &FileRule) -> Option<f64> {
    match (rule.tokens, rule.keeps()) {
        (Some(tokens), _) => Some(tokens as f64),
        (None, true) => None,
        (None, false) => Some(rule.share.unwrap_or(1.0)),
    }
}

/// What the highest bar stands for.
fn highest(rules: &[FileRule], amounts: &[f64], most: f64) -> String {
    match rules.iter().all(|rule| rule.tokens.is_some()) {
        true => format!("{most}"),
        false => format!(
            "{:.1} × mean",
            most * amounts.len() as f64 / amounts.iter().sum::<f64>()
        ),
    }
}

fn entries(rule: &FileRule) -> String {
    match (rule.tokens, amount(rule)) {
        (Some(tokens), _) => format!("{tokens} entries"),
        (None, Some(share)) => format!("share {share}"),
        (None, None) => "everything".into(),
    }
}

/// Colours that stay apart for a dozen policies.
fn colour(index: usize) -> &'static str {
    const COLOURS: [&str; 12] = [
        "#3366aa", "#dd7733", "#449966", "#bb3355", "#8866bb", "#997744", "#55aacc", "#ddaa33",
        "#777777", "#cc66aa", "#88aa33", "#224455",
    ];
    COLOURS[index % COLOURS.len()]
}

fn text(svg: &mut String, x: usize, y: usize, anchor: &str, content: &str) {
    let content = safe(content);
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{content}</text>"
    );
}

/// Names and parameters come from a file that anybody may have written.
fn safe(text: &str) -> String {
    super::escaped(&super::one_line(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_by_hand() {
        let plan = "{schema: 1, name: 'a < b & c', layers: 3, budget: {tokens: 20}, prefill:
            [{layers: 0, policy: tova, tokens: 40}, {layers: 1-2, policy: h2o, tokens: 10}],
            decode: [{layers: 0, policy: full}, {layers: 1-2, policy: blend, share: 2, params: {policies: 'tova:1,h2o:3'}}]}";
        let svg = svg(&PlanFile::from_yaml(plan).unwrap());
        assert!(svg.contains("a &lt; b &amp; c"), "{svg}");
        let bars = |height: usize| {
            svg.matches(&format!("width=\"16\" height=\"{height}\""))
                .count()
        };
        assert_eq!((bars(120), bars(30)), (1 + 3, 2));
        for part in [
            "layer 1: h2o, 10 entries",
            "layer 0: full, everything",
            "layer 2: blend policies=tova:1,h2o:3, share 2",
            ">40</text>",
            ">1.0 × mean</text>",
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
    fn a_phase_that_keeps_everything_has_no_bars() {
        let plan =
            "{schema: 1, layers: 2, budget: {tokens: 20}, prefill: [{layers: 0-1, policy: tova}],
            decode: [{layers: 0-1, policy: full}]}";
        let svg = svg(&PlanFile::from_yaml(plan).unwrap());
        assert_eq!(svg.matches("<title>").count(), 2);
        assert!(svg.contains("decode keeps everything"), "{svg}");
    }

    #[test]
    fn pixels_are_the_bars_and_the_letters() {
        let plan = "{schema: 1, layers: 1, budget: {tokens: 20}, prefill: [{layers: 0, policy: tova, tokens: 20}],
            decode: [{layers: 0, policy: h2o}]}";
        let plan = PlanFile::from_yaml(plan).unwrap();
        let bytes = match png(&svg(&plan)) {
            Ok(bytes) => bytes,
            Err(error) => return assert!(error.to_string().contains("no fonts"), "{error}"),
        };
        let picture = tiny_skia::Pixmap::decode_png(&bytes).unwrap();
        let at = |x: usize, y: usize| {
            let pixel = picture.pixel(2 * x as u32, 2 * y as u32).unwrap();
            (pixel.red(), pixel.green(), pixel.blue())
        };
        let (x, middle) = (LEFT + BAR / 2, TOP + HEIGHT / 2);
        assert_eq!(at(x, middle), (0x33, 0x66, 0xaa));
        assert_eq!(at(x, middle + PANEL), (0xdd, 0x77, 0x33));
        assert_eq!(at(LEFT + BAR + GAP / 2, middle), (255, 255, 255));
        // The phase's name left of its bars.
        let dark = |x: usize| (middle - 12..middle).any(|y| at(x, y).0 < 100);
        assert!((LEFT - 50..LEFT - 10).any(dark));
    }
}
