//! How plans differ from FullKV and from the best single policy, as texts.

use super::shown;
use polykv::models::eval::{Difference, PlanSummary, Summary};

/// What is compared between plans.
#[derive(Clone, Debug)]
pub struct Compared {
    pub number: Number,
    pub title: String,
    pub metric: String,
}

/// A number of a plan.
#[derive(Clone, Debug)]
pub enum Number {
    /// Under its name in [`PlanSummary::differences`].
    Named(&'static str),
    /// By its index.
    Set(usize),
}

/// One number of all plans beside FullKV, less that of another plan.
#[derive(Debug)]
pub struct Differences {
    pub title: String,
    /// None where there is no other plan.
    pub cells: Vec<Option<Cell>>,
}

#[derive(Debug)]
pub struct Cell {
    pub text: String,
    /// Whether zero is outside the interval.
    pub apart: bool,
}

impl Compared {
    pub fn new(name: &'static str, title: &str, metric: &str) -> Self {
        Self {
            number: Number::Named(name),
            title: title.into(),
            metric: metric.into(),
        }
    }

    fn of<'a>(&self, plan: &'a PlanSummary) -> &'a [Difference] {
        let found = match self.number {
            Number::Named(name) => plan.differences.get(name),
            Number::Set(index) => plan.sets.get(index).map(|set| &set.differences),
        };
        found.map_or(&[], Vec::as_slice)
    }

    /// To FullKV, and to the best single policy where there is one.
    pub fn differences(&self, summary: &Summary) -> Vec<Differences> {
        let full = summary.plans.first().map_or("", |full| &full.name);
        let others = [("FullKV", true), ("best single", false)];
        let differences = others.into_iter().map(|(name, to_full)| Differences {
            title: format!("{} − {name}", self.title),
            cells: summary
                .plans
                .iter()
                .skip(1)
                .map(|plan| {
                    let difference = self
                        .of(plan)
                        .iter()
                        .find(|difference| (difference.to == full) == to_full)?;
                    Some(cell(&self.metric, difference))
                })
                .collect(),
        });
        differences
            .filter(|column| column.cells.iter().any(Option::is_some))
            .collect()
    }
}

/// The difference with its interval, in the units of [`shown`].
pub fn cell(metric: &str, difference: &Difference) -> Cell {
    let signed = |value: f64| {
        let sign = if value < 0.0 { "−" } else { "+" };
        format!("{sign}{}", shown(metric, value.abs()))
    };
    let text = signed(difference.difference);
    match difference.interval {
        Some([low, high]) => Cell {
            text: format!("{text} [{}, {}]", signed(low), signed(high)),
            apart: low > 0.0 || high < 0.0,
        },
        None => Cell { text, apart: false },
    }
}
