//! Everything works as an ordinary user: no group, no capability, no folder of root's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use cloister_e2e::installed::Installed;
use cloister_e2e::{Leftovers, lab};

#[test]
fn an_ordinary_user_imports_runs_and_shares() {
    let installed = Installed::new(&lab::debian_image("demo").unwrap());
    installed.ok(&["image", "import", "debian", "-i", "image.tar"]);
    assert!(installed.folder().join("home/.local/share/cloister").is_dir(), "the XDG data folder");
    installed.ok(&["run", "--rm", "debian", "true"]);

    let before = Leftovers::below(installed.folder()).unwrap();
    let ended =
        installed.cloister(&["run", "--rm", "debian", "--", "sh", "-c", "id -u; exit 9"]).output().unwrap();
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(9), b"0\n".as_slice()));
    let share = format!("{}/home:/host", installed.folder().display());
    let told = installed.ok(&[
        "run",
        "--rm",
        "-v",
        &share,
        "debian",
        "--",
        "sh",
        "-c",
        "cat /host/note; rm /host/note",
    ]);
    assert_eq!(told, "from the host\n");
    assert!(!installed.folder().join("home/note").exists(), "the share is writable");
    let new = before.new_since(installed.folder(), std::time::Duration::from_secs(3)).unwrap();
    assert!(new.is_empty(), "left behind: {new:?}");
}
