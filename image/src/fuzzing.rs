//! An entry for fuzzers: manifests and indexes as an import reads them, from memory.

use std::collections::HashMap;

use cloister_layer::digest::Digest;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::oci::{self, BlobRef, Documents, Wish};

struct Memory(HashMap<Digest, Vec<u8>>);

impl Documents for Memory {
    fn document(&self, blob: &BlobRef, limit: u64) -> Result<Vec<u8>> {
        let content = self
            .0
            .get(&blob.digest)
            .ok_or_else(|| Error::invalid(blob.digest.to_string(), "there is no such blob"))?;
        Ok(content.iter().take(usize::try_from(limit).unwrap_or(usize::MAX)).copied().collect())
    }
}

/// Reads `data` as documents separated by zero bytes and resolves the first one.
///
/// No fuzzer guesses a digest, so documents refer to later ones by `@1` to `@9` for the digest and `"#1"` to `"#9"` for the size.
pub fn manifest(data: &[u8]) {
    let mut blobs = Memory(HashMap::new());
    let parts: Vec<&[u8]> = data.split(|byte| *byte == 0).take(10).collect();
    let mut known: Vec<Option<(String, usize)>> = vec![None; 10];
    let mut start = None;
    for (place, part) in parts.iter().enumerate().rev() {
        let mut text = String::from_utf8_lossy(part).into_owned();
        for (number, document) in known.iter().enumerate() {
            if let Some((digest, size)) = document {
                text = text
                    .replace(&format!("@{number}"), digest)
                    .replace(&format!("\"#{number}\""), &size.to_string());
            }
        }
        let digest = Digest::of(text.as_bytes());
        if let Some(slot) = known.get_mut(place) {
            *slot = Some((digest.to_string(), text.len()));
        }
        start = Some(BlobRef { digest, size: text.len() as u64, media_type: String::new() });
        blobs.0.insert(digest, text.into_bytes());
    }
    let limits = Limits::default();
    if let Some(start) = start
        && let Err(error) = oci::resolve(&blobs, &start, None, Wish { platform: None, limits: &limits })
    {
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() < 2000, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = concat!(
        r##"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"@1","size":"#1"}]}"##,
        "\0",
        r##"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@2","size":"#2","platform":{"os":"linux","architecture":"ARCH"}}]}"##,
        "\0",
        r##"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@3","size":"#3"},"layers":[]}"##,
        "\0",
        r##"{"architecture":"ARCH","os":"linux","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":[]}}"##,
    );

    fn good() -> Vec<u8> {
        GOOD.replace("ARCH", &crate::Platform::host().architecture).into_bytes()
    }

    #[test]
    fn the_corpus_seed_reaches_the_image() {
        // A harness that stops at the first document would test nothing.
        let text = String::from_utf8(good()).unwrap().replace("linux", "plan9");
        manifest(text.as_bytes());
        manifest(&good());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn damaged_documents_give_one_line(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
            let mut data = good();
            for (at, byte) in edits {
                let at = at.index(data.len());
                data[at] = byte;
            }
            manifest(&data);
            data.truncate(cut.index(data.len()));
            manifest(&data);
        }
    }
}
