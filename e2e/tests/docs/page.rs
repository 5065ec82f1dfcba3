//! A page in Markdown: its blocks, who runs them, and what stands between.

use std::fs;
use std::path::Path;
use std::process::Command;

use cloister_e2e::lab::checkout;

/// A page of the project.
pub struct Page {
    /// Path in the checkout.
    pub path: String,
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// `PAGE:LINE` of its fence.
    pub place: String,
    pub language: String,
    /// What the comment above it says after `run:`.
    pub run: Option<String>,
    pub text: String,
}

impl Block {
    /// Whether it is to be run in this way.
    pub fn is_run(&self, way: &str) -> bool {
        self.run.as_deref() == Some(way)
    }
}

impl Page {
    fn read(path: &str) -> Page {
        Page { path: path.to_owned(), text: fs::read_to_string(checkout().join(path)).unwrap() }
    }

    /// Its blocks in their order.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let (mut open, mut before) = (false, "");
        for (number, line) in self.text.lines().enumerate() {
            match (line.strip_prefix("```"), open) {
                (Some(language), false) => {
                    let run = before.strip_prefix("<!-- run: ").and_then(|rest| rest.strip_suffix(" -->"));
                    blocks.push(Block {
                        place: format!("{}:{}", self.path, number + 1),
                        language: language.to_owned(),
                        run: run.map(str::to_owned),
                        text: String::new(),
                    });
                    open = true;
                }
                (Some(_), true) => open = false,
                (None, true) => {
                    let text = &mut blocks.last_mut().unwrap().text;
                    text.push_str(line);
                    text.push('\n');
                }
                (None, false) => {}
            }
            before = line;
        }
        assert!(!open, "{}: a block without an end", self.path);
        blocks
    }

    /// The lines outside of blocks, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut open = false;
        let mut lines = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            if line.starts_with("```") {
                open = !open;
            } else if !open {
                lines.push((number + 1, line));
            }
        }
        lines
    }

    /// Writes the page with other text in a block.
    pub fn replace(&self, block: &Block, text: &str) {
        let page = fs::read_to_string(checkout().join(&self.path)).unwrap();
        let (old, new) = (
            format!("```{}\n{}```", block.language, block.text),
            format!("```{}\n{text}```", block.language),
        );
        assert_eq!(page.matches(&old).count(), 1, "{}", block.place);
        fs::write(checkout().join(&self.path), page.replace(&old, &new)).unwrap();
    }
}

/// Code in a line of prose.
pub fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// README.md and the pages of docs/.
pub fn documents() -> Vec<Page> {
    let is_one = |path: &str| path == "README.md" || Path::new(path).parent() == Some(Path::new("docs"));
    all().into_iter().filter(|page| is_one(&page.path)).collect()
}

/// Every page of the checkout.
pub fn all() -> Vec<Page> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"])
        .current_dir(checkout())
        .output()
        .unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    let there = files.lines().filter(|path| checkout().join(path).exists());
    let pages: Vec<Page> = there.map(Page::read).collect();
    assert!(pages.len() > 20, "{} pages", pages.len());
    pages
}
