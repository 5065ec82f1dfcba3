//! An OCI archive (image-spec `image-layout.md`, in a tar) from a guest into containerd's content store, as it arrives.
//!
//! Blobs come before the index that explains them, so each is written under the digest that is its name. Every byte is
//! hashed here as well: containerd does not read a blob that it has already, and who may name a blob without having it
//! could build an image out of other people's layers.

use std::collections::BTreeMap;

use cloister_image::{BlobRef, Digest};
use cloister_layer::digest::Hasher;
use serde::Deserialize;
use tokio::io::AsyncRead;

use super::tar::{Entry, Kind, Reader, bad, short};
use crate::containerd::scope::Scope;
use crate::error::{Error, Result};

/// Most blobs of an archive.
const MAX_BLOBS: usize = 4096;
/// Entries besides: three folders, three documents.
const MAX_OTHERS: usize = 16;
/// Bytes of `index.json` and of Docker's `manifest.json`.
const MAX_INDEX: u64 = 4 << 20;
/// Bytes of `oci-layout`.
const MAX_MARKER: u64 = 4096;
/// Bytes handed to containerd at a time.
const PIECE: usize = 1 << 20;

/// What an archive held; its blobs are in the content store, kept by the lease of the scope.
#[derive(Debug)]
pub struct Received {
    /// Blobs by digest, with their sizes in bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// The one image.
    pub top: BlobRef,
}

/// Reads the whole archive. `unique` names what is written and not yet complete.
pub async fn receive(
    scope: &Scope,
    unique: &str,
    from: impl AsyncRead + Unpin,
    limit: u64,
    claimed: &Digest,
) -> Result<Received> {
    let mut reader = Reader::new(from, limit);
    let (mut blobs, mut others) = (BTreeMap::new(), 0);
    let (mut index, mut marker) = (None, None);
    while let Some(entry) = reader.next().await? {
        let path = entry.path.strip_prefix("./").unwrap_or(&entry.path).trim_end_matches('/');
        let blob = path.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
        match (entry.kind, path, blob) {
            (Kind::File, _, Some(digest)) => {
                if blobs.len() == MAX_BLOBS {
                    return Err(bad(format!("more than {MAX_BLOBS} blobs")));
                }
                if blobs.insert(digest, entry.size).is_some() {
                    return Err(bad(format!("blob {digest} is there twice")));
                }
                store(scope, unique, &mut reader, digest, entry.size).await?;
                continue;
            }
            (Kind::Folder, "" | "." | "blobs" | "blobs/sha256", _) => {}
            (Kind::File, "index.json", _) if index.is_none() => {
                index = Some(reader.content(&entry, MAX_INDEX).await?);
            }
            (Kind::File, "oci-layout", _) if marker.is_none() => {
                marker = Some(reader.content(&entry, MAX_MARKER).await?);
            }
            // For Docker, which is not asked.
            (Kind::File, "manifest.json", _) if entry.size <= MAX_INDEX => {}
            _ => return Err(unexpected(&entry)),
        }
        others += 1;
        if others > MAX_OTHERS {
            return Err(unexpected(&entry));
        }
    }
    check_marker(&marker.ok_or_else(|| bad("no oci-layout: not an OCI archive".into()))?)?;
    let top = only_image(&index.ok_or_else(|| bad("no index.json".into()))?, claimed)?;
    Ok(Received { blobs, top })
}

/// One blob.
async fn store<R: AsyncRead + Unpin>(
    scope: &Scope,
    unique: &str,
    reader: &mut Reader<R>,
    digest: Digest,
    size: u64,
) -> Result<()> {
    let name = format!("{unique}-{}", digest.hex());
    let mut writer = scope.writer(&name, &digest, size).await?;
    let copy = async {
        let mut hasher = Hasher::new();
        let mut at = 0;
        loop {
            let mut piece = Vec::new();
            reader.piece(&mut piece, PIECE).await?;
            if piece.is_empty() {
                break;
            }
            hasher.update(&piece);
            let end = at + piece.len() as u64;
            // Of a blob that was removed a moment ago, or that another namespace has, containerd has the bytes.
            if let Some(writer) = &mut writer
                && writer.offset() < end
            {
                piece.drain(..writer.offset().saturating_sub(at) as usize);
                writer.write(piece).await?;
            }
            at = end;
        }
        let got = hasher.finish();
        if got != digest {
            return Err(bad(format!("blob {digest}: its content has digest {got}")));
        }
        Ok(())
    };
    let copied = copy.await;
    match (copied, writer) {
        (Ok(()), Some(writer)) => writer.commit().await,
        (Ok(()), None) => Ok(()),
        (Err(error), writer) => {
            drop(writer);
            let _ = scope.abort(&name).await;
            Err(error)
        }
    }
}

fn unexpected(entry: &Entry) -> Error {
    bad(format!("unexpected entry {}", short(&entry.path)))
}

fn check_marker(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker =
        serde_json::from_slice(bytes).map_err(|error| bad(format!("oci-layout: {error}")))?;
    match marker.image_layout_version.as_str() {
        "1.0.0" => Ok(()),
        other => Err(bad(format!("layout version {} is not 1.0.0", short(other)))),
    }
}

/// The image that `index.json` lists, under however many names; it has to be the one that was claimed.
fn only_image(bytes: &[u8], claimed: &Digest) -> Result<BlobRef> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Entry>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry {
        media_type: String,
        digest: Digest,
        size: u64,
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|error| bad(format!("index.json: {error}")))?;
    let mut tops = index.manifests.into_iter();
    let first = tops.next().ok_or_else(|| bad("index.json lists no image".into()))?;
    let top = BlobRef { digest: first.digest, size: first.size, media_type: first.media_type };
    if top.digest != *claimed {
        return Err(bad(format!("it holds image {}, but the build said {claimed}", top.digest)));
    }
    match tops.find(|entry| entry.digest != top.digest) {
        Some(other) => Err(bad(format!("a second image, {}", other.digest))),
        None => Ok(top),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_claimed_image_is_taken() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let entry = |digest: &Digest| format!(r#"{{"mediaType":"m","digest":"{digest}","size":1}}"#);
        let index = |entries: &[String]| format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
        let twice = index(&[entry(&a), entry(&a)]);
        assert_eq!(only_image(twice.as_bytes(), &a).unwrap().digest, a);
        for (entries, why) in [
            (vec![entry(&b)], "but the build said"),
            (vec![entry(&a), entry(&b)], "a second image"),
            (vec![], "no image"),
        ] {
            let error = only_image(index(&entries).as_bytes(), &a).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(only_image(b"[]", &a).is_err());
    }
}
