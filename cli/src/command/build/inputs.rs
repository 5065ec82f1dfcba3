//! What a build is given: the Dockerfile, arguments, secrets, agents, and where the result goes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cloister_build::client::{Secret, Secrets, SshAgents};

use crate::args::build::BuildArgs;

/// Bytes of a Dockerfile.
const MAX_DOCKERFILE: u64 = 4 << 20;

/// Everything of the command line that has to be read or looked up.
pub struct Inputs {
    /// The Dockerfile under its name, and the ignore file that belongs to it.
    pub dockerfile: Vec<(String, Vec<u8>)>,
    /// Arguments by name.
    pub args: BTreeMap<String, String>,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Secrets by id.
    pub secrets: Secrets,
    /// SSH agents by id.
    pub agents: SshAgents,
    /// Where the result goes.
    pub out: Destination,
}

/// Where the result goes; a file that is `None` is standard output.
#[derive(Debug, PartialEq, Eq)]
pub enum Destination {
    /// The node-local store.
    Store,
    /// An OCI archive.
    Oci(Option<PathBuf>),
    /// A docker archive.
    Docker(Option<PathBuf>),
    /// The root filesystem as a tar.
    Tar(Option<PathBuf>),
    /// The root filesystem as a folder.
    Local(PathBuf),
}

impl Inputs {
    /// Reads it all.
    pub fn read(args: &BuildArgs) -> Result<Self> {
        let out = args.out.as_deref().map_or(Ok(Destination::Store), destination)?;
        if args.tags.is_empty() && out == Destination::Store {
            bail!("the image needs a name: -t NAME (or write it as a file with -o)");
        }
        for tag in &args.tags {
            let name: cloister_image::Reference = tag.parse()?;
            anyhow::ensure!(
                name.digest().is_none(),
                "-t {tag}: a digest comes out of a build, it can't be given"
            );
        }
        let mut secrets = Secrets::default();
        for text in &args.secrets {
            let (id, secret) = secret(text)?;
            secrets = secrets.with(id, secret);
        }
        let mut agents = SshAgents::default();
        for text in &args.ssh {
            let (id, socket) = text.split_once('=').unwrap_or((text, ""));
            let socket = match socket {
                "" => std::env::var("SSH_AUTH_SOCK").context("--ssh: SSH_AUTH_SOCK is not set")?,
                socket => socket.to_owned(),
            };
            agents = agents.with(id, socket);
        }
        Ok(Self {
            dockerfile: dockerfile(args)?,
            args: pairs("--build-arg", &args.build_args, true)?,
            labels: pairs("--label", &args.labels, false)?,
            secrets,
            agents,
            out,
        })
    }

    /// The Dockerfile's text.
    pub fn dockerfile_text(&self) -> String {
        self.dockerfile
            .first()
            .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
            .unwrap_or_default()
    }
}

fn dockerfile(args: &BuildArgs) -> Result<Vec<(String, Vec<u8>)>> {
    if args.file.as_deref() == Some(Path::new("-")) {
        let mut text = Vec::new();
        std::io::stdin().take(MAX_DOCKERFILE).read_to_end(&mut text).context("cannot read standard input")?;
        return Ok(vec![("Dockerfile".to_owned(), text)]);
    }
    let path = args.file.clone().unwrap_or_else(|| args.context.join("Dockerfile"));
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(text.len() as u64 <= MAX_DOCKERFILE, "{} is too large for a Dockerfile", path.display());
    let name =
        path.file_name().and_then(|name| name.to_str()).context("the Dockerfile has no name in UTF-8")?;
    let mut files = vec![(name.to_owned(), text)];
    // It goes before the context's own.
    let ignore = format!("{name}.dockerignore");
    if let Ok(text) = std::fs::read(path.with_file_name(&ignore)) {
        files.push((ignore, text));
    }
    Ok(files)
}

