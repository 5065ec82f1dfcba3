//! The Dockerfile of a context, and the ignore file that belongs to it.

use std::io;

use cloister_build::context::Context;
use cloister_crds::BuildReason;

use crate::{Error, Result};

/// Bytes of a Dockerfile, and of an ignore file.
const MAX: u64 = 4 << 20;

/// The Dockerfile under its last name, and `NAME.dockerignore` beside it, which goes before the context's own. Blocks.
pub(crate) fn read(context: &Context, path: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let bad =
        |why: &str| Error::new(BuildReason::DockerfileInvalid, format!("spec.dockerfile: {path:?} {why}"));
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let text = context.read(path, MAX).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => bad("is not in the source"),
        io::ErrorKind::InvalidInput => bad("is not a file"),
        io::ErrorKind::FileTooLarge => bad("is larger than 4 MiB"),
        _ => bad(&format!("can't be read: {error}")),
    })?;
    let mut files = vec![(name.to_owned(), text)];
    let ignore = format!("{path}.dockerignore");
    match context.read(&ignore, MAX) {
        Ok(text) => files.push((format!("{name}.dockerignore"), text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let why = format!("can't be read: {error}");
            return Err(Error::new(
                BuildReason::DockerfileInvalid,
                format!("{ignore:?} of the source {why}"),
            ));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignore_file_beside_the_dockerfile_goes_with_it() {
        let files = ["a/Dockerfile", "a/Dockerfile.dockerignore", "b/x", ".dockerignore"];
        let files = files.map(|name| (name.to_owned(), name.as_bytes().to_vec()));
        let context = Context::inline(files).unwrap();
        let found = read(&context, "a/Dockerfile").unwrap();
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Dockerfile", "Dockerfile.dockerignore"]);
        assert_eq!(read(&context, "b/x").unwrap().len(), 1);
        for bad in ["none", "a", "b/x/y"] {
            assert_eq!(read(&context, bad).unwrap_err().reason(), BuildReason::DockerfileInvalid, "{bad}");
        }
    }
}
