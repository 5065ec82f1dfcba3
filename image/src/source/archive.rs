//! Imports from files: docker and OCI archives (plain, gzip, zstd), OCI layout folders, standard input.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cloister_layer::digest::Digest;
use rustix::fs::{Mode, OFlags};

use super::docker::{DockerArchive, DockerImage};
use super::files::{FileLayers, Files};
use super::folder::Folder;
use super::found::Found;
use super::layout::{Layout, LayoutImage};
use super::spool::spool;
use super::tarfile::TarFile;
use super::wrapper::Wrapper;
use crate::error::{Error, IoContext, Result};
use crate::import::{self, Options};
use crate::limits::Limits;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::{ImageRecord, Store};

/// Where to read from.
pub enum Input {
    /// An archive, or a folder with an OCI layout.
    Path(PathBuf),
    /// The process's standard input; read in place when it is a file.
    Stdin,
    /// Any other stream, and what to call it in messages.
    Stream(Box<dyn Read + Send>, String),
}

/// Which of the images to take and what to call it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The name to give. `None`: the names the archive has, and all its images.
    pub name: Option<Reference>,
    /// Which image of an archive with several: one of its names, or its digest. `None`: the only one, or the one called `name`.
    pub select: Option<String>,
    /// Platform, bounds, build information.
    pub options: Options,
}

/// Imports images from `input` into `store`.
///
/// # Errors
/// Nothing is published under any name when the image that has it cannot be imported as a whole. Of several images in one
/// archive, those before the bad one stay.
pub fn import(
    store: &Store,
    input: Input,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Vec<ImageRecord>> {
    let limits = &request.options.limits;
    let temp = store.temp()?;
    let files: Box<dyn Files> = match open(input)? {
        Opened::Folder(folder) => Box::new(folder),
        Opened::Seekable(file, name) => Box::new(TarFile::scan(file, &name, limits.archive_entries)?),
        Opened::Stream(stream, name) => {
            let file = spool(stream, &name, &temp, limits)?;
            Box::new(TarFile::scan(file, &name, limits.archive_entries)?)
        }
    };
    let layers = FileLayers(&*files);
    // A recent `docker save` writes both; the OCI side has the image's real manifest.
    if let Some(layout) = Layout::open(&*files, limits)? {
        let images = choose(layout.images()?, request, files.name())?;
        return each(images, request, |image: &LayoutImage, names| {
            let plan = layout.plan(image, request.options.platform.as_ref())?;
            import::import(store, &layers, plan, names, &request.options, progress)
        });
    }
    if let Some(archive) = DockerArchive::open(&*files, limits)? {
        let images = choose(archive.images()?, request, files.name())?;
        return each(images, request, |image: &DockerImage, names| {
            let plan = archive.plan(image)?;
            if let Some(wanted) = &request.options.platform
                && wanted.score(&plan.config.platform).is_none()
            {
                return Err(Error::invalid(
                    files.name(),
                    format!("no image for {wanted}; offered: {}", plan.config.platform),
                ));
            }
            import::import(store, &layers, plan, names, &request.options, progress)
        });
    }
    Err(Error::invalid(
        files.name(),
        "neither an OCI layout (oci-layout and index.json) nor a docker archive (manifest.json)",
    ))
}

/// The digest of the only image (its manifest or index) of an OCI archive that is not compressed as a whole, or of an OCI
/// layout folder. Reads no more than that takes.
///
/// # Errors
/// When there is not exactly one image, or it can't be found without unpacking.
pub fn digest(path: &Path) -> Result<Digest> {
    let limits = Limits::default();
    let files: Box<dyn Files> = match open(Input::Path(path.to_owned()))? {
        Opened::Folder(folder) => Box::new(folder),
        Opened::Seekable(file, name) => Box::new(TarFile::scan(file, &name, limits.archive_entries)?),
        Opened::Stream(_, name) => {
            return Err(Error::invalid(name, "compressed as a whole: unpack it first"));
        }
    };
    let images = match Layout::open(&*files, &limits)? {
        Some(layout) => layout.images()?,
        None => return Err(Error::invalid(files.name(), "no OCI layout (oci-layout and index.json)")),
    };
    match images.as_slice() {
        [image] => image.id().parse().map_err(|_| Error::invalid(image.title(), "not a sha256 digest")),
        images => Err(Error::invalid(files.name(), format!("{} images where one is expected", images.len()))),
    }
}

enum Opened {
    Folder(Folder),
    Seekable(File, String),
    Stream(Box<dyn Read + Send>, String),
}

fn open(input: Input) -> Result<Opened> {
    let (file, name) = match input {
        Input::Stream(stream, name) => return Ok(Opened::Stream(stream, name)),
        Input::Path(path) if path.is_dir() => return Ok(Opened::Folder(Folder::open(&path)?)),
        Input::Path(path) => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (
                File::from(rustix::fs::open(&path, flags, Mode::empty()).at("open", &path)?),
                path.display().to_string(),
            )
        }
        Input::Stdin => {
            let path = Path::new("standard input");
            (
                File::from(std::io::stdin().as_fd().try_clone_to_owned().at("read", path)?),
                path.display().to_string(),
            )
        }
    };
    let path = Path::new(&name).to_owned();
    if file.metadata().at("read", &path)?.is_file() && (&file).stream_position().at("read", &path)? == 0 {
        let mut head = [0; 8];
        let n = std::os::unix::fs::FileExt::read_at(&file, &mut head, 0).at("read", &path)?;
        if Wrapper::detect(&head[..n], &name)? == Wrapper::Plain {
            return Ok(Opened::Seekable(file, name));
        }
    }
    Ok(Opened::Stream(Box::new(file), name))
}

/// Picks the images meant by the request.
fn choose<T>(mut images: Vec<Found<T>>, request: &Request, archive: &str) -> Result<Vec<Found<T>>> {
    if images.is_empty() {
        return Err(Error::invalid(archive, "the archive holds no image"));
    }
    let titles: Vec<String> = images.iter().map(Found::title).collect();
    let wanted = match (&request.select, &request.name) {
        (Some(select), _) => select.clone(),
        (None, Some(name)) if images.len() > 1 => name.to_string(),
        _ => return Ok(images),
    };
    images.retain(|image| image.is(&wanted));
    if images.len() == 1 {
        return Ok(images);
    }
    if images.is_empty() {
        return Err(Error::invalid(
            archive,
            format!("no image called {wanted}; it holds {}", titles.join(", ")),
        ));
    }
    Err(Error::Ambiguous { text: wanted, candidates: titles })
}

/// Imports the chosen images one after the other.
fn each<T>(
    images: Vec<Found<T>>,
    request: &Request,
    mut import: impl FnMut(&T, &[Reference]) -> Result<Vec<ImageRecord>>,
) -> Result<Vec<ImageRecord>> {
    let mut records = Vec::new();
    for found in &images {
        let names = match &request.name {
            Some(name) => vec![name.clone()],
            None => found.names.clone(),
        };
        if names.is_empty() {
            return Err(Error::invalid(
                found.title(),
                "the archive gives this image no name; say which to give it",
            ));
        }
        records.extend(import(&found.image, &names)?);
    }
    Ok(records)
}
