use super::Head;
use crate::policy::TokenRule;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// What stands in a row of a table: the first slot of the range,
pub const START: usize = 0;
/// the entries in it when the table was made,
pub const LEN: usize = 1;
/// the tokens that its sequence had been given,
pub const SEEN: usize = 2;
/// how many entries stay after a token,
pub const BUDGET: usize = 3;
/// what scores are made of,
pub const RULE: usize = 4;
/// the positions from the first on that are protected,
pub const SINKS: usize = 5;
/// and up to the latest,
pub const RECENT: usize = 6;
/// where its NaN scores are counted,
pub const ID: usize = 7;
/// and the first slot of the entries before those of the range, which others share,
pub const SHARED_START: usize = 8;
/// and how many these are, which are among the entries above.
pub const SHARED: usize = 9;
pub const FIELDS: usize = 10;

/// Rules: nothing is evicted and nothing summed; scores are positions, which no number says;
pub const KEEPS: usize = 0;
const OF_POSITIONS: usize = 1;
/// means over the query group, means over all heads,
pub const OF_GROUP: usize = 2;
pub const OF_HEADS: usize = 3;
/// sums of attention, sums divided by the number of queries that could see the entry.
pub const OF_SUMS: usize = 4;
pub const OF_VISIBLE_SUMS: usize = 5;

/// `[heads, FIELDS]`
pub fn of(heads: &[Head], device: &Device) -> Tensor<2, Int> {
    let rows: Vec<[i32; FIELDS]> = heads.iter().map(row).collect();
    let dims = [rows.len(), FIELDS];
    Tensor::from_data(TensorData::new(rows.concat(), dims), device)
}

fn row(head: &Head) -> [i32; FIELDS] {
    let rule = match head.rule {
        None | Some(TokenRule::Forgets) => KEEPS,
        Some(TokenRule::Positions) => OF_POSITIONS,
        Some(TokenRule::MeanOfGroup) => OF_GROUP,
        Some(TokenRule::MeanOfHeads) => OF_HEADS,
        Some(TokenRule::Sums { by_visible: false }) => OF_SUMS,
        Some(TokenRule::Sums { by_visible: true }) => OF_VISIBLE_SUMS,
    };
    let fields = [
        head.start,
        head.len,
        head.seen,
        head.budget,
        rule,
        head.sinks,
        head.recent,
        head.id,
        head.shared_start,
        head.shared,
    ];
    fields.map(|number| i32::try_from(number).unwrap_or(i32::MAX))
}
