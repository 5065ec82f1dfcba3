//! Which platform's image to take from an index: `OS/ARCH[/VARIANT]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform as OCI image indexes name it (image-spec `image-index.md`, GOOS and GOARCH values).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` for everything Cloister runs.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, `v7`, `v3`, …; empty when not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform such as linux/amd64 or linux/arm64/v8")]
pub struct PlatformError(String);

impl Platform {
    /// The platform this program was compiled for, which is the one its microVMs run.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// Puts a platform together and normalises it as containerd does (`arm64/v8` is `arm64`, `x86_64` is `amd64`).
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, architecture, variant) =
            (os.to_lowercase(), architecture.to_lowercase(), variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", other) => ("amd64", other),
            ("aarch64" | "arm64", "v8" | "8" | "") => ("arm64", ""),
            ("aarch64", other) => ("arm64", other),
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", ""),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well `offered` serves a wish for `self`: `None` when it cannot, else larger is better.
    ///
    /// A wish without variant accepts any variant but prefers none; a wish for `amd64/v3` or `arm/v7` also accepts lower ones.
    pub fn score(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        if self.variant == offered.variant {
            return Some(100);
        }
        let level = |variant: &str| match variant {
            "" => Some(1),
            other => other.strip_prefix('v').and_then(|n| n.parse::<u32>().ok()).filter(|n| *n < 90),
        };
        match (level(&self.variant), level(&offered.variant)) {
            // Newer processors run code for older ones, never the reverse.
            (Some(want), Some(have)) if have <= want => Some(have),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let fine = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        match parts.as_slice() {
            [os, architecture] if parts.iter().all(fine) => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] if parts.iter().all(fine) => Ok(Self::new(os, architecture, variant)),
            _ => Err(PlatformError(text.chars().take(100).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn aliases_are_normalised() {
        assert_eq!(platform("linux/x86_64"), platform("linux/amd64"));
        assert_eq!(platform("linux/aarch64"), platform("linux/arm64/v8"));
        assert_eq!(platform("linux/arm").to_string(), "linux/arm/v7");
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/am d64", "/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn newer_processors_take_code_for_older_ones_only() {
        assert_eq!(platform("linux/amd64").score(&platform("linux/arm64")), None);
        assert_eq!(platform("linux/amd64").score(&platform("linux/amd64/v3")), None);
        let v7 = platform("linux/arm/v7");
        assert!(v7.score(&v7) > v7.score(&platform("linux/arm/v6")));
        assert!(platform("linux/arm/v6").score(&v7).is_none());
        assert!(platform("linux/amd64/v3").score(&platform("linux/amd64")).is_some());
    }
}
