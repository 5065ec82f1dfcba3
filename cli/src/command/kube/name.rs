//! The name of a build whose user gave none.

use anyhow::{Result, ensure};

/// Longest name of an ImageBuild: what is derived from it has to fit into 63 characters.
const MAX: usize = 52;

/// A name made of the image's: its last part and its tag, so that `registry.example.com/team/app:1.4` is `app-1.4`.
/// One image is always one build, which is changed and built again; another tag is another image, and leaves the nodes
/// the first one.
pub fn of_image(image: &str) -> Result<String> {
    let last = image.rsplit('/').next().unwrap_or_default();
    let mut name = String::new();
    for letter in last.chars().map(|letter| letter.to_ascii_lowercase()) {
        let letter = if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' };
        // A dot ends a label, which neither ends nor begins with a hyphen.
        match (name.chars().last(), letter) {
            (None | Some('.'), '.' | '-') => {}
            (Some('-'), '.') => {
                name.truncate(name.trim_end_matches('-').len());
                name.push('.');
            }
            _ => name.push(letter),
        }
    }
    name.truncate(MAX);
    name.truncate(name.trim_end_matches(['-', '.']).len());
    ensure!(!name.is_empty(), "-t {image}: no name of a build can be made of it; give one with --name");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_called_as_its_image() {
        for (image, name) in [
            ("app", "app"),
            ("app:1.4", "app-1.4"),
            ("registry.example.com:5000/team/My_App:v1__2", "my-app-v1--2"),
            ("app:_x", "app--x"),
            ("app:-.1", "app.1"),
            ("app:1.", "app-1"),
            ("a/b/..c", "c"),
        ] {
            assert_eq!(of_image(image).unwrap(), name, "{image}");
        }
        assert_eq!(of_image(&format!("{}:1", "x".repeat(51))).unwrap(), "x".repeat(51));
        assert!(of_image("a/").is_err());
    }
}
