//! A real systemd in a [`Cell`], process 1 of a PID namespace of its own, with the units it is given and no others.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cell::{Cell, wait_for};

/// How long systemd may take until it answers, and until it has ended.
const START: Duration = Duration::from_secs(20);
/// Seconds after which a program that was run is ended.
const LONGEST: &str = "90";

/// What comes before systemd. It changes the flags of whatever is mounted on `/sys/fs/cgroup`, so that has to be of its
/// own, and makes cgroups below the one that it finds itself in.
const PREPARE: &str = "set -e
units=$1 group=$2
mkdir -p /sys/fs/cgroup/systemd/$group
echo 0 >/sys/fs/cgroup/systemd/$group/cgroup.procs
exec unshare --cgroup --fork --pid --mount --mount-proc --propagation private --kill-child bash -c '
set -e
mount --make-rshared /
mkdir -p /run/hierarchies
mount --rbind /sys/fs/cgroup /run/hierarchies
mount --make-rprivate /run/hierarchies
mount -t tmpfs tmpfs /sys/fs/cgroup
for folder in /run/hierarchies/*/; do
  name=${folder%/} name=${name##*/}
  [ $name = systemd ] && continue
  mkdir /sys/fs/cgroup/$name
  mount --bind $folder /sys/fs/cgroup/$name
done
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount --bind $0 /etc/systemd/system
mount --bind $0/system.conf /etc/systemd/system.conf
export container=lab
exec /lib/systemd/systemd --system --unit=lab.target --show-status=no --log-target=console
' $units";

/// Accounting would make cgroups in hierarchies that are not systemd's alone.
const SYSTEM_CONF: &str = "[Manager]
DefaultCPUAccounting=no
DefaultIOAccounting=no
DefaultBlockIOAccounting=no
DefaultMemoryAccounting=no
DefaultTasksAccounting=no
";

/// What every lab has: the system bus, as Debian's units make it.
const UNITS: [(&str, &str); 3] = [
    ("lab.target", "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket dbus.service\nAfter=dbus.service\n"),
    ("dbus.socket", "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n"),
    (
        "dbus.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\nNotifyAccess=main\n\
         ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
    ),
];

/// A running systemd; dropping it ends it and its units.
pub struct Systemd<'a> {
    cell: &'a Cell,
    unshare: Child,
}

impl<'a> Systemd<'a> {
    /// Starts it with these units (file name and text), which must not have default dependencies: those would pull the
    /// machine's own units in. `folder` is for them and the log, `group` is the lab's cgroup.
    pub fn start(cell: &'a Cell, folder: &Path, group: &str, units: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("system.conf"), SYSTEM_CONF)?;
        for (name, text) in UNITS.iter().chain(units) {
            fs::write(folder.join(name), text)?;
        }
        let log = fs::File::create(folder.with_extension("log"))?;
        let mut command = Command::new("bash");
        command.args(["-c", PREPARE, "bash"]).arg(folder).arg(group);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let systemd = Self { cell, unshare: cell.spawn(&mut command)? };
        wait_for("systemd", START, || Ok(systemd.systemctl(&["is-active", "lab.target"]).ok()))
            .with_context(|| fs::read_to_string(folder.with_extension("log")).unwrap_or_default())?;
        Ok(systemd)
    }

    /// Runs `systemctl`.
    pub fn systemctl(&self, args: &[&str]) -> Result<String> {
        self.run("systemctl", args)
    }

    /// Runs a program as the units run: in systemd's namespaces.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let one = self.process().context("systemd does not run")?;
        let one = one.to_string();
        let enter = ["-k", "5", LONGEST, "nsenter", "-t", &one, "-m", "-p", "--", program];
        self.cell.run("timeout", &[&enter, args].concat())
    }

    /// systemd's number in the cell.
    fn process(&self) -> Option<u32> {
        let all = self.cell.processes().ok()?;
        all.iter()
            .find(|process| process.command.starts_with("/lib/systemd/systemd --system"))
            .map(|one| one.pid)
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.process() {
            let _ = self.cell.kill(pid, "KILL");
        }
        // Whatever is left then goes with the cell.
        if wait_for("the end of systemd", START, || Ok(self.unshare.try_wait()?)).is_err() {
            let _ = self.unshare.kill();
            let _ = self.unshare.wait();
        }
    }
}
