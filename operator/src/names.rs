//! Full names of images, as containerd and kubelet write them.

/// The full name of `image`: "app" is "docker.io/library/app" with the first 12 hex digits of `digest` as tag, since
/// kubelet always pulls "latest".
pub fn canonical(image: &str, digest: &str) -> String {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let registry =
        first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase());
    let name = match (registry, first) {
        // Docker's two names of one registry.
        (true, "index.docker.io" | "docker.io") if !rest.contains('/') => format!("docker.io/library/{rest}"),
        (true, "index.docker.io") => format!("docker.io/{rest}"),
        (true, _) => image.to_owned(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{image}"),
    };
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    match digest.strip_prefix("sha256:") {
        Some(hex) if !tagged => format!("{name}:{}", hex.get(..12).unwrap_or(hex)),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_out() {
        let digest = "sha256:0123456789abcdef";
        for (image, full) in [
            ("app:1.4", "docker.io/library/app:1.4"),
            ("app", "docker.io/library/app:0123456789ab"),
            ("team/app:1", "docker.io/team/app:1"),
            ("docker.io/app:1", "docker.io/library/app:1"),
            ("index.docker.io/team/app:1", "docker.io/team/app:1"),
            ("localhost/app:1", "localhost/app:1"),
            ("localhost:5000/app", "localhost:5000/app:0123456789ab"),
            ("registry.example.com/team/app:1", "registry.example.com/team/app:1"),
        ] {
            assert_eq!(canonical(image, digest), full, "{image}");
        }
    }
}
