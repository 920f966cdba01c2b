//! How a layer's budget is divided over its KV heads.

/// How many entries each KV head of a layer keeps, under a budget that states how many they keep on average.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum HeadBudgets {
    /// Every head keeps as many as the budget says.
    #[default]
    Even,
    /// The best entries of all heads together (AdaKV, arXiv 2407.11550). Every head keeps the part `floor` of the budget, in
    /// [0, 1], of its own best entries, and what is left goes to the highest scores of all heads.
    ByScore {
        /// The part of the budget that every head keeps.
        floor: f64,
    },
    /// In proportion to these numbers, one per KV head, each finite and above 0.
    Shares(Vec<f64>),
}
