//! Ways in for tests, where the usual way to what reads a stranger's file is a command.

use crate::eval::merge;
use crate::output::{eval as report, report as page};
use polykv::models::eval::Summary;
use std::path::PathBuf;

/// What `polykv eval merge` makes of the shards in these folders: the table, metrics.json and report.html, one after the other.
///
/// # Errors
/// Folders that are not the shards of one run.
pub fn merged(folders: &[PathBuf]) -> polykv::Result<String> {
    let merge::Whole {
        record,
        predictions,
        ..
    } = merge::read(folders)?.whole()?;
    let summary = Summary::new(
        &record.identity.task,
        &record.sets,
        &record.plans(),
        &predictions,
    );
    let metrics = serde_json::to_string(&report::Metrics::new(&record, &summary))
        .map_err(|e| polykv::Error::Failed(format!("metrics as JSON: {e}")))?;
    Ok([
        report::table(&record, &summary),
        metrics,
        page::page(&record, &summary),
    ]
    .concat())
}
