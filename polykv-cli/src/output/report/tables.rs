//! Results and memory as tables.

use super::{bytes, escaped};
use crate::output::eval::{self, Column, Differences, columns, compared, shown};
use polykv::models::eval::metrics::lower_is_better;
use polykv::models::eval::{PlanSummary, Summary, TaskSummary};
use std::fmt::Write;

/// Plans × scores, and of several tasks tasks × plans. The best plan of each column beside FullKV is bold.
pub fn results(summary: &Summary) -> String {
    let columns = columns(summary);
    let mut out =
        String::from("<h2>Results</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>plan</th>");
    for column in &columns {
        let _ = write!(out, "<th>{}</th>", escaped(&column.title));
    }
    out.push_str("<th>samples</th></tr></thead>\n<tbody>\n");
    let best: Vec<Option<f64>> = columns.iter().map(|column| best(column, summary)).collect();
    for (index, plan) in summary.plans.iter().enumerate() {
        let class = if index == 0 { " class=\"full\"" } else { "" };
        let _ = write!(out, "<tr{class}><th>{}</th>", escaped(&plan.name));
        for (column, best) in columns.iter().zip(&best) {
            let score = column.score.as_ref().and_then(|(score, _)| score(plan));
            let bold = index > 0 && score.is_some() && score == *best;
            let text = (column.cell)(plan).unwrap_or_default();
            let text = match text == "best single" {
                true => "<span class=\"badge\">best single</span>".into(),
                false => escaped(&text),
            };
            let class = if bold { " class=\"best\"" } else { "" };
            let _ = write!(out, "<td{class}>{text}</td>");
        }
        let _ = writeln!(out, "<td>{}</td></tr>", plan.n);
    }
    out.push_str("</tbody></table></div>\n");
    if summary.plans.iter().any(|plan| plan.gap_closed.is_some()) {
        out.push_str(
            "<p class=\"soft\">Gap closed: how far a plan is from the best single policy at its budget (0 %) to FullKV (100 %). \
             Bold: the best plan.</p>\n",
        );
    }
    out.push_str(&differences(summary));
    let several = summary
        .plans
        .first()
        .is_some_and(|full| full.tasks.len() > 1);
    if several {
        out.push_str(&tasks(summary));
    }
    out
}

/// Plans × what is compared, to FullKV and to the best single policy; nothing without plans beside FullKV.
fn differences(summary: &Summary) -> String {
    let compared = compared(summary).into_iter();
    let columns: Vec<Differences> = compared
        .flat_map(|column| column.differences(summary))
        .collect();
    if columns.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "<h2>Differences</h2>\n<p class=\"soft\">{}. Bold: zero is outside the interval.</p>\n\
         <div class=\"scroll\"><table>\n<thead><tr><th>plan</th>",
        eval::DIFFERENCES
    );
    for column in &columns {
        let _ = write!(out, "<th>{}</th>", escaped(&column.title));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (index, plan) in summary.plans.iter().skip(1).enumerate() {
        let _ = write!(out, "<tr><th>{}</th>", escaped(&plan.name));
        for column in &columns {
            let (class, text) = match &column.cells[index] {
                Some(cell) if cell.apart => (" class=\"best\"", cell.text.as_str()),
                Some(cell) => ("", cell.text.as_str()),
                None => ("", ""),
            };
            let _ = write!(out, "<td{class}>{text}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// The best value of a column among the plans beside FullKV.
fn best(column: &Column, summary: &Summary) -> Option<f64> {
    let (score, lower) = column.score.as_ref()?;
    best_of(summary.plans.iter().skip(1).filter_map(score), *lower)
}

/// None where all are the same, of which none is the best.
fn best_of(scores: impl Iterator<Item = f64> + Clone, lower: bool) -> Option<f64> {
    let least = scores.clone().reduce(f64::min)?;
    let most = scores.reduce(f64::max)?;
    (least < most).then_some(if lower { least } else { most })
}

fn tasks(summary: &Summary) -> String {
    let mut out = String::from(
        "<h2>Tasks</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>task</th><th>metric</th><th>samples</th>",
    );
    for plan in &summary.plans {
        let _ = write!(out, "<th>{}</th>", escaped(&plan.name));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for task in summary
        .plans
        .first()
        .into_iter()
        .flat_map(|full| &full.tasks)
    {
        let score = |plan: &PlanSummary| of_task(plan, task).map(|found| found.score);
        let lower = lower_is_better(&task.metric);
        let best = best_of(summary.plans.iter().skip(1).filter_map(score), lower);
        let _ = write!(
            out,
            "<tr><th>{}</th><td>{}</td><td>{}</td>",
            escaped(&task.name),
            escaped(&task.metric),
            task.n
        );
        for (index, plan) in summary.plans.iter().enumerate() {
            let result = of_task(plan, task);
            let score = result.map(|result| result.score);
            let bold = index > 0 && score.is_some() && score == best;
            let class = if bold { " class=\"best\"" } else { "" };
            let text = score.map_or(String::new(), |score| shown(&task.metric, score));
            let differences = result.map_or(&[][..], |result| &result.differences).iter();
            let differences: Vec<String> = differences
                .map(|difference| {
                    format!(
                        "{} to {}",
                        eval::difference(&task.metric, difference).text,
                        difference.to
                    )
                })
                .collect();
            let title = match differences.is_empty() {
                true => String::new(),
                false => format!(" title=\"{}\"", escaped(&differences.join("; "))),
            };
            let _ = write!(out, "<td{class}{title}>{text}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn of_task<'a>(plan: &'a PlanSummary, task: &TaskSummary) -> Option<&'a TaskSummary> {
    plan.tasks.iter().find(|found| found.name == task.name)
}

/// What the caches held after the prompts, measured from their tensors; means over the samples.
pub fn memory(summary: &Summary) -> String {
    let value = |plan: &PlanSummary, name: &str| plan.scores.get(name).copied();
    let full = |name: &str| summary.plans.first().and_then(|full| value(full, name));
    let mut out = String::from(
        "<h2>Memory and speed</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>plan</th><th>entries per layer</th>\
         <th>of FullKV</th><th>keys and values</th><th>of FullKV</th></tr></thead>\n<tbody>\n",
    );
    for (index, plan) in summary.plans.iter().enumerate() {
        let class = if index == 0 { " class=\"full\"" } else { "" };
        let _ = write!(out, "<tr{class}><th>{}</th>", escaped(&plan.name));
        let texts: [fn(f64) -> String; 2] = [|x| format!("{x:.1}"), |x| bytes(x as usize)];
        for (name, text) in ["kept", "kv_bytes"].into_iter().zip(texts) {
            let share = value(plan, name)
                .zip(full(name))
                .map(|(value, full)| 100.0 * value / full);
            let _ = write!(
                out,
                "<td>{}</td><td>{}</td>",
                value(plan, name).map_or(String::new(), text),
                share.map_or(String::new(), |share| format!("{share:.1} %"))
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str(
        "</tbody></table></div>\n<p class=\"soft\">After the prompt, mean over the samples.</p>\n",
    );
    out
}
