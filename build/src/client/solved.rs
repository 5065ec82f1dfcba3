//! What a successful build has made, as buildkitd says; nothing of it is believed further than its form.

use std::collections::HashMap;

use cloister_image::{Digest, base64};
use serde::Deserialize;

use super::error::{Error, Result, reason};

/// Most entries of an answer, and the longest of them in bytes.
const MAX_ENTRIES: usize = 1_000;
const MAX_ENTRY: usize = 256 << 10;
/// Longest media type, in bytes.
const MAX_MEDIA_TYPE: usize = 255;

/// A blob by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// What a build has made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Solved {
    /// The image's manifest, or index; none for outputs that are files.
    pub digest: Option<Digest>,
    /// The image's config; none for an index.
    pub config: Option<Digest>,
    /// The same manifest or index with its media type and size.
    pub descriptor: Option<Descriptor>,
    /// The names it was given.
    pub names: Vec<String>,
    /// The manifest of an exported cache.
    pub cache: Option<Descriptor>,
}

impl Solved {
    /// Reads an exporter's answer.
    pub(super) fn new(answer: &HashMap<String, String>) -> Result<Self> {
        if answer.len() > MAX_ENTRIES || answer.iter().any(|(key, value)| key.len() + value.len() > MAX_ENTRY)
        {
            return Err(Error::Answer("the result is out of bounds".to_owned()));
        }
        let get = |key: &str| answer.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let digest = get("containerimage.digest").map(|text| parse_digest("manifest", text)).transpose()?;
        let config =
            get("containerimage.config.digest").map(|text| parse_digest("config", text)).transpose()?;
        let descriptor = get("containerimage.descriptor")
            .map(|text| {
                base64::decode(text).ok_or_else(|| Error::Answer("a descriptor in no base64".to_owned()))
            })
            .transpose()?
            .map(|json| parse_descriptor(&json))
            .transpose()?;
        if let (Some(digest), Some(descriptor)) = (digest, &descriptor)
            && descriptor.digest != digest
        {
            return Err(Error::Answer(format!("the manifest is {digest} and {}", descriptor.digest)));
        }
        let cache = get("cache.manifest").map(|json| parse_descriptor(json.as_bytes())).transpose()?;
        let names = get("image.name").map_or_else(Vec::new, |names| names.split(',').map(reason).collect());
        Ok(Self { digest, config, descriptor, names, cache })
    }
}

fn parse_digest(what: &str, text: &str) -> Result<Digest> {
    text.parse().map_err(|error| Error::Answer(format!("digest of the {what}: {error}")))
}

fn parse_descriptor(json: &[u8]) -> Result<Descriptor> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Json {
        #[serde(default)]
        media_type: String,
        digest: Digest,
        size: u64,
    }
    let json: Json =
        serde_json::from_slice(json).map_err(|error| Error::Answer(format!("no descriptor: {error}")))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.+-_;= ".contains(&byte);
    if json.media_type.len() > MAX_MEDIA_TYPE || !json.media_type.bytes().all(plain) {
        return Err(Error::Answer("a descriptor without a media type".to_owned()));
    }
    Ok(Descriptor { media_type: json.media_type, digest: json.digest, size: json.size })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    fn answer(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_image_is_told_of_by_digest_and_name() {
        let json = format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{DIGEST}","size":7,"annotations":{{}}}}"#
        );
        let solved = Solved::new(&answer(&[
            ("containerimage.digest", DIGEST),
            ("containerimage.config.digest", DIGEST),
            ("containerimage.descriptor", &base64::encode(json.as_bytes())),
            ("image.name", "docker.io/library/a:1,docker.io/library/b:2"),
            ("cache.manifest", &json),
            ("unknown", "x"),
        ]))
        .unwrap();
        assert_eq!(solved.digest.unwrap().to_string(), DIGEST);
        assert_eq!((solved.names.len(), solved.descriptor.unwrap().size), (2, 7));
        assert_eq!(solved.cache.unwrap().digest, solved.config.unwrap());
        assert_eq!(Solved::new(&answer(&[])).unwrap(), Solved::default());
    }

    #[test]
    fn answers_out_of_form_are_refused() {
        let other = format!(r#"{{"mediaType":"x","digest":"{}","size":7}}"#, Digest::of(b""));
        let huge = "x".repeat(MAX_ENTRY);
        for entries in [
            &[("containerimage.digest", "sha256:../../etc/passwd")][..],
            &[("containerimage.descriptor", "!")],
            &[("cache.manifest", r#"{"digest":"sha256:0","size":1}"#)],
            &[("cache.manifest", r#"{"digest":"x","size":-1}"#)],
            &[
                ("containerimage.digest", DIGEST),
                ("containerimage.descriptor", &base64::encode(other.as_bytes())),
            ],
            &[("a", &huge)],
        ] {
            assert!(matches!(Solved::new(&answer(entries)), Err(Error::Answer(_))), "{entries:?}");
        }
    }
}
