//! The pages: tables that come from the registry, and links between files.
//!
//! `POLYKV_WRITE_DOCS=1 cargo test --release --test docs` writes the tables anew.

use polykv::Registry;
use polykv::allocate::Basis;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/policies.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn tables_are_those_of_the_registry() {
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let registry = Registry::default();
    let wanted = with_table(&page, "policies", &policies(&registry));
    let wanted = with_table(&wanted, "allocators", &allocators(&registry));
    if std::env::var_os("POLYKV_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let pairs = page.lines().zip(wanted.lines());
    for (found, wanted) in pairs {
        assert_eq!(found, wanted, "{PAGE}: set POLYKV_WRITE_DOCS=1 once");
    }
    assert_eq!(page.lines().count(), wanted.lines().count(), "{PAGE}");
}

/// The page with `table` between the marks `<!-- NAME -->` and `<!-- end of NAME -->`.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let [first, last] = [
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    ];
    let (before, rest) = page.split_once(&first).unwrap();
    let (_, after) = rest.split_once(&last).unwrap();
    format!("{before}{first}\n{table}\n{last}{after}")
}

fn policies(registry: &Registry) -> String {
    let mut table = "| policy | keeps | source |\n|---|---|---|\n".to_string();
    for policy in registry.policies.iter() {
        let source = policy.source.as_deref().unwrap_or("PolyKV");
        table += &format!("| `{}` | {} | {source} |\n", policy.name, policy.summary);
    }
    table
}

fn allocators(registry: &Registry) -> String {
    let mut table = "| allocator | splits the budget | when |\n|---|---|---|\n".to_string();
    for allocator in registry.allocators.iter() {
        let when = match allocator.basis() {
            Basis::Shares => "a prompt is announced; the default",
            Basis::Prompt => "a prompt is announced, by its length",
            Basis::Layers => "each layer has seen the prompt",
            Basis::Calibration => "`polykv calibrate` makes a plan, which states the shares",
        };
        let implied = allocator.implied_by();
        let implied = implied.map_or(String::new(), |policy| {
            format!("; implied by `--policy {policy}`")
        });
        let [name, summary] = [allocator.name(), allocator.summary()];
        table += &format!("| `{name}` | {summary} | {when}{implied} |\n");
    }
    table
}

#[test]
fn links_lead_to_files() {
    let mut broken = Vec::new();
    let pages = pages(root());
    assert!(pages.len() > 10, "{pages:?}");
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                _ => page.parent().unwrap().join(file),
            };
            if !target.exists() || !heading.is_empty() && !has_heading(&target, heading) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// All Markdown files, without what builds and hidden folders hold.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        match path.is_dir() {
            true => found.extend(pages(&path)),
            false if name.ends_with(".md") => found.push(path),
            false => {}
        }
    }
    found
}

/// Where Markdown links lead, outside of code blocks; those to other sites are left out.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let targets = prose.flat_map(|part| part.split("](").skip(1));
    targets
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .collect()
}

/// Whether a page has a heading with this anchor.
fn has_heading(page: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(page).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchors = headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    });
    anchors.into_iter().any(|found| found == anchor)
}
