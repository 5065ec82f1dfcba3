//! What opens a repository, where git and ssh find it: files of nobody else, in memory, for as long as git runs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_crds::BuildReason;
use cloister_image::source::registry::http::system_bundle;
use tempfile::TempDir;

use super::address::Address;
use super::program::NOBODY;
use crate::archive::local;
use crate::trust::Trust;
use crate::{Error, Inputs, Result};

/// A file system in memory, which most machines have.
const MEMORY: &str = "/dev/shm";
/// Where nobody may have a folder of its own, for what is too large for memory: that of a build is closed to it.
const DISK: &str = "/var/tmp";
/// How the folders there begin.
pub(super) const PREFIX: &str = ".cloister-git-";
/// What is older belongs to a process that was killed: no fetch takes so long.
const STALE: Duration = Duration::from_secs(6 * 3600);
/// How ssh is run: nobody's configuration, known hosts only, one key, no questions.
const SSH: &str = "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no \
    -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none -o ForwardAgent=no \
    -o ControlMaster=no -o ControlPath=none -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
    -o ConnectTimeout=20 -o ServerAliveInterval=15 -o ServerAliveCountMax=4";

/// What a Secret holds.
#[derive(Default)]
pub(super) struct Secrets {
    /// User and password for https.
    password: Option<(String, String)>,
    /// Private key and known hosts for ssh.
    key: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Secrets {
    /// Reads what the address needs of the Secret.
    pub(super) fn read(inputs: &Inputs, secret: Option<&str>, address: &Address) -> Result<Self> {
        const FIELD: &str = "source.git.credentials";
        let Some(name) = secret else {
            if address.https {
                return Ok(Self::default());
            }
            let why = format!("{FIELD}: ssh needs a Secret with ssh-privatekey and known_hosts");
            return Err(Error::new(BuildReason::InvalidSpec, why));
        };
        if address.https {
            return Ok(Self { password: Some(inputs.password(FIELD, name)?), key: None });
        }
        let key = inputs.needed_secret(FIELD, name, "ssh-privatekey")?;
        let known = inputs.needed_secret(FIELD, name, "known_hosts")?;
        Ok(Self { password: None, key: Some((key, known)) })
    }

    /// Takes what must not be seen out of a text.
    pub(super) fn hide(&self, text: &str) -> String {
        let Some((_, password)) = self.password.as_ref().filter(|(_, password)| !password.is_empty()) else {
            return text.to_owned();
        };
        text.replace(password.as_str(), "…").replace(&escape(password), "…")
    }

    /// Writes it where git finds it when it runs for `address`.
    pub(super) fn place(&self, address: &Address, trust: &Trust, work: &Path) -> Result<Placed> {
        let memory = Path::new(MEMORY);
        let parent = if memory.is_dir() { memory } else { work };
        sweep(parent);
        let made = || -> std::io::Result<Placed> {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            let mut placed = Placed { settings: Vec::new(), ssh: None, folder };
            if let Some((user, password)) = &self.password {
                let line = format!("https://{}:{}@{}\n", escape(user), escape(password), address.host);
                let path = placed.write("credentials", line.as_bytes())?;
                let key = format!("credential.https://{}.helper", address.host);
                placed.settings.push((key, format!("store --file='{path}'")));
            }
            if let Some((key, known)) = &self.key {
                // A key whose last line does not end is none to ssh.
                let key = placed.write("key", &[key.as_slice(), b"\n"].concat())?;
                let known = placed.write("known_hosts", known)?;
                placed.ssh = Some(format!("{SSH} -i '{key}' -o UserKnownHostsFile='{known}'"));
            }
            if let Some(own) = trust.pem() {
                let system = system_bundle().map(fs::read).transpose()?.unwrap_or_default();
                let path = placed.write("ca.pem", &[&system, b"\n".as_slice(), own].concat())?;
                placed.settings.push(("http.sslCAInfo".to_owned(), path));
            }
            give(placed.folder.path())?;
            Ok(placed)
        };
        made().map_err(|error| local("handing credentials to git", &error))
    }
}

/// Files that are removed when this is dropped.
#[derive(Debug)]
pub(super) struct Placed {
    /// For git.
    pub(super) settings: Vec<(String, String)>,
    /// The command that git runs for ssh.
    pub(super) ssh: Option<String>,
    folder: TempDir,
}

impl Placed {
    /// Writes a file that only git's user can read.
    fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<String> {
        let path: PathBuf = self.folder.path().join(name);
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(bytes)?;
        give(&path)?;
        Ok(path.display().to_string())
    }
}

/// Where git's user can get to, if that is not who we are. What killed processes left there is removed.
pub(super) fn open_to_all() -> Option<&'static Path> {
    let place = Path::new(DISK);
    let found = (rustix::process::geteuid().is_root() && place.is_dir()).then_some(place);
    found.inspect(|place| sweep(place))
}

/// Makes a file or folder that of the user who runs git.
pub(super) fn give(path: &Path) -> std::io::Result<()> {
    if rustix::process::geteuid().is_root() { chown(path, Some(NOBODY), Some(NOBODY)) } else { Ok(()) }
}

/// Removes what killed processes left.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let age = || {
            entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed().unwrap_or_default())
        };
        if ours && age().is_ok_and(|age| age > STALE) {
            // Somebody else's stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Percent-encodes all but letters and digits, for a URL.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |out, byte| {
        if byte.is_ascii_alphanumeric() {
            out + &char::from(byte).to_string()
        } else {
            format!("{out}%{byte:02X}")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn passwords_are_hidden_however_they_are_written() {
        let secrets = Secrets { password: Some(("me".into(), "p@ss".into())), key: None };
        assert_eq!(secrets.hide("a p@ss b p%40ss c"), "a … b … c");
        assert_eq!(format!("{secrets:?}"), "Secrets(…)");
    }

    #[test]
    fn what_killed_processes_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        for (name, age) in
            [(".cloister-git-old", STALE * 2), (".cloister-git-new", STALE / 2), ("other", STALE * 2)]
        {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("key"), "").unwrap();
            fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
        sweep(place.path());
        let mut left: Vec<_> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".cloister-git-new", "other"]);
    }
}
