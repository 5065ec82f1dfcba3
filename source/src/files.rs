//! Sources that are a handful of files: written in the object, or the keys of a ConfigMap.

use std::fs;

use cloister_build::context::{Context, ContextError, InlineFile};
use cloister_crds::{ConfigMapSource, InlineSource, KeyToPath};
use cloister_image::base64;

use crate::inputs::value;
use crate::{Error, Inputs, Result};

/// Permissions of a file that says none.
const MODE: i32 = 0o644;

/// The files that stand in the object, with the Dockerfile under the name that the spec gives it.
pub(crate) fn inline(source: &InlineSource, dockerfile: &str) -> Result<Context> {
    let mut files = vec![file(dockerfile, source.dockerfile.clone().into_bytes(), None)?];
    for given in &source.files {
        let bytes = match (&given.content, &given.content_base64) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(text)) => decode(text).ok_or_else(|| {
                Error::invalid(format!("source.inline.files: {:?} is not in base64", given.path))
            })?,
            _ => {
                let why = "it needs content or contentBase64, one of them";
                return Err(Error::invalid(format!("source.inline.files: {:?}: {why}", given.path)));
            }
        };
        files.push(file(&given.path, bytes, given.mode)?);
    }
    Context::files(files).map_err(refused("source.inline"))
}

/// The keys of a ConfigMap, or those that are named.
pub(crate) fn config_map(source: &ConfigMapSource, inputs: &Inputs) -> Result<Context> {
    let name = &source.name;
    let missing = |what: &str| Error::missing(format!("source.configMap: ConfigMap {name} {what}"));
    let folder = inputs.mount("config-maps", name).ok_or_else(|| missing("does not exist"))?;
    let items = if source.items.is_empty() {
        let read = |error| Error::unavailable(format!("source.configMap: reading ConfigMap {name}: {error}"));
        let mut keys = Vec::new();
        for entry in fs::read_dir(folder).map_err(read)? {
            let key = entry.map_err(read)?.file_name();
            // What begins with two points is kubelet's own.
            keys.extend(key.to_str().filter(|key| !key.starts_with("..")).map(str::to_owned));
        }
        keys.sort_unstable();
        keys.into_iter().map(|key| KeyToPath { path: key.clone(), key, mode: None }).collect()
    } else {
        source.items.clone()
    };
    if items.is_empty() {
        return Err(missing("does not exist, or has no keys"));
    }
    let mut files = Vec::new();
    for KeyToPath { key, path, mode } in items {
        let found =
            value(folder, &key).map_err(|why| missing(&format!("has an unreadable key {key}: {why}")))?;
        let bytes = found.ok_or_else(|| missing(&format!("does not exist, or has no key {key}")))?;
        files.push(file(&path, bytes, mode)?);
    }
    Context::files(files).map_err(refused("source.configMap"))
}

fn file(path: &str, bytes: Vec<u8>, mode: Option<i32>) -> Result<InlineFile> {
    let mode = mode.unwrap_or(MODE);
    match u32::try_from(mode) {
        Ok(mode) if mode <= 0o777 => Ok(InlineFile { path: path.to_owned(), bytes, mode }),
        _ => Err(Error::invalid(format!("source: {path:?} has mode {mode:o}, which is none of permissions"))),
    }
}

fn refused(field: &'static str) -> impl Fn(ContextError) -> Error {
    move |error| Error::invalid(format!("{field}: {error}"))
}

/// Base64 in lines.
fn decode(text: &str) -> Option<Vec<u8>> {
    base64::decode(&text.replace(['\n', '\r'], ""))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use cloister_crds::{BuildReason, InlineFile as Given};

    use super::*;

    /// A folder as kubelet makes it of an object.
    fn kubelet(folder: &std::path::Path, keys: &[(&str, &str)]) {
        let data = folder.join("..2026_01_01");
        fs::create_dir_all(&data).unwrap();
        symlink("..2026_01_01", folder.join("..data")).unwrap();
        for (key, value) in keys {
            fs::write(data.join(key), value).unwrap();
            symlink(format!("..data/{key}"), folder.join(key)).unwrap();
        }
    }

    #[test]
    fn files_of_the_object_are_files_of_the_context() {
        let file = |path: &str, text: Option<&str>, base64: Option<&str>| Given {
            path: path.into(),
            content: text.map(str::to_owned),
            content_base64: base64.map(str::to_owned),
            mode: Some(0o755),
        };
        let source = InlineSource {
            dockerfile: "FROM scratch".into(),
            files: vec![file("a/run.sh", Some("#!"), None), file("b", None, Some("AAEC\n/w==\n"))],
        };
        let context = inline(&source, "build/Dockerfile").unwrap();
        assert_eq!(context.read("build/Dockerfile", 99).unwrap(), b"FROM scratch");
        assert_eq!(context.read("a/run.sh", 99).unwrap(), b"#!");
        assert_eq!(context.read("b", 99).unwrap(), [0, 1, 2, 0xff]);
        for bad in [
            file("../x", Some(""), None),
            file("x", None, None),
            file("x", Some(""), Some("")),
            file("x", None, Some("*")),
            file("Dockerfile", Some(""), None),
            Given { mode: Some(0o4755), ..file("x", Some(""), None) },
            Given { mode: Some(-1), ..file("x", Some(""), None) },
        ] {
            let source = InlineSource { dockerfile: String::new(), files: vec![bad.clone()] };
            let error = inline(&source, "Dockerfile").unwrap_err();
            assert_eq!(error.reason(), BuildReason::SourceInvalid, "{bad:?}");
        }
    }

    #[test]
    fn keys_of_a_config_map_are_files() {
        let folder = tempfile::tempdir().unwrap();
        kubelet(folder.path(), &[("Dockerfile", "FROM scratch"), ("app.toml", "x = 1")]);
        let mounts = [("config-maps/app".into(), folder.path().to_owned())].into();
        let inputs = Inputs { mounts, ..Inputs::default() };
        let source = |items: &[(&str, &str)]| ConfigMapSource {
            name: "app".into(),
            items: items
                .iter()
                .map(|(key, path)| KeyToPath { key: (*key).into(), path: (*path).into(), mode: None })
                .collect(),
        };
        let whole = config_map(&source(&[]), &inputs).unwrap();
        assert_eq!(whole.read("app.toml", 99).unwrap(), b"x = 1");
        assert!(whole.read("..data/app.toml", 99).is_err());
        let some = config_map(&source(&[("app.toml", "conf/x"), ("app.toml", "y")]), &inputs).unwrap();
        assert_eq!(some.read("conf/x", 99).unwrap(), b"x = 1");
        assert!(some.read("Dockerfile", 99).is_err());
        let error = config_map(&source(&[("none", "x")]), &inputs).unwrap_err();
        assert_eq!(error.reason(), BuildReason::SourceNotFound);
        assert!(error.to_string().contains("no key none"), "{error}");
        assert!(config_map(&source(&[("app.toml", "../x")]), &inputs).is_err());
        let error = config_map(&source(&[]), &Inputs::default()).unwrap_err();
        assert_eq!(error.to_string(), "source.configMap: ConfigMap app does not exist");
    }

    #[test]
    fn a_config_map_that_is_not_there_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mounts = [("config-maps/app".into(), folder.path().to_owned())].into();
        let inputs = Inputs { mounts, ..Inputs::default() };
        let source = ConfigMapSource { name: "app".into(), items: Vec::new() };
        assert_eq!(config_map(&source, &inputs).unwrap_err().reason(), BuildReason::SourceNotFound);
    }
}
