//! What `eval` prints and writes.

mod differences;
mod metrics;

pub use differences::{Compared, Differences, cell as difference};
pub use metrics::Metrics;

use super::table as new_table;
use crate::eval::record::Record;
use differences::Number;
use polykv::models::eval::metrics::lower_is_better;
use polykv::models::eval::{PlanSummary, Summary};

/// The protocol, one row per plan, how the plans differ, and of several tasks one row per task.
pub fn table(record: &Record, summary: &Summary) -> String {
    let mut parts = vec![record.protocol.clone(), plans(summary).to_string()];
    if let Some(table) = differences(summary) {
        parts.push(format!("{DIFFERENCES}:"));
        parts.push(table.to_string());
    }
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

/// What the tables of differences show.
pub const DIFFERENCES: &str = "Differences with 95 % intervals of a paired bootstrap over the samples (none where a task \
     has a single one), shares in percentage points; the best single policy is the best at the plan's budget";

/// Of what is compared but the sets of tasks, which would be too wide. Nothing without plans beside FullKV.
fn differences(summary: &Summary) -> Option<comfy_table::Table> {
    let compared = compared(summary).into_iter();
    let compared = compared.filter(|column| !matches!(column.number, Number::Set(_)));
    let columns: Vec<Differences> = compared
        .flat_map(|column| column.differences(summary))
        .collect();
    let mut header = vec!["plan"];
    header.extend(columns.iter().map(|column| column.title.as_str()));
    let mut table = new_table(&header);
    for (index, plan) in summary.plans.iter().skip(1).enumerate() {
        let mut row = vec![plan.name.clone()];
        row.extend(columns.iter().map(|column| {
            let cell = column.cells[index].as_ref();
            cell.map_or(String::new(), |cell| cell.text.clone())
        }));
        table.add_row(row);
    }
    (!columns.is_empty()).then_some(table)
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
            let found = plan.tasks.iter().find(|found| found.name == task.name);
            found.map_or(String::new(), |found| shown(&found.metric, found.score))
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
    /// What its differences are of, if it has any.
    compared: Option<Compared>,
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
            compared: None,
        }
    }

    /// With differences under a name of the summary's.
    fn compared(mut self, name: &'static str, title: &str, metric: &str) -> Self {
        self.compared = Some(Compared::new(name, title, metric));
        self
    }

    fn mean(title: &str, metric: String) -> Self {
        let lower = lower_is_better(&metric);
        Self {
            title: title.into(),
            compared: Some(Compared::new("mean", title, &metric)),
            cell: Box::new(move |plan| Some(shown(&metric, plan.mean))),
            score: Some((Box::new(|plan| Some(plan.mean)), lower)),
        }
    }

    fn set(index: usize, title: &str, metric: String) -> Self {
        let lower = lower_is_better(&metric);
        let value = move |plan: &PlanSummary| plan.sets.get(index).map(|set| set.score);
        Self {
            title: title.into(),
            compared: Some(Compared {
                number: Number::Set(index),
                title: title.into(),
                metric: metric.clone(),
            }),
            cell: Box::new(move |plan| value(plan).map(|score| shown(&metric, score))),
            score: Some((Box::new(value), lower)),
        }
    }
}

/// What is shown of each plan: fixed for the tasks of one score or two, else a mean for each set of tasks.
pub fn columns(summary: &Summary) -> Vec<Column> {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let nll = || Column::of("nll", "NLL", |x| format!("{x:.4}"), None);
    let delta = || {
        let column = Column::of("delta_nll", "ΔNLL", |x| format!("{x:+.4}"), Some(true));
        column.compared("nll", "NLL", "nll")
    };
    let mut columns = match summary.task.as_str() {
        "ppl" => vec![
            Column::of(
                "perplexity",
                "perplexity",
                |x| format!("{x:.3}"),
                Some(true),
            )
            .compared("mean", "perplexity", "perplexity"),
            nll(),
            delta(),
        ],
        "needle" => vec![
            Column::of("exact", "exact match", percent, Some(false)).compared(
                "mean",
                "exact match",
                "exact",
            ),
            nll(),
            delta(),
        ],
        "fidelity" => vec![
            Column::of("kl", "KL(full ‖ plan)", |x| format!("{x:.5}"), Some(true))
                .compared("mean", "KL", "kl"),
            Column::of("agreement", "same top token", percent, Some(false)).compared(
                "agreement",
                "same top token",
                "agreement",
            ),
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
            compared: None,
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

/// What plans are compared by: those columns of which FullKV has a score.
pub fn compared(summary: &Summary) -> Vec<Compared> {
    let scored = |column: &Column| {
        let score = column.score.as_ref().map(|(score, _)| score);
        let full = summary.plans.first();
        score
            .zip(full)
            .is_some_and(|(score, full)| score(full).is_some())
    };
    let columns = columns(summary).into_iter().filter(scored);
    columns.filter_map(|column| column.compared).collect()
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
