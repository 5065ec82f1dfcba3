//! The names that a build's image gets.
//!
//! The CRI looks up `NAME:TAG` as it is and `NAME:TAG@DIGEST` as `NAME@DIGEST`; both have to be there, spelled out with
//! registry and `library/`, or the kubelet pulls.

use std::collections::BTreeSet;

use cloister_image::reference::ReferenceError;
use cloister_image::{Digest, Reference};

use crate::error::{Error, Result};

/// Most names of one image, and most bytes of all of them: they have to fit into a label of 4096 bytes.
const MAX_NAMES: usize = 16;
const MAX_BYTES: usize = 3000;
/// Hex digits of a tag made from a digest.
const SHORT: usize = 12;

/// The canonical names of an image, each with a tag; a name without one gets the digest's first digits, because with
/// `:latest` the kubelet would pull by default.
pub fn canonical(names: &[String], digest: &Digest) -> Result<Vec<String>> {
    let mut canonical = BTreeSet::new();
    for text in names {
        let name: Reference = text.parse().map_err(|error: ReferenceError| {
            let why = error.to_string().replace(char::is_control, "\u{fffd}");
            Error::Invalid(format!("image name: {why}"))
        })?;
        if name.digest().is_some() {
            return Err(Error::Invalid(format!("image name {name}: the digest is the build's to say")));
        }
        canonical.insert(match text.ends_with(":latest") || name.tag() != Some("latest") {
            true => name.to_string(),
            false => {
                let name = name.to_string();
                let name = name.strip_suffix(":latest").unwrap_or(&name);
                format!("{name}:{}", &digest.hex()[..SHORT])
            }
        });
    }
    let bytes: usize = canonical.iter().map(String::len).sum();
    match canonical.len() {
        0 => Err(Error::Invalid("an image without a name: no pod could use it".into())),
        n if n > MAX_NAMES || bytes > MAX_BYTES => Err(Error::Invalid(format!(
            "{n} image names of {bytes} bytes: more than {MAX_NAMES} or {MAX_BYTES} bytes together"
        ))),
        _ => Ok(canonical.into_iter().collect()),
    }
}

/// Every reference that containerd has to have: the names, and each repository at the digest.
pub fn references(names: &[String], digest: &Digest) -> Vec<String> {
    let parsed = names.iter().filter_map(|name| name.parse::<Reference>().ok());
    let at_digest: BTreeSet<String> = parsed.map(|name| name.at_digest(*digest).to_string()).collect();
    names.iter().cloned().chain(at_digest).collect()
}

/// Every spelling by which a pod may ask for the image.
pub fn spellings(names: &[String], digest: &Digest) -> Vec<String> {
    let both = names.iter().map(|name| format!("{name}@{digest}"));
    references(names, digest).into_iter().chain(both).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Result<Vec<String>> {
        let list: Vec<String> = list.iter().map(|&name| name.to_owned()).collect();
        canonical(&list, &Digest::of(b""))
    }

    #[test]
    fn names_are_spelled_out_and_a_missing_tag_is_the_short_digest() {
        assert_eq!(
            names(&["app", "app:1", "app:latest", "reg.example:5000/a/b", "app:1"]).unwrap(),
            [
                "docker.io/library/app:1",
                "docker.io/library/app:e3b0c44298fc",
                "docker.io/library/app:latest",
                "reg.example:5000/a/b:e3b0c44298fc",
            ]
        );
    }

    #[test]
    fn invalid_names_are_refused_in_one_line() {
        let digest = format!("app@{}", Digest::of(b""));
        for bad in ["", "App", "../etc", "a b", "app:", "a\nb", &digest] {
            let error = names(&[bad]).unwrap_err().to_string();
            assert!(error.contains("image name") && !error.contains('\n'), "{bad:?}: {error:?}");
        }
        assert!(names(&[]).is_err());
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("a:{n}")).collect();
        assert!(canonical(&many, &Digest::of(b"")).is_err());
    }

    #[test]
    fn a_repository_with_two_tags_has_one_reference_by_digest() {
        let digest = Digest::of(b"");
        let names = names(&["app:1", "app:2"]).unwrap();
        assert_eq!(references(&names, &digest).len(), 3);
        assert!(spellings(&names, &digest).contains(&format!("docker.io/library/app:1@{digest}")));
    }
}
