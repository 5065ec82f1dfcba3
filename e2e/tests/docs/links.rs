//! Links between pages lead somewhere.

use std::path::Path;

use cloister_e2e::lab::checkout;

use crate::page::{Page, all};

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &Page) -> Vec<String> {
    let headings = page.prose().into_iter().filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = all();
    let mut wrong = Vec::new();
    for page in &pages {
        let folder = Path::new(&page.path).parent().unwrap();
        for (number, line) in page.prose() {
            let targets =
                line.match_indices("](").map(|(at, _)| line[at + 2..].split(')').next().unwrap_or_default());
            for target in targets.filter(|target| !target.contains("://")) {
                let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
                let path = match file.is_empty() {
                    true => checkout().join(&page.path),
                    false => checkout().join(folder).join(file),
                };
                let Ok(path) = path.canonicalize() else {
                    wrong.push(format!("{}:{number}: {target}: no such file", page.path));
                    continue;
                };
                let of = pages
                    .iter()
                    .find(|page| checkout().join(&page.path).canonicalize().is_ok_and(|other| other == path));
                if !wanted.is_empty()
                    && !of.is_some_and(|page| anchors(page).iter().any(|name| name == wanted))
                {
                    wrong.push(format!("{}:{number}: {target}: no such heading", page.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
