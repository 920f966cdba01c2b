use polykv_core::Phase;
use std::fmt;

/// The progress of a calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The part of the calibration that runs.
    pub stage: Stage,
    /// Steps done, in units of [`Stage::unit`].
    pub done: usize,
    /// Steps in all. A search may end earlier.
    pub of: usize,
}

/// The parts of a calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The repetition of every example, for budgets of KV heads.
    Repeating,
    /// The measurement of every candidate in every layer alone.
    Measuring,
    /// The prompts that the evaluations of a search share.
    Preparing,
    /// The search over the routes of a phase.
    Refining(Phase),
    /// The search over more and fewer entries in each layer, for the budgets of a phase.
    Screening(Phase),
    /// The evaluation of the budgets that the screening recommends.
    Budgets(Phase),
}

impl Stage {
    /// The name of a step, in the singular.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Measuring => "layer",
            Self::Preparing | Self::Repeating => "prompt",
            Self::Refining(_) | Self::Screening(_) | Self::Budgets(_) => "plan",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeating => f.write_str("repeating"),
            Self::Measuring => f.write_str("measuring"),
            Self::Preparing => f.write_str("preparing"),
            Self::Refining(phase) => write!(f, "refining {phase}"),
            Self::Screening(phase) => write!(f, "screening {phase}"),
            Self::Budgets(phase) => write!(f, "budgets of {phase}"),
        }
    }
}
