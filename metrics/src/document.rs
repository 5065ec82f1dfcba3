//! The tables of families in a document, made from the families themselves.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

/// What is above the rows of a table.
const HEAD: &str = "| name | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n";
/// Tells [`check`] to write the document instead.
const UPDATE: &str = "UPDATE_DOCUMENTS";

/// One family; written as a row of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The full name.
    pub name: String,
    /// `counter`, `gauge`, `histogram`.
    pub kind: String,
    /// The names of the labels.
    pub labels: Vec<String>,
    /// What is counted.
    pub help: String,
}

impl Row {
    /// The unit, which Prometheus' rules put into the name: `seconds`, `bytes`, `number`.
    pub fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(&self.name);
        ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or("number")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.labels.iter().map(|label| format!("`{label}`")).collect();
        let (unit, labels) = (self.unit(), labels.join(", "));
        write!(f, "| `{}` | {} | {unit} | {labels} | {} |", self.name, self.kind, self.help)
    }
}

/// The document with this table between `<!-- metrics of PART -->` and `<!-- end of PART -->`, in which rows are sorted; none
/// when the marks are missing.
fn with_table(document: &str, part: &str, rows: &[Row]) -> Option<String> {
    let (begin, end) = (format!("<!-- metrics of {part} -->\n"), format!("<!-- end of {part} -->\n"));
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort();
    let table: String = rows.iter().map(|row| format!("{row}\n")).collect();
    Some(format!("{before}{begin}{HEAD}{table}{end}{after}"))
}

/// Compares a part of a document with the families of a program; with `UPDATE_DOCUMENTS` in the environment, writes it instead.
///
/// # Errors
/// With what to do when they differ, and when the document cannot be read or written, or has no such part.
pub fn check(document: &Path, part: &str, rows: &[Row]) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", document.display());
    let update = std::env::var_os(UPDATE).is_some();
    let mut file = File::options().read(true).write(update).open(document).map_err(failed)?;
    // Each program writes its own part.
    file.lock().map_err(failed)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    let wanted = with_table(&text, part, rows)
        .ok_or_else(|| format!("{} has no metrics of {part}", document.display()))?;
    if wanted == text {
        return Ok(());
    }
    if !update {
        return Err(format!(
            "{} is not what {part} counts: run this test with {UPDATE}=1",
            document.display()
        ));
    }
    file.rewind()
        .and_then(|()| file.set_len(0))
        .and_then(|()| file.write_all(wanted.as_bytes()))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_to_say_what_is_counted() {
        let row = |name: &str| Row {
            name: name.to_owned(),
            kind: "counter".to_owned(),
            labels: vec!["a".to_owned(), "b".to_owned()],
            help: "Words".to_owned(),
        };
        let rows = [row("y_bytes_total"), row("x_total")];
        let document = "head\n<!-- metrics of x -->\nold\n<!-- end of x -->\ntail\n";
        let text = with_table(document, "x", &rows).unwrap();
        let table = "| `x_total` | counter | number | `a`, `b` | Words |\n\
                     | `y_bytes_total` | counter | bytes | `a`, `b` | Words |\n";
        assert_eq!(text, format!("head\n<!-- metrics of x -->\n{HEAD}{table}<!-- end of x -->\ntail\n"));
        assert_eq!(with_table(document, "z", &rows), None);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.md");
        std::fs::write(&path, text).unwrap();
        assert_eq!(check(&path, "x", &rows), Ok(()));
        let error = check(&path, "x", &rows[..1]).unwrap_err();
        assert!(
            error.ends_with("metrics.md is not what x counts: run this test with UPDATE_DOCUMENTS=1"),
            "{error}"
        );
    }
}
