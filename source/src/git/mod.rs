//! A git repository: fetched by the `git` program into a bare repository, written out by `git archive`. Nothing is ever
//! checked out, so no hook, filter or link of the repository acts on this machine.

mod address;
mod program;
mod secrets;
mod submodules;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use cloister_crds::{BuildReason, GitSource};
use cloister_image::source::registry::Reach;
use tempfile::TempDir;

use self::address::Address;
use self::program::{Ended, PROXIES, Program};
use self::secrets::{Secrets, give};
use crate::archive::{self, Kind, local};
use crate::folder::Folder;
use crate::trust::Trust;
use crate::watch::Watch;
use crate::{Error, Inputs, Limits, Result};

/// `export-ignore` and `export-subst` are for releases: a build gets what a checkout would have.
const ATTRIBUTES: &str = "* -export-ignore -export-subst\n";
/// Bytes of an answer that is a name.
const SHORT: u64 = 4 << 10;
/// Every branch and tag, where a server does not give a commit by its name alone.
const EVERYTHING: [&str; 2] = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];

/// What is needed to fetch a source.
#[derive(Debug)]
pub(crate) struct Fetch {
    address: Address,
    reference: String,
    submodules: bool,
    secrets: Secrets,
    trust: Trust,
    limits: Limits,
}

/// A repository on its way.
struct Repository<'a> {
    fetch: &'a Fetch,
    program: Program<'a>,
    folder: &'a TempDir,
}

impl Fetch {
    /// Looks at the address and reads the Secret.
    pub(crate) fn new(source: &GitSource, inputs: &Inputs) -> Result<Self> {
        let address = Address::parse(&source.url)?;
        let reference = source.reference.clone().unwrap_or_else(|| "HEAD".to_owned());
        // What begins with anything else may mean more than a name to git.
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_./+@#-".contains(&byte);
        if !reference.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            || !reference.bytes().all(known)
        {
            let why = format!("source.git.ref: {reference:?} is no name of a branch, tag or commit");
            return Err(Error::new(BuildReason::InvalidSpec, why));
        }
        let secret = source.credentials.as_ref().map(|secret| secret.name.as_str());
        Ok(Self {
            secrets: Secrets::read(inputs, secret, &address)?,
            trust: Trust::new(inputs)?,
            limits: inputs.limits,
            submodules: source.submodules,
            address,
            reference,
        })
    }

    /// Fetches into `folder` and gives the commit. Blocks.
    pub(crate) fn run(&self, folder: &mut Folder, work: &Path, watch: &Watch) -> Result<String> {
        let made = || {
            let parent = secrets::open_to_all().unwrap_or(work);
            let place = tempfile::Builder::new().prefix(secrets::PREFIX).tempdir_in(parent)?;
            fs::create_dir(place.path().join("info"))?;
            fs::write(place.path().join("info/attributes"), ATTRIBUTES)?;
            give(place.path())?;
            Ok(place)
        };
        let place = made().map_err(|error| local("making a repository", &error))?;
        let program = Program { repository: place.path().to_owned(), work, watch };
        let repository = Repository { fetch: self, program, folder: &place };
        let args = ["init", "--bare", "--quiet", "--template=", "--initial-branch=none"];
        repository.plain(args)?;
        let commit = repository.fetch(&self.address, &self.reference)?;
        repository.write_out(&commit, folder, b"")?;
        if self.submodules {
            submodules::add(&repository, &self.address, &commit, folder)?;
        }
        Ok(commit)
    }

    /// What a failed run means, from git's words.
    fn failed(&self, address: &Address, what: &str, ended: &Ended) -> Error {
        let said = self.secrets.hide(&ended.complaint);
        let has = |words: &[&str]| words.iter().any(|words| said.contains(words));
        let (reason, hint) = if ended.too_large() {
            let why = format!("source.git: {}: more than {} bytes", address.url, self.limits.packed);
            return Error::invalid(why);
        } else if has(&["Host key verification failed"]) {
            (BuildReason::AccessDenied, "the host is not in known_hosts of source.git.credentials: ")
        } else if has(&["SSL certificate", "server certificate verification", "certificate verify failed"]) {
            (BuildReason::SourceInvalid, "the server's certificate is not trusted, see spec.caBundle: ")
        } else if has(&[
            "Authentication failed",
            "Permission denied",
            "could not read Username",
            "could not read Password",
            "error: 401",
            "error: 403",
            "Access denied",
        ]) {
            (BuildReason::AccessDenied, "look at source.git.credentials: ")
        } else if has(&[
            "not our ref",
            "couldn't find remote ref",
            "not found",
            "error: 404",
            "does not exist",
            "does not appear to be a git repository",
        ]) {
            (BuildReason::SourceNotFound, "")
        } else if has(&["is not allowed", "unable to update url base from redirection"]) {
            (BuildReason::SourceInvalid, "")
        } else if has(&["error: 301", "error: 302", "error: 303", "error: 307", "error: 308"]) {
            (BuildReason::SourceInvalid, "it redirects, name the address that it leads to: ")
        } else {
            (BuildReason::SourceUnavailable, "")
        };
        Error::new(reason, format!("source.git: {what} of {}: {hint}{said}", address.url))
    }
}

