//! Whether this node's kubelet will run an image that it did not pull.
//!
//! By default it does: to it ours are preloaded. Two policies of KEP-2535 (`KubeletEnsureSecretPulledImages`) say otherwise.

use std::io::Read;
use std::path::Path;

/// The setting in the kubelet's configuration (`kubelet.config.k8s.io/v1beta1`).
const KEY: &str = "imagePullCredentialsVerificationPolicy";
/// Bytes of the kubelet's file that are read.
const MAX_BYTES: u64 = 1 << 20;

/// What is in the way, in one line; nothing when the file cannot be read.
pub fn objection(config: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(config).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    let policy = policy(&text)?;
    let why = match policy {
        "AlwaysVerify" => "the kubelet asks a registry whether pods may use it",
        "NeverVerifyAllowlistedImages" => {
            "the kubelet asks a registry whether pods may use it, unless it is in preloadedImagesVerificationAllowlist"
        }
        _ => return None,
    };
    Some(format!("{why} ({KEY}: {policy} in {})", config.display()))
}

/// The setting's value, in YAML or JSON; on a line of its own in both, as the kubelet's tools write them.
fn policy(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let line = line.trim_start().trim_start_matches('"');
        let value = line.strip_prefix(KEY)?.trim_start_matches('"').trim_start().strip_prefix(':')?;
        let value = value.split('#').next().unwrap_or_default();
        Some(value.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_refuse_preloaded_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        assert_eq!(objection(&path), None);
        for (text, expected) in [
            ("kind: KubeletConfiguration\n", false),
            ("imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages\n", false),
            ("imagePullCredentialsVerificationPolicy: AlwaysVerify # ours\n", true),
            ("imagePullCredentialsVerificationPolicy: \"NeverVerifyAllowlistedImages\"\n", true),
            ("{\n  \"imagePullCredentialsVerificationPolicy\": \"AlwaysVerify\",\n}", true),
            ("# imagePullCredentialsVerificationPolicy: AlwaysVerify\n", false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(objection(&path).is_some(), expected, "{text}");
        }
    }
}
