//! Blocks that a machine with `cloister` runs: in a folder with what their text takes for granted.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cloister_e2e::lab::{cache, debian_image, guest, target_dir};
use cloister_e2e::{Lab, pod_images};

use crate::compare;
use crate::page::{Page, documents};

/// How long one block may take, in seconds.
const PATIENCE: &str = "280";

/// A folder to run blocks in, and the programs that they name.
struct Machine {
    lab: Lab,
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine { lab: Lab::with_debian().unwrap(), folder: tempfile::tempdir().unwrap() };
        // A builder in emulation takes a minute to unpack Debian.
        let small = pod_images::archives(&[pod_images::BUSYBOX]).unwrap().remove(0);
        machine.lab.ok(&["image", "import", "busybox", "-i", &small.to_string_lossy()]).unwrap();
        let work = machine.work();
        fs::create_dir_all(work.join("site")).unwrap();
        fs::create_dir_all(machine.home().join(".local/bin")).unwrap();
        fs::write(work.join("site/index.html"), "hello\n").unwrap();
        fs::write(
            work.join("Dockerfile"),
            "FROM busybox\nRUN echo built >/built\nCMD [\"cat\", \"/built\"]\n",
        )
        .unwrap();
        symlink(debian_image("demo").unwrap(), work.join("debian.tar")).unwrap();
        // What a checkout has after `make build`.
        fs::create_dir(work.join("target")).unwrap();
        symlink(target_dir(), work.join("target/release")).unwrap();
        symlink(guest(), work.join("target/microvm")).unwrap();
        programs(&machine.folder.path().join("bin"));
        machine
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A shell for a script, at a terminal on which somebody types `exit` again and again.
    fn run(&self, script: &str) -> Result<String, String> {
        let file = self.folder.path().join("script");
        fs::write(&file, script).unwrap();
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", PATIENCE, "script", "-qec"])
            .arg(format!("bash -e {}", file.display()))
            .arg("/dev/null");
        command
            .current_dir(self.work())
            .env("HOME", self.home())
            .env("PATH", path(&self.folder.path().join("bin")));
        command
            .env("CLOISTER_ROOT", self.lab.root())
            .env("CLOISTER_KERNEL", guest())
            .env("CLOISTER_LOG", "error");
        // Where `make` has put virtiofsd and the builder, of which this home knows nothing.
        command.env("CLOISTER_CACHE", cache().unwrap());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        // Ends with the first line that nobody takes any more.
        std::thread::spawn(move || {
            while input.write_all(b"exit\n").is_ok() {
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let mut said = Vec::new();
        output.read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        match child.wait().unwrap() {
            status if status.success() => Ok(said),
            status => Err(format!("{status}: {said}")),
        }
    }

    /// Runs the blocks of a page that are to be run in this way: commands in one shell, and then what consoles show.
    fn page(&self, page: &Page, way: &str) -> usize {
        let blocks: Vec<_> = page.blocks().into_iter().filter(|block| block.is_run(way)).collect();
        let (consoles, scripts): (Vec<_>, Vec<_>) =
            blocks.iter().partition(|block| block.language == "console");
        if let Some(first) = scripts.first() {
            let script: String = scripts.iter().map(|block| block.text.as_str()).collect();
            match self.run(&script) {
                Ok(said) => eprintln!("{}\n{said}", first.place),
                Err(why) => panic!("{}: {why}", first.place),
            }
        }
        for block in consoles {
            compare::with(page, block, &self.console(&block.text));
        }
        blocks.len()
    }

    /// A console with the same commands: what they print on either output.
    fn console(&self, shown: &str) -> String {
        let mut console = String::new();
        for line in shown.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                let mut shell = Command::new("bash");
                shell.args(["-c", &format!("{command} 2>&1")]).current_dir(self.work()).stdin(Stdio::null());
                shell.env("HOME", self.home()).env("PATH", path(&self.folder.path().join("bin")));
                let output = shell.output().unwrap();
                console += &format!("{line}\n{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        console
    }
}

/// A folder with the programs under the names that documents give them.
pub fn programs(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for name in ["cloister", "cloister-node", "cloister-operator"] {
        symlink(target_dir().join(name), folder.join(name)).unwrap();
    }
    symlink(target_dir().join("cloister"), folder.join("kubectl-cloister")).unwrap();
    symlink(cache().unwrap().join("tools/kubectl/usr/bin/kubectl"), folder.join("kubectl")).unwrap();
}

/// `$PATH` with a folder first.
pub fn path(first: &Path) -> String {
    format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default())
}

fn run(way: &str) -> usize {
    let machine = Machine::new();
    let count = documents().iter().map(|page| machine.page(page, way)).sum();
    assert!(machine.lab.ok(&["ps", "--all", "--quiet"]).unwrap().is_empty(), "machines are left");
    count
}

#[test]
fn what_a_machine_is_told_works() {
    assert!(run("machine") >= 4);
}

#[test]
fn what_takes_long_works_too() {
    assert!(run("machine, long") >= 1);
}
