//! What containerd's configuration has to say so that it knows the runtime, and how that gets into it.
//!
//! containerd 2.x merges imported files into its own, table by table: there it is a drop-in. It has to be of the main
//! file's version, as containerd forgets what a file of version 2 says when one of version 3 is imported. containerd 1.7
//! replaces a plugin's whole section by the imported one, and with it what the administrator said of the CRI: there the
//! file itself is changed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::edit::{self, Setting};

/// What containerd is to be told.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Socket of the snapshotter.
    pub socket: PathBuf,
    /// Socket of the differ.
    pub differ: PathBuf,
    /// The shim.
    pub shim: PathBuf,
    /// Platform of the node's images, such as `linux/amd64`.
    pub platform: String,
}

/// The runtime's handler, and the name of snapshotter and of half of the differ's.
const NAME: &str = "cloister";
const DIFFER: &str = "cloister-diff";
const WALKING: &str = "walking";
/// What containerd runs pods with that ask for nothing, unless it is told otherwise.
const RUNC: &str = "io.containerd.runc.v2";
const DIFF_SERVICE: [&str; 3] = ["plugins", "io.containerd.service.v1.diff-service", "default"];
const UNPACK: [&str; 3] = ["plugins", "io.containerd.transfer.v1.local", "unpack_config"];

/// Version of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `version = 2`: of 1.7, still read by 2.x.
    V2,
    /// `version = 3`: of 2.x.
    V3,
}

