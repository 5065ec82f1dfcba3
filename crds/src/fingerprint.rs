//! What of a spec makes a difference to the image, as a short text; and specs without the bulk of their files.

use sha2::{Digest, Sha256};

use crate::{BaseImage, History, ImageBuildSpec};

/// 16 hex digits that change when what is built changes, and not with when, where or for whom.
///
/// `spec` may be [`trim`]med or not: the fingerprint is the same.
pub fn fingerprint(spec: &ImageBuildSpec) -> String {
    let mut spec = spec.clone();
    trim(&mut spec);
    spec.suspend = false;
    spec.cancel = false;
    spec.retries = 0;
    spec.timeout = std::time::Duration::ZERO.into();
    spec.history = History::default();
    spec.ttl_seconds_after_finished = None;
    spec.triggers = None;
    spec.resources = None;
    spec.node_selector.clear();
    spec.tolerations.clear();
    spec.affinity = None;
    spec.priority_class_name = None;
    // Other nodes fetch what is there already.
    spec.output.nodes = None;
    spec.output.pin = None;
    // Maps and fields have one order; nothing in a spec fails to be JSON.
    hex(&serde_json::to_vec(&spec).unwrap_or_default())
}

/// 16 hex digits for these images, in whichever order.
pub fn of_images(images: &[BaseImage]) -> String {
    let mut lines: Vec<_> = images.iter().map(|base| format!("{}@{}\n", base.image, base.digest)).collect();
    lines.sort();
    hex(lines.concat().as_bytes())
}

/// Mark of a text that [`trim`] has replaced.
const TRIMMED: &str = "trimmed:";

/// Replaces the texts of inline files by digest and length: a controller that keeps hundreds of builds in memory has no
/// use for their contents.
pub fn trim(spec: &mut ImageBuildSpec) {
    let Some(inline) = &mut spec.source.inline else { return };
    shorten(&mut inline.dockerfile);
    for file in &mut inline.files {
        for text in [&mut file.content, &mut file.content_base64].into_iter().flatten() {
            shorten(text);
        }
    }
}

/// Bytes of the inline files, which may have been [`trim`]med.
pub fn inline_bytes(spec: &ImageBuildSpec) -> usize {
    let Some(inline) = &spec.source.inline else { return 0 };
    let files = inline.files.iter().flat_map(|file| [&file.content, &file.content_base64]).flatten();
    files.chain([&inline.dockerfile]).map(|text| length(text)).sum()
}

fn shorten(text: &mut String) {
    if !text.starts_with(TRIMMED) {
        *text = format!("{TRIMMED}{}:{}", hex(text.as_bytes()), text.len());
    }
}

fn length(text: &str) -> usize {
    let trimmed = text.strip_prefix(TRIMMED).and_then(|rest| rest.split_once(':'));
    trimmed.and_then(|(_, length)| length.parse().ok()).unwrap_or(text.len())
}

/// The first 8 bytes of the SHA-256 of `bytes`.
fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuildOutput, BuildSource, InlineSource};

    fn spec() -> ImageBuildSpec {
        let mut spec: ImageBuildSpec =
            serde_json::from_value(serde_json::json!({"source": {}, "output": {}})).unwrap();
        let inline = InlineSource { dockerfile: "FROM scratch\n".into(), files: Vec::new() };
        spec.source = BuildSource { inline: Some(inline), ..BuildSource::default() };
        spec.output = BuildOutput { images: vec!["app:1".into()], ..BuildOutput::default() };
        spec
    }

    #[test]
    fn only_what_is_built_makes_a_difference() {
        let spec = spec();
        let first = fingerprint(&spec);
        assert_eq!(first.len(), 16);
        let mut same = spec.clone();
        same.suspend = true;
        same.retries = 7;
        same.history.failed = 9;
        same.output.pin = Some(false);
        same.output.nodes = Some(Default::default());
        same.priority_class_name = Some("high".into());
        assert_eq!(fingerprint(&same), first);
        let mut other = spec.clone();
        other.target = Some("test".into());
        assert_ne!(fingerprint(&other), first);
        let mut other = spec;
        other.source.inline.as_mut().unwrap().dockerfile.push_str("RUN true\n");
        assert_ne!(fingerprint(&other), first);
    }

    #[test]
    fn a_trimmed_spec_is_small_and_has_the_same_fingerprint_and_length() {
        let mut spec = spec();
        spec.source.inline.as_mut().unwrap().dockerfile = "FROM scratch\n".repeat(10_000);
        let (whole, bytes) = (fingerprint(&spec), inline_bytes(&spec));
        trim(&mut spec);
        assert!(serde_json::to_vec(&spec).unwrap().len() < 1_000);
        assert_eq!((fingerprint(&spec), inline_bytes(&spec)), (whole, bytes));
        let once = spec.clone();
        trim(&mut spec);
        assert_eq!(spec, once);
    }
}
