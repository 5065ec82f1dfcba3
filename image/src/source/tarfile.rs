//! Files of a tar archive, read where they lie.
//!
//! Nothing is extracted: names are keys to look up, so a hostile name harms nobody. Formats: POSIX ustar and pax
//! (IEEE 1003.1 `pax`), GNU long names (tar manual, "Basic Tar Format").

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::files::{Files, Section};
use crate::error::{Error, Result};

const BLOCK: u64 = 512;
/// Longest pax header or GNU long name, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;
/// Links followed before we call it a loop.
const MAX_LINKS: usize = 8;

/// The entries of a tar archive by normalised name.
#[derive(Debug)]
pub(crate) struct TarFile {
    file: Arc<File>,
    name: String,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    /// Normalised name of another entry.
    Link(String),
}

impl TarFile {
    /// Reads all headers of `file`.
    pub(crate) fn scan(file: File, name: &str, max_entries: usize) -> Result<Self> {
        let fail = |why: String| Error::invalid(name, why);
        let end = file.metadata().map_err(|error| fail(error.to_string()))?.len();
        let mut entries = HashMap::new();
        let mut count = 0;
        let mut at = 0;
        let mut extension = Extension::default();
        while at < end {
            let mut header = [0; BLOCK as usize];
            file.read_exact_at(&mut header, at)
                .map_err(|error| fail(format!("header at byte {at}: {error}")))?;
            if header.iter().all(|byte| *byte == 0) {
                break;
            }
            let header = tar::Header::from_byte_slice(&header);
            check(header).ok_or_else(|| fail(format!("not a tar archive: bad header at byte {at}")))?;
            let kind = header.entry_type();
            let stated = header.entry_size().map_err(|error| fail(format!("size at byte {at}: {error}")))?;
            let size = if kind.is_file() { extension.size.unwrap_or(stated) } else { stated };
            let data = at + BLOCK;
            let next = data.checked_add(size).filter(|next| *next <= end).ok_or_else(|| {
                fail(format!("truncated: an entry at byte {at} ends behind the end of the archive"))
            })?;
            at = next.div_ceil(BLOCK) * BLOCK;
            if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
                if size > MAX_EXTENSION {
                    return Err(fail(format!(
                        "a name of {size} bytes is more than the limit of {MAX_EXTENSION}"
                    )));
                }
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                file.read_exact_at(&mut bytes, data).map_err(|error| fail(error.to_string()))?;
                extension
                    .add(kind, &bytes)
                    .ok_or_else(|| fail(format!("bad extended header at byte {data}")))?;
                continue;
            }
            let extension = std::mem::take(&mut extension);
            if kind.is_pax_global_extensions() {
                continue;
            }
            count += 1;
            if count > max_entries {
                return Err(Error::Limit {
                    subject: name.to_owned(),
                    got: count as u64,
                    limit: max_entries as u64,
                    unit: "entries",
                });
            }
            let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
            let Some(key) = normalise("", &path) else { continue };
            let target = || {
                extension
                    .link
                    .clone()
                    .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                    .unwrap_or_default()
            };
            let entry = if kind.is_file() || kind == tar::EntryType::Continuous {
                Some(Entry::File { offset: data, size })
            } else if kind.is_symlink() {
                let parent = key.rsplit_once('/').map_or("", |(parent, _)| parent);
                normalise(parent, &target()).map(Entry::Link)
            } else if kind.is_hard_link() {
                normalise("", &target()).map(Entry::Link)
            } else {
                None
            };
            // Of two entries with one name the later wins, as when extracting.
            match entry {
                Some(entry) => entries.insert(key, entry),
                None => entries.remove(&key),
            };
        }
        Ok(Self { file: Arc::new(file), name: name.to_owned(), entries })
    }
}

