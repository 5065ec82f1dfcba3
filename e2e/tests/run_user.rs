//! Everything works as an ordinary user: no group, no capability, no folder of root's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use cloister_e2e::{Lab, Leftovers, lab};

/// An id that owns nothing and is in no group.
const NOBODY: u32 = 65534;

/// The parts of an installation in a folder that everyone can read, and a home that the user owns.
struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    fn new() -> Installed {
        let folder = tempfile::Builder::new().prefix("cloister-user-").tempdir().unwrap();
        let to = folder.path();
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
        let about = Lab::new().unwrap().cloister();
        fs::copy(about.get_program(), to.join("cloister")).unwrap();
        fs::copy(lab::tool("virtiofsd-1.13.2", "virtiofsd").unwrap(), to.join("virtiofsd")).unwrap();
        fs::copy(lab::debian_image("demo").unwrap(), to.join("image.tar")).unwrap();
        fs::set_permissions(to.join("image.tar"), fs::Permissions::from_mode(0o644)).unwrap();
        let kernel =
            about.get_envs().find(|(name, _)| *name == "CLOISTER_KERNEL").and_then(|(_, value)| value);
        let kernel = kernel.map_or_else(|| std::env::var_os("CLOISTER_KERNEL").unwrap(), ToOwned::to_owned);
        for part in ["vmlinux", "initramfs", "kernel.json"] {
            fs::copy(Path::new(&kernel).join(part), to.join(part)).unwrap();
        }
        fs::create_dir(to.join("home")).unwrap();
        fs::write(to.join("home/note"), "from the host\n").unwrap();
        for path in ["home", "home/note"] {
            if rustix::process::geteuid().is_root() {
                chown(to.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Installed { folder }
    }

    /// Runs `cloister` as the user, or as whoever runs the tests when that is not root.
    fn cloister(&self, args: &[&str]) -> Output {
        let here = self.folder.path();
        let mut command = Command::new("env");
        if rustix::process::geteuid().is_root() {
            let id = NOBODY.to_string();
            command = Command::new("setpriv");
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--bounding-set", "-all"]);
        }
        command.arg(here.join("cloister")).args(args).current_dir(here);
        command.env_clear().env("HOME", here.join("home")).env("CLOISTER_KERNEL", here);
        command.env("PATH", format!("{}:/usr/bin:/bin", here.display()));
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.cloister(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn an_ordinary_user_imports_runs_and_shares() {
    let installed = Installed::new();
    installed.ok(&["image", "import", "debian", "-i", "image.tar"]);
    assert!(installed.folder.path().join("home/.local/share/cloister").is_dir(), "the XDG data folder");
    installed.ok(&["run", "--rm", "debian", "true"]);

    let before = Leftovers::below(installed.folder.path()).unwrap();
    let ended = installed.cloister(&["run", "--rm", "debian", "--", "sh", "-c", "id -u; exit 9"]);
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(9), b"0\n".as_slice()));
    let share = format!("{}/home:/host", installed.folder.path().display());
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
    assert!(!installed.folder.path().join("home/note").exists(), "the share is writable");
    let new = before.new_since(installed.folder.path(), std::time::Duration::from_secs(3)).unwrap();
    assert!(new.is_empty(), "left behind: {new:?}");
}
