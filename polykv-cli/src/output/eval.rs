//! What `eval` prints and writes.

mod metrics;
mod protocol;

pub use metrics::Metrics;
pub use protocol::{protocol, settings};

use super::table as new_table;
use crate::eval::record::Record;
use polykv::models::eval::metrics::lower_is_better;
use polykv::models::eval::{PlanSummary, Summary};

/// The protocol, one row per plan, and of several tasks one row per task.
pub fn table(record: &Record, summary: &Summary) -> String {
    let mut parts = vec![record.protocol.clone(), plans(summary).to_string()];
    let several = summary
        .plans
        .first()
        .is_some_and(|full| full.tasks.len() > 1);
    if several && summary.plans.len() <= MOST_COLUMNS {
        parts.push(tasks(summary).to_string());
    }
    let full = summary.plans.first();
    let cut = full.map_or(0, |full| full.truncated);
    if cut > 0 {
        let n = full.map_or(0, |full| full.n);
        parts.push(format!("the middle of {cut} of {n} prompts was cut out"));
    }
    if !record.shard.is_whole() {
        parts.push(format!("shard {}: part of the samples", record.shard));
    }
    parts.join("\n")
}

/// Plans beside each other, at most.
const MOST_COLUMNS: usize = 8;

fn plans(summary: &Summary) -> comfy_table::Table {
    let columns = columns(summary);
    let mut header = vec!["plan"];
    header.extend(columns.iter().map(|column| column.title.as_str()));
    header.push("samples");
    let mut table = new_table(&header);
    for plan in &summary.plans {
        let mut row = vec![plan.name.clone()];
        row.extend(
            columns
                .iter()
                .map(|column| (column.cell)(plan).unwrap_or_default()),
        );
        row.push(plan.n.to_string());
        table.add_row(row);
    }
    table
}

fn tasks(summary: &Summary) -> comfy_table::Table {
    let mut header = vec!["task", "metric", "samples"];
    header.extend(summary.plans.iter().map(|plan| plan.name.as_str()));
    let mut table = new_table(&header);
    for task in summary
        .plans
        .first()
        .into_iter()
        .flat_map(|full| &full.tasks)
    {
        let mut row = vec![task.name.clone(), task.metric.clone(), task.n.to_string()];
        row.extend(summary.plans.iter().map(|plan| {
            let own = plan.tasks.iter().find(|own| own.name == task.name);
            own.map_or(String::new(), |own| shown(&own.metric, own.score))
        }));
        table.add_row(row);
    }
    table
}

type Cell = Box<dyn Fn(&PlanSummary) -> Option<String>>;
type Score = Box<dyn Fn(&PlanSummary) -> Option<f64>>;

/// A column of the results, here and in report.html.
pub struct Column {
    pub title: String,
    pub cell: Cell,
    /// What is compared between the plans, and whether less is better.
    pub score: Option<(Score, bool)>,
}

impl Column {
    /// A mean over the samples.
    fn of(
        score: &'static str,
        title: &str,
        format: fn(f64) -> String,
        better: Option<bool>,
    ) -> Self {
        let value = move |plan: &PlanSummary| plan.scores.get(score).copied();
        Self {
            title: title.into(),
            cell: Box::new(move |plan| value(plan).map(format)),
            score: better.map(|lower| (Box::new(value) as Score, lower)),
        }
    }

    fn mean(title: &str, metric: String) -> Self {
        let lower = lower_is_better(&metric);
        Self {
            title: title.into(),
            cell: Box::new(move |plan| Some(shown(&metric, plan.mean))),
            score: Some((Box::new(|plan| Some(plan.mean)), lower)),
        }
    }

    fn set(index: usize, title: &str, metric: String) -> Self {
        let lower = lower_is_better(&metric);
        let value = move |plan: &PlanSummary| plan.sets.get(index).map(|set| set.score);
        Self {
            title: title.into(),
            cell: Box::new(move |plan| value(plan).map(|score| shown(&metric, score))),
            score: Some((Box::new(value), lower)),
        }
    }
}

/// What is shown of each plan: fixed for the tasks of one score or two, else a mean for each set of tasks.
pub fn columns(summary: &Summary) -> Vec<Column> {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let nll = || Column::of("nll", "NLL", |x| format!("{x:.4}"), None);
    let delta = || Column::of("delta_nll", "ΔNLL", |x| format!("{x:+.4}"), Some(true));
    let mut columns = match summary.task.as_str() {
        "ppl" => vec![
            Column::of(
                "perplexity",
                "perplexity",
                |x| format!("{x:.3}"),
                Some(true),
            ),
            nll(),
            delta(),
        ],
        "needle" => vec![
            Column::of("exact", "exact match", percent, Some(false)),
            nll(),
            delta(),
        ],
        "fidelity" => vec![
            Column::of("kl", "KL(full ‖ plan)", |x| format!("{x:.5}"), Some(true)),
            Column::of("agreement", "same top token", percent, Some(false)),
        ],
        _ => means(summary),
    };
    if summary.plans.iter().any(|plan| plan.gap_closed.is_some()) {
        columns.push(Column {
            title: "gap closed".into(),
            cell: Box::new(move |plan| match plan.best_single {
                true => Some("best single".into()),
                false => plan.gap_closed.map(percent),
            }),
            score: None,
        });
    }
    columns.push(Column::of(
        "kept",
        "entries per layer",
        |x| format!("{x:.1}"),
        None,
    ));
    columns
}

fn means(summary: &Summary) -> Vec<Column> {
    let Some(full) = summary.plans.first() else {
        return Vec::new();
    };
    let metric = || {
        full.tasks
            .first()
            .map_or(String::new(), |task| task.metric.clone())
    };
    let title = match full.tasks.as_slice() {
        [only] => only.metric.clone(),
        _ => format!("mean of {} tasks", full.tasks.len()),
    };
    let mut columns = vec![Column::mean(&title, metric())];
    columns.extend(full.sets.iter().enumerate().map(|(index, set)| {
        let title = match set.tasks == set.of {
            true => set.name.clone(),
            false => format!("{} ({} of {})", set.name, set.tasks, set.of),
        };
        Column::set(index, &title, metric())
    }));
    columns
}

/// A score as people read it: likelihoods and distances as they are, shares as percentages.
pub fn shown(metric: &str, score: f64) -> String {
    match (lower_is_better(metric), metric) {
        (true, "perplexity") => format!("{score:.3}"),
        (true, _) => format!("{score:.4}"),
        (false, _) => format!("{:.2}", 100.0 * score),
    }
}
