//! From measurements of one model to a plan: signals → route → budgets → searches over both (PolyKV, arXiv 2606.15157, and our
//! additions, which are named as such). What runs the model gives [`Measured`] per example; everything here is arithmetic
//! on that, except [`signals`], which reads tensors.

mod budgets;
mod draft;
mod profile;
mod route;
mod score;
mod screen;
mod search;
pub mod signals;

pub use budgets::{BudgetSearch, FoundBudgets, Trials, TriedBudgets};
pub use draft::Draft;
pub use profile::{Data, Measured, PhaseMeasured, PhaseProfile, Profile};
pub use route::{Direction, Signal, joint, regrets, route};
pub use screen::Design;
pub use search::{Evaluate, ExampleLosses, Found, Losses, Move, Search, Source};
