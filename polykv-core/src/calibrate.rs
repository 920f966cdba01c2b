//! From measurements of one model to a plan: signals → route → budgets → searches over both (PolyKV, arXiv 2606.15157, and
//! our additions, which are named as such). What runs the model gives [`Measured`] per example; everything here is
//! arithmetic on that, except [`signals`], which reads tensors. [`Measurements::report`] makes routes and budgets of it,
//! and a [`Report`] holds these with every number that led to them.

mod budgets;
mod candidate;
mod draft;
mod measurements;
mod profile;
mod report;
mod route;
mod score;
mod screen;
mod search;
pub mod signals;

pub use budgets::{BudgetSearch, FoundBudgets, Trials, TriedBudgets};
pub use candidate::CandidatePolicy;
pub use draft::Draft;
pub use measurements::{BudgetSignal, Measurements};
pub use profile::{Data, Measured, PhaseMeasured, PhaseProfile, Profile};
pub use report::{PhaseReport, Report, SCHEMA, Settings};
pub use route::{Direction, Signal, joint, regrets, route};
pub use screen::Design;
pub use search::{Evaluate, ExampleLosses, Found, Losses, Move, Search, Source};
