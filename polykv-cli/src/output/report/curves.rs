//! Quality against what is kept: a line per policy, where a run has more than one budget.

use super::{COLOURS, escaped};
use crate::eval::record::{PlanRecord, Record};
use crate::output::describe_params;
use crate::output::eval::shown;
use polykv::Phase;
use polykv::models::eval::metrics::lower_is_better;
use polykv::models::eval::{PlanSummary, Summary};
use polykv::plan::FileRule;
use std::fmt::Write;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 36.0;
/// Charts of sets of tasks, at most.
const MOST_SETS: usize = 8;

struct Series {
    name: String,
    /// Indices of the plans.
    plans: Vec<usize>,
    /// Whether their budgets differ: shuffles of one plan are points, not a line.
    several: bool,
}

type Score<'a> = &'a dyn Fn(&PlanSummary) -> Option<f64>;

/// Nothing if no policy has two budgets.
pub fn section(record: &Record, summary: &Summary) -> String {
    let series = series(record);
    let Some(full) = summary.plans.first() else {
        return String::new();
    };
    if series.iter().all(|line| !line.several) {
        return String::new();
    }
    let metric = full.tasks.first().map_or("", |task| task.metric.as_str());
    let mut charts = String::new();
    let mut add = |title: &str, metric: &str, score: Score| {
        charts.push_str(&chart(title, metric, summary, &series, score));
    };
    let title = match full.tasks.as_slice() {
        [_] => metric.to_string(),
        tasks => format!("mean of {} tasks", tasks.len()),
    };
    add(&title, metric, &|plan| Some(plan.mean));
    if metric != "perplexity" && full.scores.contains_key("nll") {
        add("NLL of the answer", "nll", &|plan| {
            plan.scores.get("nll").copied()
        });
    }
    for (index, set) in full.sets.iter().enumerate().take(MOST_SETS) {
        add(&set.name, metric, &|plan| {
            plan.sets.get(index).map(|set| set.score)
        });
    }
    let mut out = format!(
        "<h2>Quality against budget</h2>\n<p class=\"soft\">Across: entries kept per layer after the prompt, mean over the \
         samples.</p>\n<div class=\"grid\">{charts}</div>\n<ul class=\"legend\"><li class=\"full\">FullKV</li>"
    );
    for (index, line) in series.iter().enumerate() {
        let _ = write!(
            out,
            "<li style=\"--series:var(--p{})\">{}</li>",
            index % COLOURS,
            escaped(&line.name)
        );
    }
    out.push_str("</ul>\n");
    out
}

/// Plans that differ in nothing but their budget.
fn series(record: &Record) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for (index, plan) in record.identity.plans.iter().enumerate() {
        if plan.info.budget.is_none() {
            continue;
        }
        let name = match plan.info.single {
            true => policy(plan),
            false => stem(&plan.info.name).to_string(),
        };
        match all.iter_mut().find(|known| known.name == name) {
            Some(known) => {
                let first = &record.identity.plans[known.plans[0]];
                known.several |= first.info.budget != plan.info.budget;
                known.plans.push(index);
            }
            None => all.push(Series {
                name,
                plans: vec![index],
                several: false,
            }),
        }
    }
    all
}

/// The only policy of a plan, its parameters, and the phase if it is one.
fn policy(plan: &PlanRecord) -> String {
    let evicting = |phase| {
        let mut rules = plan.plan.rules(phase).iter();
        rules.find(|rule| !rule.keeps())
    };
    let label = |rule: &FileRule| {
        let params = describe_params(&rule.params);
        format!("{} {params}", rule.policy).trim_end().to_string()
    };
    match (evicting(Phase::Prefill), evicting(Phase::Decode)) {
        (Some(rule), Some(_)) => label(rule),
        (Some(rule), None) => format!("{} (prefill)", label(rule)),
        (None, Some(rule)) => format!("{} (decode)", label(rule)),
        (None, None) => plan.info.name.clone(),
    }
}

/// A plan's name without the number at its end.
fn stem(name: &str) -> &str {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let stem = stem.trim_end_matches(['-', '_', ' ', '@']);
    if stem.is_empty() { name } else { stem }
}

