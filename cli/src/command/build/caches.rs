//! `--cache-from` and `--cache-to`, in docker's words: caches in registries and folders. The builder knows of neither.
//! A cache is a help: one that can't be had, or not be written, is told and fails nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use cloister_build::client::{Descriptor, Layout, Remote as Offered};
use cloister_build::job::{self, cache};
use cloister_image::source::registry::{DockerConfig, PushOptions, Remote, push};
use cloister_image::{Reference, Silent};

use super::inputs;
use crate::args::build::BuildArgs;
use crate::args::image::RegistryArgs;

/// Most bytes of a cache that is written.
const ROOM: u64 = 64 << 30;
/// The name that docker gives a cache in a folder.
const NAME: &str = "latest";

/// Where a cache is.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In a registry.
    Registry(Reference),
    /// In a folder, under a name.
    Folder(PathBuf, String),
}

/// The caches that the command line names.
#[derive(Debug, Default)]
pub struct Wanted {
    from: Vec<Place>,
    to: Vec<(Place, bool)>,
}

/// Caches that are written.
pub struct Written(Vec<(Place, Layout)>);

impl Wanted {
    /// Reads the options.
    pub fn parse(args: &BuildArgs) -> Result<Self> {
        let from = args.cache_from.iter().map(|text| from(text)).collect::<Result<_>>()?;
        Ok(Self { from, to: args.cache_to.iter().map(|text| to(text)).collect::<Result<_>>()? })
    }

    /// Opens them; what is on its way stands in `folder`.
    pub fn open(&self, folder: &Path, args: &RegistryArgs) -> Result<(job::Caches, Written)> {
        let (mut caches, mut written) = (job::Caches::default(), Vec::new());
        for place in &self.from {
            match source(place, folder, args) {
                Ok(source) => caches.from.push(source),
                Err(error) => eprintln!("cloister: no cache {place}: {error:#}"),
            }
        }
        for (number, (place, max)) in self.to.iter().enumerate() {
            let root = match place {
                Place::Folder(path, _) => path.clone(),
                Place::Registry(_) => folder.join(format!("cache-{number}")),
            };
            let layout = Layout::open(root, ROOM)?;
            caches.to.push(cache::Target { layout: layout.clone(), max: *max });
            written.push((place.clone(), layout));
        }
        Ok((caches, Written(written)))
    }
}

impl Written {
    /// Names what was written, and pushes it where it belongs. Blocks.
    pub fn publish(&self, args: &RegistryArgs) {
        for (place, layout) in &self.0 {
            if let Err(error) = publish(place, layout, args) {
                eprintln!("cloister: cache {place}: {error:#}");
            }
        }
    }
}

fn source(place: &Place, folder: &Path, args: &RegistryArgs) -> Result<cache::Source> {
    match place {
        Place::Folder(path, name) => {
            ensure!(path.join("index.json").exists(), "there is none");
            let layout = Layout::open(path, 0)?;
            let manifest = match name.parse() {
                Ok(digest) => digest,
                Err(_) => layout.find(name)?.with_context(|| format!("nothing is called {name} there"))?,
            };
            Ok(cache::Source { store: layout.into(), manifest })
        }
        Place::Registry(reference) => {
            let config = Arc::new(DockerConfig::load(args.authfile.as_deref())?);
            let remote = Remote::new(reference, config, args.ca_cert.as_deref(), args.plain_http)?;
            let store = Offered::new(remote.cache()?, folder);
            Ok(cache::Source { manifest: store.top(), store: store.into() })
        }
    }
}

fn publish(place: &Place, layout: &Layout, args: &RegistryArgs) -> Result<()> {
    let whole = layout.cache()?.context("BuildKit has written none")?;
    match place {
        Place::Folder(_, name) => {
            let top = &whole.nodes.first().context("a cache without a manifest")?.blob;
            let media_type = top.media_type.clone();
            Ok(layout.name(name, &Descriptor { media_type, digest: top.digest, size: top.size })?)
        }
        Place::Registry(reference) => {
            let options = PushOptions {
                plain_http: args.plain_http,
                ca_cert: args.ca_cert.clone(),
                authfile: args.authfile.clone(),
                ..PushOptions::default()
            };
            Ok(push(&whole, layout, reference, &options, &Silent)?)
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "{reference}"),
            Self::Folder(path, _) => write!(f, "{}", path.display()),
        }
    }
}

/// Reads a `--cache-from`.
pub fn from(text: &str) -> Result<Place> {
    // `--cache-from IMAGE` is docker's short form.
    if !text.contains('=') {
        return Ok(Place::Registry(text.parse()?));
    }
    let mut fields = inputs::fields("--cache-from", text)?;
    let name = fields.remove("digest").or(fields.remove("tag"));
    let place = place("--cache-from", text, &mut fields, "src", name)?;
    known("--cache-from", text, &fields)?;
    Ok(place)
}

/// Reads a `--cache-to`; whether every stage goes there.
pub fn to(text: &str) -> Result<(Place, bool)> {
    if !text.contains('=') {
        return Ok((Place::Registry(text.parse()?), false));
    }
    let mut fields = inputs::fields("--cache-to", text)?;
    let max = match fields.remove("mode") {
        None | Some("min") => false,
        Some("max") => true,
        Some(other) => bail!("--cache-to {text}: the mode `{other}` is not min or max"),
    };
    let tag = fields.remove("tag");
    let place = place("--cache-to", text, &mut fields, "dest", tag)?;
    known("--cache-to", text, &fields)?;
    Ok((place, max))
}

fn place(
    option: &str,
    text: &str,
    fields: &mut BTreeMap<&str, &str>,
    folder: &str,
    name: Option<&str>,
) -> Result<Place> {
    let mut field =
        |key: &str| fields.remove(key).with_context(|| format!("{option} {text}: it has no {key}="));
    match field("type")? {
        "registry" => Ok(Place::Registry(field("ref")?.parse()?)),
        "local" => Ok(Place::Folder(field(folder)?.into(), name.unwrap_or(NAME).to_owned())),
        other => bail!("{option} {text}: `{other}` is not registry or local"),
    }
}

fn known(option: &str, text: &str, left: &BTreeMap<&str, &str>) -> Result<()> {
    match left.keys().next() {
        Some(key) => bail!("{option} {text}: there is no {key}= of this type"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_named_as_docker_names_them() {
        let registry = |name: &str| Place::Registry(name.parse().unwrap());
        let local = |path: &str, name: &str| Place::Folder(path.into(), name.to_owned());
        assert_eq!(from("r.test/app:cache").unwrap(), registry("r.test/app:cache"));
        assert_eq!(from("type=registry,ref=r.test/app").unwrap(), registry("r.test/app"));
        assert_eq!(from("type=local,src=c").unwrap(), local("c", NAME));
        assert_eq!(from("type=local,src=c,tag=old").unwrap(), local("c", "old"));
        assert_eq!(to("type=registry,ref=r.test/app,mode=max").unwrap(), (registry("r.test/app"), true));
        assert_eq!(to("type=local,dest=c").unwrap(), (local("c", NAME), false));
        for bad in
            ["type=inline", "type=local,src=c", "type=gha", "ref=r.test/app", "type=local,dest=c,mode=most"]
        {
            assert!(to(bad).is_err(), "{bad}");
        }
        assert!(from("type=local,src=c,mode=max").is_err());
    }
}
