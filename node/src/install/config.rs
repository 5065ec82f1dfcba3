//! containerd's configuration files: what is read, what is changed, and how it was before.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Value};

use super::containerd::{self, Format, Wanted};
use super::edit;
use super::files::{self, Change};
use super::place::Place;
use crate::containerd::runtime::Version;

/// From this version on containerd imports what is in `conf.d` beside its file.
const IMPORTS_CONF_D: Version = (2, 2);

/// What was changed on a node.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The files, in the order in which they are changed.
    pub changes: Vec<Change>,
    /// Folders that were made for them.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
}

/// A file that containerd reads.
struct Source {
    path: PathBuf,
    /// Its text without what we ever did to it.
    before: Option<String>,
    document: DocumentMut,
}

impl Record {
    /// The one in a file; an empty one when there is none.
    pub fn load(path: &Path) -> Result<Self> {
        let Some(text) = files::read(path)? else { return Ok(Self::default()) };
        serde_json::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    /// Writes it, for whoever undoes it.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write(path, &serde_json::to_string_pretty(self)?)
    }

    /// What has to be changed, given the files as they are now, so that a containerd of this version is told what is
    /// wanted.
    pub fn plan(&self, place: &Place, wanted: &Wanted, version: Version) -> Result<Self> {
        let mut sources = vec![self.source(&place.main)?];
        for path in imports(&sources[0].document, &place.main)? {
            if path != place.drop_in {
                sources.push(self.source(&path)?);
            }
        }
        let format = Format::of(&sources[0].document, version.0)
            .with_context(|| format!("cannot use {}", place.main.display()))?;
        let told: Vec<DocumentMut> = sources.iter().map(|source| source.document.clone()).collect();
        let settings = containerd::settings(wanted, format, &told);
        let mut changes = Vec::new();
        if version.0 >= 2 {
            let after = containerd::drop_in(&settings, format)?;
            changes.push(Change { path: place.drop_in.clone(), before: None, after });
            let found = version >= IMPORTS_CONF_D
                && place.drop_in.parent() == Some(&place.main.with_file_name("conf.d"));
            let import = containerd::import(&sources[0].document, &place.drop_in).filter(|_| !found);
            edit::set(&mut sources[0].document, import.as_slice())?;
        } else {
            for setting in settings {
                // An imported section replaces the main file's.
                let target =
                    sources.iter().rposition(|source| containerd::has_section(&source.document, &setting));
                edit::set(&mut sources[target.unwrap_or(0)].document, &[setting])?;
            }
        }
        for mut source in sources {
            if source.before.is_none() && !source.document.is_empty() {
                containerd::name_version(&mut source.document, format);
            }
            let after = source.document.to_string();
            if after == source.before.as_deref().unwrap_or_default() {
                continue;
            }
            if place.generated {
                bail!(
                    "{} is made again at each start and does not import {}: update k3s or RKE2 to a release that does (March 2026)",
                    source.path.display(),
                    place.drop_in.display()
                );
            }
            changes.push(Change { path: source.path, before: source.before, after });
        }
        let folders =
            changes.iter().filter(|change| change.before.is_none()).filter_map(|change| change.path.parent());
        let made = |folder: &&Path| !folder.exists() || self.folders.iter().any(|made| made == folder);
        let folders = folders.filter(made).map(Path::to_owned).collect();
        Ok(Self { changes, folders })
    }

