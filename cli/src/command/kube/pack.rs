//! The folder of a build as one archive: the files that a build may see, and the Dockerfile.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cloister_build::context::{Archived, Context, Patterns, archive, read_ignore_file};
use sha2::{Digest, Sha256};

/// Bytes of a Dockerfile.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// What a Dockerfile from elsewhere is called in the archive; always the same, so that the archive is.
const FOREIGN: &str = ".cloister.Dockerfile";

/// A packed folder.
#[derive(Default)]
pub struct Packed {
    /// The archive, in a file without a name.
    pub file: Option<File>,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest: "sha256:" and 64 hex digits.
    pub digest: String,
    /// Name of the Dockerfile in it.
    pub dockerfile: String,
    /// What is in it.
    pub archived: Archived,
}

/// Packs the folder; `dockerfile` is the file, `-` is standard input. Blocks.
pub fn pack(folder: &Path, dockerfile: Option<&Path>) -> Result<Packed> {
    let what = || format!("the folder {}", folder.display());
    let root = folder.canonicalize().with_context(what)?;
    ensure!(root.is_dir(), "{} is no folder", folder.display());
    let recipe = Recipe::find(&root, dockerfile)?;
    let patterns = Patterns::parse(recipe.patterns.iter().map(String::as_str))
        .with_context(|| format!("the ignore file of {}", folder.display()))?;
    let context = Context::folder(&root)?.ignoring(patterns);
    let file = tempfile::tempfile().context("cannot make a temporary file for the archive")?;
    let mut out = Hashing { out: BufWriter::with_capacity(256 << 10, file), hash: Sha256::new(), size: 0 };
    let archived = archive(&context, &recipe.more, &mut out)?;
    let Hashing { out, hash, size } = out;
    let mut file = out.into_inner().context("cannot write the archive")?;
    file.rewind()?;
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Packed {
        file: Some(file),
        size,
        digest: format!("sha256:{digest}"),
        dockerfile: recipe.name,
        archived,
    })
}

/// The Dockerfile, and what it means for the archive.
struct Recipe {
    /// Its name in the archive.
    name: String,
    /// What is left out.
    patterns: Vec<String>,
    /// Files that are not in the folder.
    more: Vec<(String, Vec<u8>)>,
}

impl Recipe {
    fn find(root: &Path, dockerfile: Option<&Path>) -> Result<Self> {
        if dockerfile == Some(Path::new("-")) {
            let mut text = Vec::new();
            io::stdin()
                .take(MAX_DOCKERFILE + 1)
                .read_to_end(&mut text)
                .context("cannot read standard input")?;
            return Self::foreign(root, text, None);
        }
        let given = dockerfile.map_or_else(|| root.join("Dockerfile"), Path::to_owned);
        let path = given.canonicalize().with_context(|| format!("the Dockerfile {}", given.display()))?;
        let own = path.with_file_name(appended(&path, ".dockerignore"));
        let Ok(inside) = path.strip_prefix(root) else {
            let text = read_up_to(&path, MAX_DOCKERFILE)?;
            return Self::foreign(root, text, own.is_file().then_some(own.as_path()));
        };
        let name = inside.to_str().with_context(|| format!("{} is not UTF-8", inside.display()))?.to_owned();
        let ignore = if own.is_file() { own } else { root.join(".dockerignore") };
        let mut patterns = patterns(&ignore)?;
        // The build needs them, whatever it may see.
        let needed = [name.clone(), format!("{name}.dockerignore"), ".dockerignore".to_owned()];
        patterns.extend(needed.iter().map(|name| format!("!{}", escaped(name))));
        Ok(Self { name, patterns, more: Vec::new() })
    }

    /// A Dockerfile that is not in the folder; steps must not see it there either.
    fn foreign(root: &Path, text: Vec<u8>, ignore: Option<&Path>) -> Result<Self> {
        ensure!(text.len() as u64 <= MAX_DOCKERFILE, "a Dockerfile has at most {MAX_DOCKERFILE} bytes");
        let beside = root.join(".dockerignore");
        let patterns = patterns(ignore.unwrap_or(&beside))?;
        let ignore_name = format!("{FOREIGN}.dockerignore");
        let mut lines = patterns.clone();
        lines.extend([FOREIGN.to_owned(), ignore_name.clone()]);
        let mut left_out = patterns;
        left_out.extend([FOREIGN.to_owned(), ignore_name.clone()]);
        let more = vec![(FOREIGN.to_owned(), text), (ignore_name, (lines.join("\n") + "\n").into_bytes())];
        Ok(Self { name: FOREIGN.to_owned(), patterns: left_out, more })
    }
}

/// The patterns of an ignore file; none when there is none.
fn patterns(path: &Path) -> Result<Vec<String>> {
    match File::open(path) {
        Ok(file) => read_ignore_file(file).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn read_up_to(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn appended(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    name.into()
}

/// A name as a pattern that means just it.
fn escaped(name: &str) -> String {
    name.chars()
        .flat_map(|c| matches!(c, '*' | '?' | '[' | '\\').then_some('\\').into_iter().chain([c]))
        .collect()
}

/// Hashes and counts what is written.
struct Hashing<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn names(packed: &Packed) -> Vec<String> {
        let mut archive = tar::Archive::new(packed.file.as_ref().unwrap());
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn what_is_ignored_stays_here_but_for_what_the_build_needs() {
        let folder =
            folder(&[("a/Dockerfile", ""), ("a/x", ""), (".dockerignore", "*\n!kept\n"), ("kept", "1")]);
        let packed = pack(folder.path(), Some(&folder.path().join("a/Dockerfile"))).unwrap();
        assert_eq!(names(&packed), [".dockerignore", "a/", "a/Dockerfile", "kept"]);
        assert_eq!(packed.dockerfile, "a/Dockerfile");
        let again = pack(folder.path(), Some(&folder.path().join("a/Dockerfile"))).unwrap();
        assert_eq!((again.digest, again.size), (packed.digest, packed.size));
    }

    #[test]
    fn a_dockerfile_s_own_ignore_file_goes_first() {
        let folder = folder(&[
            ("Dockerfile", ""),
            ("Dockerfile.dockerignore", "b\n"),
            (".dockerignore", "a\n"),
            ("a", ""),
            ("b", ""),
        ]);
        let packed = pack(folder.path(), None).unwrap();
        assert_eq!(names(&packed), [".dockerignore", "Dockerfile", "Dockerfile.dockerignore", "a"]);
    }

    #[test]
    fn a_dockerfile_from_elsewhere_comes_along_unseen() {
        let elsewhere = folder(&[("D", "FROM x\n")]);
        let folder = folder(&[(".dockerignore", "log\n"), ("log", ""), ("a", "")]);
        let packed = pack(folder.path(), Some(&elsewhere.path().join("D"))).unwrap();
        assert_eq!(names(&packed), [FOREIGN, ".cloister.Dockerfile.dockerignore", ".dockerignore", "a"]);
        assert_eq!(packed.dockerfile, FOREIGN);
        assert!(pack(folder.path(), None).is_err(), "it has no Dockerfile of its own");
    }
}