/// `KEY=VALUE`s; without a value it is this process's, if it has one and `inherit` says so.
pub fn pairs(option: &str, given: &[String], inherit: bool) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for text in given {
        match text.split_once('=') {
            Some(("", _)) => bail!("{option} {text}: there is no name before the ="),
            Some((key, value)) => drop(all.insert(key.to_owned(), value.to_owned())),
            None if inherit => {
                if let Ok(value) = std::env::var(text) {
                    all.insert(text.clone(), value);
                }
            }
            None => drop(all.insert(text.clone(), String::new())),
        }
    }
    Ok(all)
}

/// The fields of `key=value,key=value`.
pub fn fields<'a>(option: &str, text: &'a str) -> Result<BTreeMap<&'a str, &'a str>> {
    text.split(',')
        .map(|field| {
            field.split_once('=').with_context(|| format!("{option} {text}: `{field}` is not KEY=VALUE"))
        })
        .collect()
}

fn secret(text: &str) -> Result<(String, Secret)> {
    let fields = fields("--secret", text)?;
    let get = |keys: &[&str]| keys.iter().find_map(|key| fields.get(key).copied());
    let id = get(&["id"]).with_context(|| format!("--secret {text}: it has no id"))?;
    let file = get(&["src", "source"]);
    let secret = match (file, get(&["env"])) {
        (Some(_), Some(_)) => bail!("--secret {text}: src and env exclude each other"),
        (Some(path), None) => Secret::file(Path::new(path))?,
        (None, Some(name)) => Secret::env(name)?,
        // As docker does: a variable of the id's name, else a file.
        (None, None) if std::env::var_os(id).is_some() => Secret::env(id)?,
        (None, None) => Secret::file(Path::new(id))?,
    };
    Ok((id.to_owned(), secret))
}

fn destination(text: &str) -> Result<Destination> {
    // `-o FOLDER` is docker's short form of a local one.
    if !text.contains('=') {
        return Ok(if text == "-" { Destination::Tar(None) } else { Destination::Local(text.into()) });
    }
    let fields = fields("-o", text)?;
    let dest = fields.get("dest").copied();
    let file = match dest {
        None | Some("-") => None,
        Some(path) => Some(PathBuf::from(path)),
    };
    Ok(match fields.get("type").copied() {
        Some("oci") => Destination::Oci(file),
        Some("docker") => Destination::Docker(file),
        Some("tar") => Destination::Tar(file),
        Some("local") => {
            Destination::Local(file.with_context(|| format!("-o {text}: a folder needs dest="))?)
        }
        Some(other) => bail!("-o {text}: `{other}` is not oci, docker, local or tar"),
        None => bail!("-o {text}: it has no type"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_named_as_docker_names_them() {
        let out = |text| destination(text).unwrap();
        assert_eq!(out("type=oci,dest=a.tar"), Destination::Oci(Some("a.tar".into())));
        assert_eq!(out("type=docker"), Destination::Docker(None));
        assert_eq!(out("type=tar,dest=-"), Destination::Tar(None));
        assert_eq!(out("out"), Destination::Local("out".into()));
        assert_eq!(out("-"), Destination::Tar(None));
        for bad in ["type=local", "type=image", "dest=a", "type=oci,dest"] {
            assert!(destination(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_come_from_files_or_variables() {
        let file = std::env::temp_dir().join(format!("cloister-secret-{}", std::process::id()));
        std::fs::write(&file, "hunter2").unwrap();
        let expected = Secret::bytes("hunter2").unwrap();
        assert_eq!(secret(&format!("id=a,src={}", file.display())).unwrap(), ("a".to_owned(), expected));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(secret("id=p,env=PATH").unwrap().1, Secret::env("PATH").unwrap());
        for bad in ["", "a", "src=/x", "id=a,src=/x,env=Y", "id=a,src=/nowhere/at/all"] {
            assert!(secret(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_without_a_value_are_this_process_s() {
        let given = ["A=1=2".to_owned(), "PATH".to_owned(), "CLOISTER_SURELY_UNSET".to_owned()];
        let all = pairs("--build-arg", &given, true).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all["A"].as_str(), &all["PATH"]), ("1=2", &std::env::var("PATH").unwrap()));
        assert!(pairs("--label", &["=x".to_owned()], false).is_err());
    }
}