impl Repository<'_> {
    /// Fetches a branch, tag or commit, and gives the commit.
    fn fetch(&self, address: &Address, reference: &str) -> Result<String> {
        let shared = address.shares(&self.fetch.address);
        let none = Secrets::default();
        let secrets = if shared { &self.fetch.secrets } else { &none };
        let mut placed = secrets.place(address, &self.fetch.trust, self.program.work)?;
        placed.settings.extend(pin(address, self.fetch.limits.reach)?);
        let run = |depth: &[&str], names: &[&str]| {
            let fixed = [
                "fetch",
                "--quiet",
                "--no-progress",
                "--no-tags",
                "--no-auto-maintenance",
                "--no-recurse-submodules",
            ];
            let place = ["--", address.url.as_str()];
            let args = fixed.iter().chain(depth).chain(&place).chain(names);
            self.program.run(args, &placed.settings, placed.ssh.as_deref(), self.room()?)
        };
        let ended = run(&["--depth=1"], &[reference])?;
        let commit = is_commit(reference);
        if ended.success() {
            return self.commit(if commit { reference } else { "FETCH_HEAD" });
        }
        let failed = self.fetch.failed(address, &format!("fetching {reference}"), &ended);
        let refused =
            ended.complaint.contains("unadvertised object") || ended.complaint.contains("not our ref");
        if !commit || !refused {
            return Err(failed);
        }
        let ended = run(&[], &EVERYTHING)?;
        if !ended.success() {
            return Err(self.fetch.failed(address, "fetching all branches", &ended));
        }
        self.commit(reference).map_err(|_| failed)
    }

    /// The commit behind a name.
    fn commit(&self, name: &str) -> Result<String> {
        let name = format!("{name}^{{commit}}");
        let text =
            self.plain(["rev-parse", "--verify", "--quiet", "--end-of-options", &name])?.text(SHORT)?;
        let commit = text.trim();
        if is_commit(commit) {
            Ok(commit.to_owned())
        } else {
            Err(Error::missing(format!("source.git: {name} is no commit")))
        }
    }

    /// Puts the files of a commit into `folder`, below `base`.
    fn write_out(&self, commit: &str, folder: &mut Folder, base: &[u8]) -> Result<()> {
        let tar = self.plain(["archive", "--format=tar", commit])?.output;
        archive::unpack(&tar, Kind::Archive, folder, base, self.program.watch)
    }

    /// A run that needs no network.
    fn plain<const N: usize>(&self, args: [&str; N]) -> Result<Ended> {
        let limits = &self.fetch.limits;
        let largest = limits.bytes.saturating_add(limits.entries.saturating_mul(1024));
        let ended = self.program.run(args, &[], None, largest)?;
        if ended.success() {
            return Ok(ended);
        }
        if ended.too_large() {
            let why = format!(
                "source.git: {} has more than {} bytes of files",
                self.fetch.address.url, limits.bytes
            );
            return Err(Error::invalid(why));
        }
        let what = args.first().copied().unwrap_or_default();
        Err(self.fetch.failed(&self.fetch.address, &format!("git {what}"), &ended))
    }

    /// Bytes that may still be fetched.
    fn room(&self) -> Result<u64> {
        let packs = fs::read_dir(self.folder.path().join("objects/pack")).into_iter().flatten().flatten();
        let used = packs.filter_map(|pack| pack.metadata().ok()).map(|data| data.len()).sum();
        self.fetch.limits.packed.checked_sub(used).filter(|left| *left > 0).ok_or_else(|| {
            let why = format!(
                "source.git: {}: more than {} bytes",
                self.fetch.address.url, self.fetch.limits.packed
            );
            Error::invalid(why)
        })
    }
}

/// Settings that keep git to the addresses of a host that may be asked: what its name stands for is looked up here, once, and
/// a redirect to another one is not followed.
fn pin(address: &Address, reach: Reach) -> Result<Vec<(String, String)>> {
    // A proxy asks in its own name, and looks names up itself.
    if reach == Reach::Anywhere
        || PROXIES.iter().any(|name| std::env::var_os(name).is_some_and(|set| !set.is_empty()))
    {
        return Ok(Vec::new());
    }
    let (host, port) = address.place();
    let addresses = reach.resolve(host, port).map_err(|error| {
        let why = format!("source.git: {}: {error}", address.url);
        if error.get_ref().is_some() { Error::invalid(why) } else { Error::unavailable(why) }
    })?;
    if !address.https {
        return Ok(Vec::new());
    }
    let text = |address: &std::net::SocketAddr| match address.ip() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let addresses = addresses.iter().map(text).collect::<Vec<_>>().join(",");
    let pinned = format!("{host}:{port}:{addresses}");
    Ok([("http.curloptResolve", pinned), ("http.followRedirects", "false".to_owned())]
        .map(|(key, value)| (key.to_owned(), value))
        .into())
}

/// A commit's whole name, of either hash.
fn is_commit(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