impl Files for TarFile {
    fn open(&self, path: &str) -> Result<Option<Section>> {
        let Some(mut key) = normalise("", path.as_bytes()) else { return Ok(None) };
        for _ in 0..=MAX_LINKS {
            match self.entries.get(&key) {
                None => return Ok(None),
                Some(Entry::File { offset, size }) => {
                    return Ok(Some(Section::new(Arc::clone(&self.file), *offset, *size)));
                }
                Some(Entry::Link(target)) => key.clone_from(target),
            }
        }
        Err(Error::invalid(&self.name, format!("{} is a loop of links", crate::oci::short(path))))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// What pax and GNU headers say about the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extension {
    fn add(&mut self, kind: tar::EntryType, bytes: &[u8]) -> Option<()> {
        let text = || bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        if kind.is_gnu_longname() {
            self.path = Some(text());
        } else if kind.is_gnu_longlink() {
            self.link = Some(text());
        } else {
            for record in tar::PaxExtensions::new(bytes) {
                let record = record.ok()?;
                match record.key_bytes() {
                    b"path" => self.path = Some(record.value_bytes().to_vec()),
                    b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                    b"size" => self.size = Some(record.value().ok()?.parse().ok()?),
                    _ => {}
                }
            }
        }
        Some(())
    }
}

/// Checks the header's own sum.
fn check(header: &tar::Header) -> Option<()> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) })
        .sum();
    (header.cksum().ok()? == sum).then_some(())
}

/// `path` seen from the folder `base`, without `.` and empty parts; `None` when it leads out or is not UTF-8.
fn normalise(base: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    fn scan(bytes: &[u8]) -> Result<TarFile> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TarFile::scan(file, "test.tar", 1000)
    }

    #[test]
    fn files_and_links_are_found_by_any_spelling() {
        let long = format!("{}/layer.tar", "d".repeat(200));
        let bytes = archive(|b| {
            add(b, "a/layer.tar", b"one");
            add(b, &long, b"long");
            link(b, tar::EntryType::Symlink, "b/layer.tar", "../a/layer.tar");
            link(b, tar::EntryType::Link, "c/layer.tar", "a/layer.tar");
        });
        let tar = scan(&bytes).unwrap();
        for path in ["a/layer.tar", "./a/layer.tar", "b/layer.tar", "c/layer.tar"] {
            assert_eq!(tar.read(path, 10).unwrap(), b"one", "{path}");
        }
        assert_eq!(tar.read(&long, 10).unwrap(), b"long");
        assert!(tar.open("none").unwrap().is_none());
    }

    #[test]
    fn loops_and_escapes_lead_nowhere() {
        let bytes = archive(|b| {
            link(b, tar::EntryType::Symlink, "x", "y");
            link(b, tar::EntryType::Symlink, "y", "x");
            link(b, tar::EntryType::Symlink, "out", "../../etc/passwd");
            link(b, tar::EntryType::Symlink, "abs", "/etc/passwd");
        });
        let tar = scan(&bytes).unwrap();
        assert!(tar.open("x").unwrap_err().to_string().contains("loop"));
        assert!(tar.open("out").unwrap().is_none());
        assert!(tar.open("abs").unwrap().is_none());
        assert!(tar.open("../x").unwrap().is_none());
    }

    #[test]
    fn truncated_archives_and_other_files_are_refused() {
        let bytes = archive(|b| add(b, "a", &[7; 5000]));
        assert!(scan(&bytes[..3000]).unwrap_err().to_string().contains("truncated"));
        assert!(scan(b"hello").is_err());
        assert!(scan(&[1; 1024]).unwrap_err().to_string().contains("not a tar archive"));
        assert!(scan(&[]).unwrap().open("a").unwrap().is_none());
    }

    #[test]
    fn too_many_entries_are_refused() {
        let bytes = archive(|b| (0..1001).for_each(|i| add(b, &format!("f{i}"), b"")));
        assert!(scan(&bytes).unwrap_err().to_string().contains("entries"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_answer(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000), at in 0usize..3000) {
            let mut good = archive(|b| { add(b, "a", b"x"); link(b, tar::EntryType::Symlink, "b", "a"); });
            if let (Some(slot), Some(byte)) = (good.get_mut(at), bytes.pop()) { *slot = byte; }
            let _ = scan(&good).map(|tar| tar.open("b").map(drop));
            let _ = scan(&bytes).map(|tar| tar.open("a").map(drop));
        }
    }
}
