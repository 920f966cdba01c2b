//! Where in a text of which length a needle is found: one map per plan.

use super::escaped;
use crate::output::eval::shown;
use polykv::models::eval::metrics::lower_is_better;
use polykv::models::eval::{Summary, TaskSummary};
use std::fmt::Write;

/// Maps of every task whose samples have a depth, nothing if there is none.
pub fn section(summary: &Summary) -> String {
    let mut out = String::new();
    for task in summary
        .plans
        .first()
        .into_iter()
        .flat_map(|full| &full.tasks)
    {
        if task.groups.iter().any(|group| group.depth.is_some()) {
            out.push_str(&maps(summary, &task.name, &task.metric));
        }
    }
    out
}

fn maps(summary: &Summary, task: &str, metric: &str) -> String {
    let mut out = format!(
        "<h2>{}: {} by length and depth</h2>\n<p class=\"soft\">Across: tokens of the prompt. Down: where the needle is, from \
         the start (0) to the end (1).</p>\n<div class=\"grid\">\n",
        escaped(task),
        escaped(metric)
    );
    for plan in &summary.plans {
        if let Some(of_task) = plan.tasks.iter().find(|found| found.name == task) {
            let _ = writeln!(
                out,
                "<div class=\"heat\"><h3>{}</h3>{}</div>",
                escaped(&plan.name),
                map(of_task)
            );
        }
    }
    out.push_str("</div>\n");
    out
}

fn map(task: &TaskSummary) -> String {
    let mut lengths: Vec<usize> = task.groups.iter().map(|group| group.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let mut depths: Vec<f64> = task.groups.iter().filter_map(|group| group.depth).collect();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    let mut out = String::from("<table><thead><tr><th></th>");
    for length in &lengths {
        let _ = write!(out, "<th>{length}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for depth in depths {
        let _ = write!(out, "<tr><th>{depth}</th>");
        for &length in &lengths {
            let group = task
                .groups
                .iter()
                .find(|group| group.length == length && group.depth == Some(depth));
            let Some((group, score)) =
                group.and_then(|group| Some((group, *group.scores.get(&task.metric)?)))
            else {
                out.push_str("<td style=\"--v:0\">–</td>");
                continue;
            };
            // Shares are coloured as they are, distances the deeper the smaller.
            let value = match lower_is_better(&task.metric) {
                true => 100.0 / (1.0 + score.max(0.0)),
                false => 100.0 * score.clamp(0.0, 1.0),
            };
            let deep = if value > 55.0 { " class=\"deep\"" } else { "" };
            let _ = write!(
                out,
                "<td{deep} style=\"--v:{value:.0}\" title=\"{} samples\">{}</td>",
                group.n,
                text(&task.metric, score)
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table>");
    out
}

/// Shares without decimals: a cell has few samples.
fn text(metric: &str, score: f64) -> String {
    match lower_is_better(metric) {
        true => shown(metric, score),
        false => format!("{:.0}", 100.0 * score),
    }
}
