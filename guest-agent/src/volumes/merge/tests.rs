use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;

struct Pair {
    _folder: tempfile::TempDir,
    content: std::path::PathBuf,
    staged: std::path::PathBuf,
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (content, staged) = (folder.path().join("content"), folder.path().join("staged"));
        fs::create_dir(&content).unwrap();
        fs::create_dir(&staged).unwrap();
        Self { _folder: folder, content, staged }
    }

    fn sync(&self) -> io::Result<()> {
        let open = |path: &Path| tree::open(rustix::fs::CWD, path.as_os_str()).unwrap();
        let staged = open(&self.staged);
        let result = replace(&open(&self.content), &staged);
        tree::clear(&staged).unwrap();
        result
    }

    /// Kubelet's layout of a revision.
    fn stage(&self, revision: &str, files: &[(&str, &str)]) {
        let at = |name: &str| self.staged.join(name);
        fs::create_dir(at(revision)).unwrap();
        fs::set_permissions(at(revision), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(revision, at("..data")).unwrap();
        for (name, content) in files {
            fs::write(at(revision).join(name), content).unwrap();
            symlink(format!("..data/{name}"), at(name)).unwrap();
        }
    }

    fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.content.join(name))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.content)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_revision_replaces_the_one_before_as_a_whole() {
    let pair = Pair::new();
    pair.stage("..1", &[("a", "one"), ("b", "one")]);
    pair.sync().unwrap();
    assert_eq!(pair.names(), ["..1", "..data", "a", "b"]);
    let link = fs::symlink_metadata(pair.content.join("a")).unwrap().ino();

    pair.stage("..2", &[("a", "two"), ("c", "two")]);
    pair.sync().unwrap();
    assert_eq!(pair.names(), ["..2", "..data", "a", "c"]);
    assert_eq!(pair.read("a").unwrap(), "two");
    assert_eq!(fs::symlink_metadata(pair.content.join("a")).unwrap().ino(), link, "the link stays");
    assert_eq!(fs::metadata(pair.content.join("..2")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn the_same_revision_again_changes_nothing() {
    let pair = Pair::new();
    pair.stage("..1", &[("a", "one")]);
    pair.sync().unwrap();
    let before = fs::metadata(pair.content.join("a")).unwrap();
    pair.stage("..1", &[("a", "one")]);
    pair.sync().unwrap();
    let after = fs::metadata(pair.content.join("a")).unwrap();
    assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()));
}

#[test]
fn a_plain_file_keeps_its_inode() {
    let pair = Pair::new();
    let hosts = |text: &str, mode| {
        let path = pair.staged.join("hosts");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    hosts("a long first version", 0o644);
    pair.sync().unwrap();
    let inode = fs::metadata(pair.content.join("hosts")).unwrap().ino();
    hosts("short", 0o600);
    pair.sync().unwrap();
    assert_eq!(pair.read("hosts").unwrap(), "short");
    let after = fs::metadata(pair.content.join("hosts")).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o777), (inode, 0o600));
    pair.sync().unwrap();
    assert!(pair.names().is_empty(), "what the archive lacks is removed");
}

#[test]
fn types_change_and_folders_merge() {
    let pair = Pair::new();
    fs::create_dir_all(pair.content.join("d/old/deep")).unwrap();
    fs::write(pair.content.join("d/f"), "old").unwrap();
    fs::write(pair.content.join("x"), "file").unwrap();
    fs::create_dir(pair.staged.join("d")).unwrap();
    fs::write(pair.staged.join("d/f"), "new").unwrap();
    fs::create_dir(pair.staged.join("x")).unwrap();
    pair.sync().unwrap();
    assert_eq!((pair.read("d/f").unwrap().as_str(), pair.content.join("d/old").exists()), ("new", false));
    assert!(pair.content.join("x").is_dir());
}

#[test]
fn links_a_container_planted_are_replaced_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let pair = Pair::new();
    symlink(outside.path().join("victim"), pair.content.join("hosts")).unwrap();
    symlink(outside.path(), pair.content.join("d")).unwrap();
    fs::write(pair.staged.join("hosts"), "new").unwrap();
    fs::create_dir(pair.staged.join("d")).unwrap();
    fs::write(pair.staged.join("d/victim"), "new").unwrap();
    pair.sync().unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "safe");
    assert_eq!(pair.read("hosts").unwrap(), "new");
}

#[test]
fn data_that_leads_elsewhere_is_refused() {
    for target in ["/etc", "../x", "..", "missing", "..data", "..missing"] {
        let pair = Pair::new();
        fs::write(pair.content.join("kept"), "").unwrap();
        symlink(target, pair.staged.join("..data")).unwrap();
        assert!(pair.sync().is_err(), "{target}");
        assert_eq!(pair.names(), ["kept"], "{target}");
    }
}
