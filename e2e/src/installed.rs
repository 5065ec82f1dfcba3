//! An installation for an ordinary user: no group, no capability, no folder of root's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::{Lab, lab};

/// An id that owns nothing and is in no group.
const NOBODY: u32 = 65534;

/// The parts of an installation in a folder that everyone can read, and a home that the user owns.
pub struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    /// With `image.tar` and a home with a note.
    pub fn new(image: &Path) -> Installed {
        let folder = tempfile::Builder::new().prefix("cloister-user-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let installed = Installed { folder };
        let about = Lab::new().unwrap().cloister();
        installed.add(about.get_program().as_ref(), "cloister");
        installed.add(&lab::tool("virtiofsd-1.13.2", "virtiofsd").unwrap(), "virtiofsd");
        installed.add(image, "image.tar");
        let kernel =
            about.get_envs().find(|(name, _)| *name == "CLOISTER_KERNEL").and_then(|(_, value)| value);
        let kernel = kernel.map_or_else(|| std::env::var_os("CLOISTER_KERNEL").unwrap(), ToOwned::to_owned);
        for part in ["vmlinux", "initramfs", "kernel.json"] {
            installed.add(&Path::new(&kernel).join(part), part);
        }
        let to = installed.folder();
        fs::create_dir(to.join("home")).unwrap();
        fs::write(to.join("home/note"), "from the host\n").unwrap();
        for path in ["home", "home/note"] {
            if rustix::process::geteuid().is_root() {
                chown(to.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        installed
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Copies a file into the folder, for everyone to read.
    pub fn add(&self, file: &Path, name: &str) {
        let to = self.folder().join(name);
        fs::copy(file, &to).unwrap();
        let mode = fs::metadata(&to).unwrap().permissions().mode();
        fs::set_permissions(&to, fs::Permissions::from_mode(mode | 0o444)).unwrap();
    }

    /// `cloister` as the user, or as whoever runs the tests when that is not root.
    pub fn cloister(&self, args: &[&str]) -> Command {
        let here = self.folder();
        let mut command = Command::new("env");
        if rustix::process::geteuid().is_root() {
            let id = NOBODY.to_string();
            command = Command::new("setpriv");
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--bounding-set", "-all"]);
        }
        command.arg(here.join("cloister")).args(args).current_dir(here);
        command.env_clear().env("HOME", here.join("home")).env("CLOISTER_KERNEL", here);
        command.env("PATH", format!("{}:/usr/bin:/bin", here.display()));
        command
    }

    /// Runs it, which must succeed, and gives its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.cloister(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