fn chart(title: &str, metric: &str, summary: &Summary, series: &[Series], score: Score) -> String {
    let point = |index: usize| {
        let plan = summary.plans.get(index)?;
        let (x, y) = (plan.scores.get("kept").copied()?, score(plan)?);
        (x > 0.0 && y.is_finite()).then_some((x, y, plan.name.as_str()))
    };
    let mut lines: Vec<Vec<(f64, f64, &str)>> = series
        .iter()
        .map(|line| line.plans.iter().filter_map(|&plan| point(plan)).collect())
        .collect();
    for line in &mut lines {
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let Some(full) = summary.plans.first().and_then(score) else {
        return String::new();
    };
    let points: Vec<_> = lines.iter().flatten().collect();
    let xs = Span::of(points.iter().map(|point| point.0.log2()), 0.08);
    let mut ys = Span::of(points.iter().map(|point| point.1).chain([full]), 0.06);
    if !lower_is_better(metric) {
        // Shares end at zero.
        ys.from = ys.from.max(0.0);
    }
    let x = |kept: f64| LEFT + xs.share(kept.log2()) * (WIDTH - LEFT - RIGHT);
    let y = |score: f64| HEIGHT - BOTTOM - ys.share(score) * (HEIGHT - TOP - BOTTOM);

    let direction = if lower_is_better(metric) {
        ", lower is better"
    } else {
        ""
    };
    let mut out = format!(
        "<div class=\"chart\"><h3>{}{direction}</h3><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escaped(title),
        escaped(title)
    );
    for tick in ys.ticks() {
        let at = y(tick);
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            tick_text(metric, tick)
        );
    }
    for kept in x_ticks(points.iter().map(|point| point.0), &x) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{kept:.0}</text>",
            x(kept),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let at = y(full);
    let _ = write!(
        out,
        "<line class=\"full\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"><title>FullKV: {}</title></line>",
        WIDTH - RIGHT,
        shown(metric, full)
    );
    for (index, line) in lines.iter().enumerate() {
        let _ = write!(out, "<g style=\"--series:var(--p{})\">", index % COLOURS);
        if series[index].several {
            let path: Vec<String> = line
                .iter()
                .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
                .collect();
            let _ = write!(out, "<polyline points=\"{}\"/>", path.join(" "));
        }
        for (kept, score, name) in line {
            let _ = write!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}: {} at {kept:.1} entries</title></circle>",
                x(*kept),
                y(*score),
                escaped(name),
                shown(metric, *score)
            );
        }
        out.push_str("</g>");
    }
    out.push_str("</svg></div>\n");
    out
}

fn tick_text(metric: &str, tick: f64) -> String {
    match lower_is_better(metric) {
        true => format!("{}", (tick * 1e6).round() / 1e6),
        false => format!("{}", (tick * 1e4).round() / 1e2),
    }
}

/// Amounts that are kept, as far as their numbers do not run into each other.
fn x_ticks(kept: impl Iterator<Item = f64>, x: &dyn Fn(f64) -> f64) -> Vec<f64> {
    let mut all: Vec<f64> = kept.collect();
    all.sort_by(f64::total_cmp);
    let mut ticks: Vec<f64> = Vec::new();
    for tick in all {
        if ticks.last().is_none_or(|last| x(tick) - x(*last) > 36.0) {
            ticks.push(tick);
        }
    }
    ticks
}

/// The part of an axis that is shown.
struct Span {
    from: f64,
    to: f64,
}

impl Span {
    /// All values with a margin at either side.
    fn of(values: impl Iterator<Item = f64>, margin: f64) -> Self {
        let (from, to) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), value| {
            (from.min(value), to.max(value))
        });
        let spread = if to > from {
            to - from
        } else {
            from.abs().max(1.0)
        };
        Self {
            from: from - margin * spread,
            to: to + margin * spread,
        }
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    /// Three to seven round numbers.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers_within_them() {
        let span = Span::of([0.2, 0.9].into_iter(), 0.0);
        let ticks = span.ticks();
        let wanted = [0.2, 0.4, 0.6, 0.8];
        assert_eq!(ticks.len(), wanted.len(), "{ticks:?}");
        assert!(ticks.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9));
        assert_eq!(span.share(0.9), 1.0);
        // One value only.
        let point = Span::of([3.0].into_iter(), 0.1);
        assert!((0.0..=1.0).contains(&point.share(3.0)) && point.ticks().len() > 1);
    }

    #[test]
    fn names_lose_their_numbers() {
        for (name, wanted) in [
            ("both-128", "both"),
            ("poly 0.25", "poly"),
            ("a", "a"),
            ("42", "42"),
        ] {
            assert_eq!(stem(name), wanted);
        }
    }
}