    /// Whether every file is as this says.
    pub fn is_made(&self) -> Result<bool> {
        for change in &self.changes {
            if !change.is_made()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Changes the files.
    pub fn make(&self) -> Result<()> {
        self.changes.iter().try_for_each(Change::make)
    }

    /// Gives the files back, byte for byte those that nobody else has changed since.
    pub fn undo(&self) -> Result<()> {
        for change in self.changes.iter().rev() {
            if change.is_made()? {
                change.undo()?;
            } else if let (Some(_), Some(text)) =
                (&change.before, without(change, files::read(&change.path)?)?)
            {
                files::write(&change.path, &text)?;
            } else {
                files::remove(&change.path)?;
            }
        }
        for folder in &self.folders {
            // One that somebody else uses by now stays.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    /// A file as it would be without us.
    fn source(&self, path: &Path) -> Result<Source> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let now = files::read(&path)?;
        let before = match self.changes.iter().find(|change| change.path == path) {
            Some(change) => without(change, now)?,
            None => now,
        };
        let document = containerd::parse(before.as_deref().unwrap_or_default(), &path)?;
        Ok(Source { path, before, document })
    }
}

/// What a file that we changed, and that now has this text, would be without that.
fn without(change: &Change, now: Option<String>) -> Result<Option<String>> {
    let Some(now) = now else { return Ok(None) };
    if now == change.after {
        return Ok(change.before.clone());
    }
    let before = containerd::parse(change.before.as_deref().unwrap_or_default(), &change.path)?;
    let made = containerd::parse(&change.after, &change.path)?;
    let mut document = containerd::parse(&now, &change.path)?;
    edit::unset(&mut document, &edit::difference(&made, &before), &before);
    Ok(Some(document.to_string()))
}

/// The files that a main file imports, in containerd's order: a name may have a `*`, a relative one is beside the main file.
fn imports(main: &DocumentMut, path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let patterns = main.get("imports").and_then(Item::as_array);
    for pattern in patterns.into_iter().flatten().filter_map(Value::as_str) {
        let pattern = path.parent().unwrap_or(Path::new("/")).join(pattern);
        let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((head, tail)) = name.split_once('*') else {
            found.push(pattern);
            continue;
        };
        let Some(folder) = pattern.parent().filter(|folder| folder.is_dir()) else { continue };
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail) {
                names.push(folder.join(name));
            }
        }
        names.sort();
        found.append(&mut names);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: &str = "version = 3\n# the pause image of our mirror\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'mirror/pause:9'\n";
    const V2: &str =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"mirror/pause:9\"\n";

    struct Node {
        folder: tempfile::TempDir,
        place: Place,
    }

    fn node(main: Option<&str>) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let place = Place::plain(path.join("config.toml"));
        if let Some(main) = main {
            fs::write(&place.main, main).unwrap();
        }
        Node { folder, place }
    }

    fn wanted(socket: &str) -> Wanted {
        Wanted {
            socket: socket.into(),
            differ: socket.into(),
            shim: "/opt/shim".into(),
            platform: "linux/amd64".to_owned(),
        }
    }

    fn install(node: &Node, record: &Record, socket: &str, version: Version) -> Record {
        let next = record.plan(&node.place, &wanted(socket), version).unwrap();
        next.make().unwrap();
        assert!(next.is_made().unwrap());
        next
    }

    #[test]
    fn what_was_there_comes_back_byte_for_byte() {
        for (text, version) in
            [(Some(V3), (2, 1)), (Some(V2), (2, 1)), (Some(V2), (1, 7)), (None, (1, 7)), (None, (2, 1))]
        {
            let node = node(text);
            let first = install(&node, &Record::default(), "/run/a.sock", version);
            let second = install(&node, &first, "/run/b.sock", version);
            assert_ne!(first, second);
            let again = second.plan(&node.place, &wanted("/run/b.sock"), version).unwrap();
            assert_eq!(again, second, "nothing is to be done twice");
            second.undo().unwrap();
            assert_eq!(files::read(&node.place.main).unwrap().as_deref(), text);
            assert!(!node.place.drop_in.parent().unwrap().exists(), "{version:?}");
        }
    }

    #[test]
    fn a_drop_in_is_of_the_main_files_version() {
        for (text, begin) in [(V2, "version = 2\n"), (V3, "version = 3\n")] {
            let node = node(Some(text));
            install(&node, &Record::default(), "/run/a.sock", (2, 1));
            let drop_in = fs::read_to_string(&node.place.drop_in).unwrap();
            assert!(drop_in.lines().nth(1).is_some_and(|line| format!("{line}\n") == begin), "{drop_in}");
            let main = fs::read_to_string(&node.place.main).unwrap();
            assert!(main.contains("mirror/pause:9") && main.contains("conf.d/cloister.toml"), "{main}");
        }
    }

    #[test]
    fn newer_containerds_find_the_drop_in_by_themselves() {
        let node = node(Some(V3));
        let record = install(&node, &Record::default(), "/run/a.sock", (2, 2));
        assert_eq!(record.changes.len(), 1);
        assert_eq!(fs::read_to_string(&node.place.main).unwrap(), V3);
    }

    #[test]
    fn a_generated_file_is_never_changed() {
        let mut node = node(Some(V3));
        node.place.generated = true;
        let error = Record::default().plan(&node.place, &wanted("/s"), (2, 1)).unwrap_err();
        assert!(error.to_string().contains("update k3s"), "{error}");
        let imported = format!(
            "imports = [\"{}/conf.d/*.toml\"]\n{V3}",
            node.folder.path().canonicalize().unwrap().display()
        );
        fs::write(&node.place.main, &imported).unwrap();
        let record = install(&node, &Record::default(), "/s", (2, 1));
        assert_eq!(record.changes.len(), 1);
    }

    #[test]
    fn an_imported_section_is_changed_where_it_is() {
        let node = node(Some("version = 2\nimports = [\"cri-*.toml\"]\n"));
        let cri = node.place.main.with_file_name("cri-1.toml");
        fs::write(&cri, V2).unwrap();
        let record = install(&node, &Record::default(), "/run/a.sock", (1, 7));
        let text = fs::read_to_string(&cri).unwrap();
        assert!(text.contains("runtimes.cloister]") && text.contains("mirror/pause:9"), "{text}");
        assert!(!fs::read_to_string(&node.place.main).unwrap().contains("runtimes"));
        record.undo().unwrap();
        assert_eq!(fs::read_to_string(&cri).unwrap(), V2);
    }

    #[test]
    fn the_default_runtime_stays_when_ours_is_named() {
        let node_of = |text: &str| {
            let node = node(Some(text));
            install(&node, &Record::default(), "/run/a.sock", (1, 7));
            fs::read_to_string(&node.place.main).unwrap()
        };
        let text = node_of(V2);
        assert!(text.contains("runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"), "{text}");
        let own = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\n  runtime_type = \"io.containerd.runc.v2\"\n";
        assert!(!node_of(&format!("{V2}{own}")).contains("runtimes.runc"));
    }

    #[test]
    fn changes_of_others_survive_both_ways() {
        let node = node(Some(V2));
        let first = install(&node, &Record::default(), "/run/a.sock", (1, 7));
        let changed = fs::read_to_string(&node.place.main).unwrap().replace("pause:9", "pause:10");
        fs::write(&node.place.main, changed).unwrap();
        let second = install(&node, &first, "/run/b.sock", (1, 7));
        let text = fs::read_to_string(&node.place.main).unwrap();
        assert!(
            text.contains("pause:10") && text.contains("/run/b.sock") && !text.contains("/run/a.sock"),
            "{text}"
        );
        second.undo().unwrap();
        assert_eq!(fs::read_to_string(&node.place.main).unwrap(), V2.replace("pause:9", "pause:10"));
    }

    #[test]
    fn a_file_without_a_version_is_refused_with_what_to_do() {
        let node = node(Some("[plugins.cri]\nsandbox_image = \"a\"\n"));
        let error = Record::default().plan(&node.place, &wanted("/s"), (1, 7)).unwrap_err();
        assert!(format!("{error:#}").contains("containerd config migrate"), "{error:#}");
    }
}
