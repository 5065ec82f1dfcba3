//! Image references: `NAME[:TAG][@DIGEST]`.
//!
//! The grammar and the rules for names without a registry are those of the distribution project's `reference`
//! package (`regexp.go`, `normalize.go`): `debian` means `docker.io/library/debian`, a first component is a registry
//! only when it holds a dot, a colon or an upper-case letter, or is `localhost`.

use std::fmt;
use std::str::FromStr;

use cloister_layer::digest::Digest;

/// The registry meant by a name that has none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag meant by a reference with neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Longest accepted `REGISTRY/REPOSITORY`, in bytes.
const MAX_NAME: usize = 255;
/// Longest accepted tag, in bytes.
const MAX_TAG: usize = 128;

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

/// A parsed, normalised reference. It always has a tag or a digest, and may have both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and optional port, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the reference names one manifest for ever.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository at a given digest, without a tag.
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// What to ask a registry for: the digest when there is one, else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The short form people type, without `docker.io/` and `library/`. Tag and digest stay.
    pub fn familiar(&self) -> String {
        let name = if self.registry == DEFAULT_REGISTRY {
            self.repository
                .strip_prefix("library/")
                .filter(|rest| !rest.contains('/'))
                .unwrap_or(&self.repository)
        } else {
            return self.to_string();
        };
        // A name that would be read as a registry again keeps its long form.
        if parse(name).is_ok_and(|(registry, repository)| {
            (registry, repository) == (self.registry.clone(), self.repository.clone())
        }) {
            self.with_suffix(name)
        } else {
            self.to_string()
        }
    }

    fn with_suffix(&self, name: &str) -> String {
        let mut out = name.to_owned();
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
        out
    }
}

impl fmt::Display for Reference {
    /// The canonical form: registry, repository, and tag and/or digest, all spelled out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(&format!("{}/{}", self.registry, self.repository)))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |why| ReferenceError { text: text.chars().take(300).collect(), why };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse::<Digest>()
                        .map_err(|_| fail("the digest is not `sha256:` and 64 lower-case hex digits"))?,
                ),
            ),
        };
        // A colon after the last slash starts a tag; one before it belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains(['/', ']']) => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fail(
                "the tag must be 1 to 128 letters, digits, `_`, `.` or `-`, not starting with `.` or `-`",
            ));
        }
        let (registry, repository) = parse(name).map_err(fail)?;
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Splits and checks `[REGISTRY/]REPOSITORY`, filling in the defaults.
fn parse(name: &str) -> Result<(String, String), &'static str> {
    if name.is_empty() {
        return Err("there is no name");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry_like(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err("64 hex digits are an image id, not a name");
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if !is_registry(registry) {
        return Err("the registry is not a host name with an optional port");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be lower case");
    }
    if !repository.split('/').all(is_path_component) {
        return Err(
            "each part of the repository must be lower-case letters and digits, joined by `.`, `_`, `__` or `-`",
        );
    }
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("the name is longer than 255 bytes");
    }
    Ok((registry.to_owned(), repository))
}

fn is_registry_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            None if port.is_empty() => return true,
            None => return false,
            Some(port) => ("v6", Some(port)),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    port.is_none_or(|port| {
        port.len() <= 5 && port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
    }) && host.split('.').all(|part| {
        let bytes = part.as_bytes();
        bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
    })
}

fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|b| is_word(*b)) || !bytes.last().is_some_and(|b| is_word(*b)) {
        return false;
    }
    // Between words: one `.`, one or two `_`, or any number of `-`.
    bytes
        .split(|b| is_word(*b))
        .all(|sep| matches!(sep, b"" | b"." | b"_" | b"__") || sep.iter().all(|b| *b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_get_the_default_registry_and_tag() {
        assert_eq!(canonical("debian"), "docker.io/library/debian:latest");
        assert_eq!(canonical("debian:12"), "docker.io/library/debian:12");
        assert_eq!(canonical("grafana/loki"), "docker.io/grafana/loki:latest");
        assert_eq!(canonical("index.docker.io/debian"), "docker.io/library/debian:latest");
        assert_eq!(canonical("docker.io/debian"), "docker.io/library/debian:latest");
    }

    #[test]
    fn registries_are_told_from_paths() {
        assert_eq!(canonical("localhost/app"), "localhost/app:latest");
        assert_eq!(canonical("localhost:5000/app:1"), "localhost:5000/app:1");
        assert_eq!(canonical("ghcr.io/a/b/c:v1.2"), "ghcr.io/a/b/c:v1.2");
        assert_eq!(canonical("[::1]:5000/app"), "[::1]:5000/app:latest");
        assert_eq!(canonical("REG/app"), "REG/app:latest");
        assert_eq!(canonical("app:5000"), "docker.io/library/app:5000");
    }

    #[test]
    fn digests_stand_alone_or_beside_a_tag() {
        assert_eq!(
            canonical(&format!("debian@sha256:{HEX}")),
            format!("docker.io/library/debian@sha256:{HEX}")
        );
        assert_eq!(
            canonical(&format!("debian:12@sha256:{HEX}")),
            format!("docker.io/library/debian:12@sha256:{HEX}")
        );
    }

    #[test]
    fn familiar_forms_parse_back_to_the_same_reference() {
        for text in
            ["debian", "a/b:1", "localhost/x", "ghcr.io/a/b:2", "localhost:5000/x", "docker.io/library/a/b"]
        {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference, "{text}");
        }
        assert_eq!("docker.io/library/debian:12".parse::<Reference>().unwrap().familiar(), "debian:12");
    }

    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            ":",
            "/",
            "a//b",
            "A",
            "Debian",
            "ghcr.io/App",
            "a:",
            "a:-x",
            "a:b:c",
            "a b",
            "../etc",
            "a/../b",
            "a/",
            "a@sha256:12",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "host:99999/a",
            "host:/a",
            "http://a/b",
            HEX,
            "a@",
            "x.-y/a",
            "[::1/a",
            "a\n",
            "a\0b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!(format!("a:{}", "x".repeat(129)).parse::<Reference>().is_err());
        assert!(format!("a/{}", "x".repeat(255)).parse::<Reference>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_parses_or_fails_and_the_canonical_form_is_stable(text in "[a-zA-Z0-9:/@._\\-\\[\\]]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                proptest::prop_assert_eq!(&again, &reference);
                let again: Reference = reference.familiar().parse().unwrap();
                proptest::prop_assert_eq!(again, reference);
            }
        }
    }
}
