/// All that a policy does with a decoded token, where that is one of a few simple things. On GPUs the tokens of several sequences, and
/// of KV heads with budgets of their own, are then taken in one launch for all.
///
/// Policies whose [`Policy::append`](super::Policy::append) is not the default, other than this states, have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenRule {
    /// It looks at no decoded token but gives it zeros in its statistics per entry, if it has such; its scores are made of something
    /// else. So layers that evict by it in the prefill alone are meant.
    Forgets,
    /// The score is an entry's position, and nothing is remembered.
    Positions,
    /// The score is the mean of the token's attention over the query group, and nothing is remembered.
    MeanOfGroup,
    /// The score is the mean of the token's attention over all query heads where the KV heads hold the same positions, else over the
    /// query group; nothing is remembered.
    MeanOfHeads,
    /// The score is the sum of the mean attention of all tokens over the query group, which is the only statistic per entry.
    Sums {
        /// Whether it is divided by the number of queries that could see the entry.
        by_visible: bool,
    },
}
