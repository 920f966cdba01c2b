//! Plans from measurements of one model (PolyKV, arXiv 2606.15157, with additions of this project that are named as such).
//!
//! Whoever runs the model supplies one [`Measured`] per example; everything else here is arithmetic on these numbers, except
//! [`signals`], which computes them from tensors. [`Measurements::report`] chooses a route, which is a [`Candidate`] for each
//! layer, and budgets. [`RouteSearch`] and [`BudgetSearch`] improve both by evaluating whole plans. A [`Report`] holds
//! the result with every number that led to it.

mod budgets;
mod candidate;
mod draft;
mod heads;
mod measurements;
mod profile;
mod report;
mod route;
mod score;
mod screen;
mod search;
pub mod signals;

pub use budgets::{BudgetSearch, FoundBudgets, Trials, TriedBudgets};
pub use candidate::{Candidate, CandidatePolicy};
pub use draft::PlanDraft;
pub use heads::{contest, parts};
pub use measurements::Measurements;
pub use profile::{Data, Measured, PhaseMeasured, PhaseProfile, Profile};
pub use report::{BudgetSignal, PhaseReport, Report, SCHEMA, Settings};
pub use route::{Direction, Signal, joint, regrets, route};
pub use screen::Design;
pub use search::{Evaluate, ExampleLosses, FoundRoute, Losses, Move, RouteSearch, Source};
