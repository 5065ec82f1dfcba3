//! `cloister image …` from the command line: in by one form, out by every form, and gone when pruned.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use cloister_e2e::{Lab, lab};

/// Exports the image in a form; gives the file.
fn exported(lab: &Lab, folder: &Path, form: &str) -> PathBuf {
    let file = folder.join(form);
    lab.ok(&["image", "export", "debian", "--format", form, "-o", &file.to_string_lossy()]).unwrap();
    file
}

fn passes(program: &Path, args: &[&str], file: &Path) {
    let output = Command::new(program).args(args).arg(file).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {text}", program.display());
}

#[test]
fn every_form_of_export_passes_its_own_checker() {
    let lab = Lab::with_debian().unwrap();
    let out = tempfile::tempdir().unwrap();
    let fsck = lab::tool("erofs-utils-trixie", "fsck.erofs").unwrap();
    passes(&fsck, &[], &exported(&lab, out.path(), "erofs"));
    passes(Path::new("e2fsck"), &["-fn"], &exported(&lab, out.path(), "ext4"));
    passes(Path::new("tar"), &["-tf"], &exported(&lab, out.path(), "tar"));
}

#[test]
fn an_exported_archive_comes_back_as_the_same_image() {
    let lab = Lab::with_debian().unwrap();
    let out = tempfile::tempdir().unwrap();
    let id = |lab: &Lab, name: &str| -> String {
        let text = lab.ok(&["image", "inspect", name]).unwrap();
        let inspected: serde_json::Value = serde_json::from_str(&text).unwrap();
        inspected["image"]["config"].as_str().unwrap().to_owned()
    };
    let before = id(&lab, "debian");
    for form in ["oci-archive", "docker-archive"] {
        let file = exported(&lab, out.path(), form);
        let other = Lab::new().unwrap();
        other.ok(&["image", "import", "back", "-i", &file.to_string_lossy()]).unwrap();
        assert_eq!(id(&other, "back"), before, "{form}");
    }
}

#[test]
fn a_name_is_given_taken_and_its_image_pruned_with_the_last_one() {
    let lab = Lab::with_debian().unwrap();
    lab.ok(&["image", "tag", "debian", "other:v1"]).unwrap();
    lab.ok(&["image", "rm", "debian"]).unwrap();
    lab.ok(&["image", "prune"]).unwrap();
    assert!(lab.ok(&["image", "ls"]).unwrap().contains("other:v1"), "the second name keeps the image");
    lab.ok(&["image", "rm", "other:v1"]).unwrap();
    let told = lab.ok(&["image", "prune"]).unwrap();
    assert!(told.contains("0 B remain"), "{told}");
    let gone = lab.run(&["image", "inspect", "other:v1"]).unwrap();
    assert!(!gone.status.success());
}

/// What the import of a large image may take, in bytes: it streams, so the size of the image does not show.
const MEMORY: u64 = 64 << 20;

#[test]
fn a_large_image_is_imported_in_little_memory() {
    let archive = lab::debian_image("large").unwrap();
    let lab = Lab::new().unwrap();
    let (output, peak) =
        lab.run_watched(&["image", "import", "large", "-i", &archive.to_string_lossy()]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("peak {} KiB for an archive of {} bytes", peak >> 10, archive.metadata().unwrap().len());
    assert!(peak < MEMORY, "peak {} KiB", peak >> 10);
}