impl Format {
    /// The version that a document names. One without is of a version that containerd has given up; an empty one is what
    /// a containerd of this major version makes of itself.
    pub fn of(document: &DocumentMut, major: u32) -> Result<Self> {
        match document.get("version").map(|version| version.as_integer()) {
            Some(Some(2)) => Ok(Self::V2),
            Some(Some(3)) => Ok(Self::V3),
            None if document.as_table().is_empty() => Ok(if major < 2 { Self::V2 } else { Self::V3 }),
            _ => bail!("is of version 1: bring it to version 2 with `containerd config migrate`"),
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// The keys that have to be set, in a file of this version, given what containerd is told already.
pub fn settings(wanted: &Wanted, format: Format, told: &[DocumentMut]) -> Vec<Setting> {
    let mut settings = vec![
        Setting::new(&["proxy_plugins", NAME, "type"], value("snapshot")),
        Setting::new(&["proxy_plugins", NAME, "address"], value(text(&wanted.socket))),
        Setting::new(&["proxy_plugins", DIFFER, "type"], value("diff")),
        Setting::new(&["proxy_plugins", DIFFER, "address"], value(text(&wanted.differ))),
        Setting::new(&DIFF_SERVICE, differs(last(told, &DIFF_SERVICE))),
    ];
    let (images, runtimes): (&[&str], &str) = match format {
        Format::V2 => (&["plugins", "io.containerd.grpc.v1.cri", "containerd"], "io.containerd.grpc.v1.cri"),
        Format::V3 => (&["plugins", "io.containerd.cri.v1.images"], "io.containerd.cri.v1.runtime"),
    };
    let annotations = [images, &["disable_snapshot_annotations"]].concat();
    settings.push(Setting::new(&annotations, value(false)));
    if format == Format::V3 {
        for (key, is) in [("snapshotter", NAME), ("platform", wanted.platform.as_str())] {
            let path = [images, &["runtime_platforms", NAME, key]].concat();
            settings.push(Setting::new(&path, value(is)));
        }
        settings.push(Setting::new(&UNPACK, unpackers(last(told, &UNPACK), &wanted.platform)));
    }
    let runtime =
        |key: &str, is: Item| Setting::new(&["plugins", runtimes, "containerd", "runtimes", NAME, key], is);
    // Whoever names a runtime to containerd 1.7 names all of them: its own default is none any more.
    let all = ["plugins", runtimes, "containerd", "runtimes"];
    if format == Format::V2 && last(told, &all).is_none() {
        settings.push(Setting::new(&[&all[..], &["runc", "runtime_type"]].concat(), value(RUNC)));
    }
    let annotations = || value(Array::from_iter(["cloister.dev/*"]));
    settings.extend([
        runtime("runtime_type", value("io.containerd.cloister.v2")),
        runtime("runtime_path", value(text(&wanted.shim))),
        runtime("snapshotter", value(NAME)),
        runtime("pod_annotations", annotations()),
        runtime("container_annotations", annotations()),
        runtime("privileged_without_host_devices", value(true)),
    ]);
    settings
}

/// A drop-in with these keys.
pub fn drop_in(settings: &[Setting], format: Format) -> Result<String> {
    let mut document = DocumentMut::new();
    document.insert("version", value(format.number()));
    edit::set(&mut document, settings)?;
    Ok(format!("# Written by cloister-node; changes are lost.\n{document}"))
}

/// Says in a new document which version it is of.
pub fn name_version(document: &mut DocumentMut, format: Format) {
    document.insert("version", value(format.number()));
}

/// Whether a document has the section of the plugin that a setting is about.
pub fn has_section(document: &DocumentMut, setting: &Setting) -> bool {
    setting.path.first().is_some_and(|name| name == "plugins")
        && setting.path.get(..2).is_some_and(|section| edit::get(document, section).is_some())
}

/// What containerd has to import so that it reads `drop_in`, unless the main file's imports cover it.
pub fn import(main: &DocumentMut, drop_in: &Path) -> Option<Setting> {
    let imports = main.get("imports").and_then(Item::as_array);
    let covered = imports.into_iter().flatten().filter_map(toml_edit::Value::as_str).any(|pattern| {
        let pattern = Path::new(pattern);
        pattern == drop_in
            || (pattern.parent() == drop_in.parent()
                && pattern.file_name().is_some_and(|name| name == "*.toml"))
    });
    if covered {
        return None;
    }
    let mut all = imports.cloned().unwrap_or_default();
    all.push(text(drop_in));
    Some(Setting::new(&["imports"], value(all)))
}

/// A document of a file's text; a missing file is an empty one.
pub fn parse(text: &str, path: &Path) -> Result<DocumentMut> {
    text.parse().with_context(|| format!("{} is not TOML", path.display()))
}

/// Our differ first, as containerd asks one after the other; the others as they were.
fn differs(told: Option<&Item>) -> Item {
    let told = told.and_then(Item::as_array);
    let others: Vec<&str> = told.map_or(vec![WALKING], |told| {
        told.iter().filter_map(toml_edit::Value::as_str).filter(|&name| name != DIFFER).collect()
    });
    value([DIFFER].into_iter().chain(others).collect::<Array>())
}

/// What the transfer service unpacks with: what it was told or does by itself, and ours.
fn unpackers(told: Option<&Item>, platform: &str) -> Item {
    let entry = |snapshotter: &str, differ: &str| {
        let mut table = Table::new();
        table.insert("platform", value(platform));
        table.insert("snapshotter", value(snapshotter));
        table.insert("differ", value(differ));
        table
    };
    let ours = |table: &Table| table.get("snapshotter").and_then(Item::as_str) == Some(NAME);
    let mut all = ArrayOfTables::new();
    match told.and_then(Item::as_array_of_tables) {
        Some(told) => told.iter().filter(|table| !ours(table)).for_each(|table| all.push(table.clone())),
        None => all.push(entry("overlayfs", WALKING)),
    }
    all.push(entry(NAME, DIFFER));
    Item::ArrayOfTables(all)
}

/// What the last of several documents that say anything at `path` says.
fn last<'a>(documents: &'a [DocumentMut], path: &[&str]) -> Option<&'a Item> {
    let path: Vec<String> = path.iter().map(|&name| name.to_owned()).collect();
    documents.iter().rev().find_map(|document| edit::get(document, &path))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
