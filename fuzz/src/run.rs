//! run.json and predictions.jsonl of an evaluation's two shards, merged.

use std::path::PathBuf;

pub fn run(input: &[u8]) {
    let [first, first_lines, second, second_lines] = super::pieces(input);
    let folder = super::Folder::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    for (name, record, lines) in [("0", first, first_lines), ("1", second, second_lines)] {
        if record.is_empty() {
            continue;
        }
        folder.write(&format!("{name}/run.json"), record);
        folder.write(&format!("{name}/predictions.jsonl"), &super::sealed(lines));
        folders.push(folder.path().join(name));
    }
    match polykv_cli::doors::merged(&folders) {
        Ok(pages) => assert!(pages.contains("</html>")),
        Err(error) => super::refused(&error),
    }
}
