//! Keys of a TOML document set and taken back, everything else left as its author wrote it.

use anyhow::{Result, bail};
use toml_edit::{DocumentMut, Item, Table, TableLike};

/// A key with the value it has to have.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Names of the tables that lead to it, and its own.
    pub path: Vec<String>,
    /// What it has to be.
    pub value: Item,
}

impl Setting {
    /// `value` at `path`.
    pub fn new(path: &[&str], value: impl Into<Item>) -> Self {
        Self { path: path.iter().map(|&name| name.to_owned()).collect(), value: value.into() }
    }
}

/// What a document says at `path`.
pub fn get<'a>(document: &'a DocumentMut, path: &[String]) -> Option<&'a Item> {
    let (last, tables) = path.split_last()?;
    let mut table: &dyn TableLike = document.as_table();
    for name in tables {
        table = table.get(name)?.as_table_like()?;
    }
    table.get(last)
}

/// Gives each key its value; tables that are missing are made.
pub fn set(document: &mut DocumentMut, settings: &[Setting]) -> Result<()> {
    for setting in settings {
        let Some((last, tables)) = setting.path.split_last() else { continue };
        let mut table: &mut dyn TableLike = document.as_table_mut();
        for (depth, name) in tables.iter().enumerate() {
            let item = table.entry(name).or_insert_with(|| {
                let mut new = Table::new();
                // Without a header of its own while it only holds tables.
                new.set_implicit(true);
                Item::Table(new)
            });
            let Some(next) = item.as_table_like_mut() else {
                bail!("{} is not a table", setting.path[..=depth].join("."));
            };
            table = next;
        }
        if !table.get(last).is_some_and(|old| same(old, &setting.value)) {
            assign(table, last, setting.value.clone());
        }
    }
    Ok(())
}

/// Takes back what [`set`] did: a key that still has our value gets the one it had in `before`, or goes; tables that are
/// empty by that, and were not there before, go too.
pub fn unset(document: &mut DocumentMut, settings: &[Setting], before: &DocumentMut) {
    for setting in settings {
        if !get(document, &setting.path).is_some_and(|now| same(now, &setting.value)) {
            continue;
        }
        let old = get(before, &setting.path).cloned();
        put(document, &setting.path, old);
        for depth in (1..setting.path.len()).rev() {
            let path = &setting.path[..depth];
            let empty = get(document, path).and_then(Item::as_table_like).is_some_and(TableLike::is_empty);
            if !empty || get(before, path).is_some() {
                break;
            }
            put(document, path, None);
        }
    }
}

/// The keys that `made` has and `before` has not, or with another value.
pub fn difference(made: &DocumentMut, before: &DocumentMut) -> Vec<Setting> {
    let mut found = Vec::new();
    differ(made.as_table(), Some(before.as_table()), &mut Vec::new(), &mut found);
    found
}

fn differ(
    made: &dyn TableLike,
    before: Option<&dyn TableLike>,
    path: &mut Vec<String>,
    found: &mut Vec<Setting>,
) {
    for (key, value) in made.iter() {
        let old = before.and_then(|table| table.get(key));
        path.push(key.to_owned());
        match value.as_table_like() {
            Some(table) => differ(table, old.and_then(Item::as_table_like), path, found),
            None if old.is_some_and(|old| same(old, value)) => {}
            None => found.push(Setting { path: path.clone(), value: value.clone() }),
        }
        path.pop();
    }
}

/// Replaces or removes what is at a path whose tables exist.
fn put(document: &mut DocumentMut, path: &[String], value: Option<Item>) {
    let Some((last, tables)) = path.split_last() else { return };
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for name in tables {
        let Some(next) = table.get_mut(name).and_then(Item::as_table_like_mut) else { return };
        table = next;
    }
    match value {
        Some(value) => assign(table, last, value),
        None => drop(table.remove(last)),
    }
}

/// Gives a key a value; one that is there keeps its place and what stands around it.
fn assign(table: &mut dyn TableLike, key: &str, value: Item) {
    match table.get_mut(key) {
        Some(old) => *old = value,
        None => drop(table.insert(key, value)),
    }
}

/// Whether two items say the same, whatever stands around them.
fn same(one: &Item, other: &Item) -> bool {
    one.to_string().trim() == other.to_string().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "# ours to keep
version = 2

[plugins.\"cri\".containerd] # a comment
  default_runtime_name = \"runc\"
  annotations = true

  [plugins.\"cri\".containerd.runtimes.nv]
    runtime_type = 'io.containerd.runc.v2'
";

    fn settings() -> Vec<Setting> {
        vec![
            Setting::new(&["plugins", "cri", "containerd", "annotations"], toml_edit::value(false)),
            Setting::new(
                &["plugins", "cri", "containerd", "runtimes", "cloister", "type"],
                toml_edit::value("v"),
            ),
            Setting::new(&["proxy_plugins", "cloister", "type"], toml_edit::value("snapshot")),
        ]
    }

    #[test]
    fn what_others_wrote_stays_as_it_is() {
        let mut document: DocumentMut = FOREIGN.parse().unwrap();
        set(&mut document, &settings()).unwrap();
        let text = document.to_string();
        assert!(text.starts_with("# ours to keep\nversion = 2\n"), "{text}");
        assert!(text.contains("[plugins.\"cri\".containerd] # a comment\n"), "{text}");
        assert!(text.contains("annotations = false"), "{text}");
        let cloister = &settings()[1].path;
        assert_eq!(get(&document, cloister).and_then(Item::as_str), Some("v"));
        assert!(text.contains("[proxy_plugins.cloister]\ntype = \"snapshot\""), "{text}");
        // Once more changes nothing.
        set(&mut document, &settings()).unwrap();
        assert_eq!(document.to_string(), text);
    }

    #[test]
    fn taken_back_it_is_as_before() {
        let before: DocumentMut = FOREIGN.parse().unwrap();
        let mut document = before.clone();
        set(&mut document, &settings()).unwrap();
        let made = difference(&document, &before);
        assert_eq!(made.len(), settings().len());
        unset(&mut document, &made, &before);
        assert_eq!(document.to_string(), FOREIGN);
    }

    #[test]
    fn what_an_administrator_changed_since_is_kept() {
        let before: DocumentMut = FOREIGN.parse().unwrap();
        let mut document = before.clone();
        set(&mut document, &settings()).unwrap();
        let text = document.to_string().replace("type = \"snapshot\"", "type = \"mine\"\nmore = 1");
        let mut document: DocumentMut = text.parse().unwrap();
        unset(&mut document, &settings(), &before);
        let text = document.to_string();
        assert!(text.contains("type = \"mine\"\nmore = 1") && text.contains("annotations = true"), "{text}");
        assert!(!text.contains("runtimes.cloister"), "{text}");
    }

    #[test]
    fn a_value_in_the_place_of_a_table_is_an_error_that_names_it() {
        let mut document: DocumentMut = "proxy_plugins = 3".parse().unwrap();
        let error = set(&mut document, &settings()).unwrap_err();
        assert_eq!(error.to_string(), "plugins.cri is not a table".replace("plugins.cri", "proxy_plugins"));
    }

    #[test]
    fn inline_tables_and_dotted_keys_are_tables() {
        let mut document: DocumentMut =
            "proxy_plugins = {other = {type = \"diff\"}}\nplugins.cri.containerd.annotations = true\n"
                .parse()
                .unwrap();
        set(&mut document, &settings()).unwrap();
        let text = document.to_string();
        let again: DocumentMut = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(get(&again, &settings()[2].path).and_then(Item::as_str), Some("snapshot"));
        assert!(text.contains("other"), "{text}");
    }
}
