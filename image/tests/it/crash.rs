//! Kills, full disks, and two at once: a store shows an image whole or not at all, and the next import works.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cloister_image::source::{Input, archive};
use cloister_image::{LayerProgress, Phase, Progress, Store};

use crate::common::*;

/// Layers of a few megabytes, so that an import takes long enough to be killed in every stage.
fn big_image() -> TestImage {
    let layer = |seed| (tar(&[("noise", &noise(6 << 20, seed)), ("text", &vec![b'x'; 4 << 20])]), TAR_GZIP);
    TestImage::new(host_arch(), &[layer(1), layer(2), layer(3)])
}

/// Starts this test binary again as `crash::NAME`, in an environment that makes it do the child's part.
fn child(name: &str, root: &Path, archive: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("CLOISTER_TEST_ROOT", root)
        .env("CLOISTER_TEST_ARCHIVE", archive);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn child_paths() -> Option<(std::path::PathBuf, std::path::PathBuf)> {
    Some((std::env::var_os("CLOISTER_TEST_ROOT")?.into(), std::env::var_os("CLOISTER_TEST_ARCHIVE")?.into()))
}

struct Print(Mutex<()>);

impl Progress for Print {
    fn layer(&self, state: &LayerProgress<'_>) {
        if matches!(state.phase, Phase::Done | Phase::Exists) {
            let _guard = self.0.lock().unwrap();
            println!("LAYER {:?}", state.phase);
        }
    }
}

/// The child's part: imports and says what happened to each layer. Does nothing when run as a test.
#[test]
fn importing_child() {
    let Some((root, tar)) = child_paths() else { return };
    let store = Store::open(root).unwrap();
    archive::import(&store, Input::Path(tar), &named("app:1"), &Print(Mutex::new(()))).unwrap();
}

/// The store holds nothing, or the image with every byte in place.
fn check_all_or_nothing(root: &Path, image: &TestImage) -> bool {
    let store = Store::open(root).unwrap();
    let tmp: Vec<_> = std::fs::read_dir(root.join("tmp")).unwrap().collect();
    assert!(tmp.is_empty(), "left behind: {tmp:?}");
    match store.list().unwrap().as_slice() {
        [] => false,
        [record] => {
            assert_eq!(record.manifest, image.digest());
            let opened = store.open_image("app:1").unwrap();
            for (layer, tar) in opened.layer_files().iter().zip(&image.tars) {
                let range = layer.tar().unwrap();
                let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
                std::os::unix::fs::FileExt::read_exact_at(&layer.file, &mut bytes, range.offset).unwrap();
                assert!(bytes == *tar, "layer {} differs", layer.diff_id);
            }
            true
        }
        more => panic!("{} names", more.len()),
    }
}

#[test]
fn a_killed_import_leaves_all_or_nothing_and_the_next_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let image = big_image();
    let tar = dir.path().join("image.tar");
    std::fs::write(&tar, archive_of(&image)).unwrap();
    let start = Instant::now();
    let root = dir.path().join("whole");
    assert!(child("crash::importing_child", &root, &tar).status().unwrap().success());
    let whole = start.elapsed();
    assert!(check_all_or_nothing(&root, &image));
    let (mut killed, mut interrupted, mut generation) = (0, 0, 0);
    const ROUNDS: u32 = 24;
    for round in 0..ROUNDS {
        // A store goes on being used until an import in it was complete, so that leftovers meet leftovers.
        let root = dir.path().join(format!("store-{generation}"));
        let mut process: Child = child("crash::importing_child", &root, &tar).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(0.9 * f64::from(round % 12) / 12.0).min(Duration::from_secs(20)));
        process.kill().unwrap();
        killed += u32::from(process.wait().unwrap().signal() == Some(9));
        let complete = root.exists() && check_all_or_nothing(&root, &image);
        interrupted += u32::from(root.exists() && !complete);
        if complete || round % 6 == 5 {
            let store = Store::open(&root).unwrap();
            import_path(&store, &tar, &named("app:1")).unwrap();
            assert!(check_all_or_nothing(&root, &image));
            // Not one file more than in a store that was never interrupted.
            assert_eq!(contents(&store), contents(&Store::open(dir.path().join("whole")).unwrap()));
            generation += 1;
        }
    }
    assert!(
        killed >= 8 && interrupted >= 4,
        "{killed} of {ROUNDS} killed, {interrupted} in the middle of an import"
    );
}

fn archive_of(image: &TestImage) -> Vec<u8> {
    archive(&layout(&[image.descriptor()], &[&image.blobs]))
}

#[test]
fn two_processes_importing_the_same_image_convert_each_layer_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = big_image();
    let tar = dir.path().join("image.tar");
    std::fs::write(&tar, archive_of(&image)).unwrap();
    for round in 0..3 {
        let root = dir.path().join(format!("store-{round}"));
        let both: Vec<Child> =
            (0..3).map(|_| child("crash::importing_child", &root, &tar).spawn().unwrap()).collect();
        let mut said = String::new();
        for process in both {
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            said.push_str(&String::from_utf8(output.stdout).unwrap());
        }
        assert_eq!(said.matches("LAYER Done").count(), 3, "{said}");
        assert_eq!(said.matches("LAYER Exists").count(), 6, "{said}");
        assert!(check_all_or_nothing(&root, &image));
    }
}

/// The child's part on a small tmpfs of its own; see below.
#[test]
fn full_disk_child() {
    let Some((root, tar)) = child_paths() else { return };
    let mount = |options: &str| {
        let status = Command::new("mount").args(["-o", options]).arg(&root).status().unwrap();
        assert!(status.success());
    };
    let store = Store::open(root.join("store")).unwrap();
    let empty = contents(&store);
    let mut failures = 0;
    for kib in (256..80_000).step_by(4096) {
        mount(&format!("remount,size={kib}k"));
        match import_path(&store, &tar, &named("app:1")) {
            Ok(_) => break,
            Err(error) => {
                failures += 1;
                let error = error.to_string();
                assert!(error.contains("No space left on device") && !error.contains('\n'), "{error}");
                assert!(store.list().unwrap().is_empty());
                assert!(!contents(&store).iter().any(|path| path.starts_with("tmp/")));
                store.prune(false, None).unwrap();
                assert_eq!(contents(&store), empty);
            }
        }
    }
    mount("remount,size=200m");
    import_path(&store, &tar, &named("app:1")).unwrap();
    assert!(check_all_or_nothing(store.root(), &big_image()));
    println!("FAILURES {failures}");
}

#[test]
fn a_full_disk_leaves_nothing_and_the_next_import_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let (mount, tar) = (dir.path().join("disk"), dir.path().join("image.tar"));
    std::fs::create_dir(&mount).unwrap();
    std::fs::write(&tar, archive_of(&big_image())).unwrap();
    let inner = child("crash::full_disk_child", &mount, &tar);
    // A mount namespace of its own: the tmpfs goes with the process. Needs root, or user namespaces.
    let mut command = Command::new("unshare");
    command.args([
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=1m none \"$CLOISTER_TEST_ROOT\" && exec \"$0\" \"$@\"",
    ]);
    command.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        command.env(key, value.unwrap());
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let failures: u32 =
        said.split("FAILURES ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(failures >= 5, "{said}");
}
