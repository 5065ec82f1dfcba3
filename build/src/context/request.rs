//! What a request for a context says, in its metadata: `dir-name`, `include-patterns`, `exclude-patterns`, `followpaths`.

use tonic::Status;
use tonic::metadata::MetadataMap;

use super::filter::Filter;
use super::follow::{distinct, follow};
use super::{Context, ContextError, MAX_PATTERNS, Patterns};

/// A request, its sizes bounded, its texts decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Which context.
    pub(crate) name: String,
    include: Vec<String>,
    exclude: Vec<String>,
    follow: Vec<String>,
}

impl Asked {
    /// Reads metadata of at most [`MAX_PATTERNS`] bytes.
    pub(crate) fn read(metadata: &MetadataMap) -> Result<Self, Status> {
        let mut left = MAX_PATTERNS;
        let mut read = |key: &str| values(metadata, key, &mut left);
        let name = read("dir-name")?.into_iter().next().unwrap_or_default();
        let (include, exclude) = (read("include-patterns")?, read("exclude-patterns")?);
        Ok(Self { name, include, exclude, follow: read("followpaths")? })
    }

    /// What of `context` is shown. Reads links, so it blocks.
    pub(crate) fn filter(&self, context: &Context) -> Result<Filter, ContextError> {
        let mut include = Some(self.include.clone()).filter(|patterns| !patterns.is_empty());
        // As in the model, a request for the root shows everything that patterns don't narrow down.
        if !self.follow.is_empty()
            && let Some(paths) = follow(context.tree(), &self.follow)?
        {
            include = distinct(self.include.iter().cloned().chain(paths));
        }
        let parse = |patterns: &[String]| Patterns::parse(patterns.iter().map(String::as_str));
        let include = include.as_deref().map(parse).transpose()?.filter(|patterns| !patterns.is_empty());
        let exclude = [context.ignored().cloned(), Some(parse(&self.exclude)?)];
        let exclude = exclude.into_iter().flatten().filter(|patterns| !patterns.is_empty()).collect();
        Ok(Filter { include, exclude })
    }
}

/// All values of a key. BuildKit marks those with other characters than ASCII by `KEY-encoded`, and writes them as Go's
/// `url.QueryEscape` does.
fn values(metadata: &MetadataMap, key: &str, left: &mut usize) -> Result<Vec<String>, Status> {
    let invalid = || Status::invalid_argument(format!("{key} of a context is not readable"));
    let encoded = metadata.get(format!("{key}-encoded"));
    let encoded = encoded.is_some_and(|value| matches!(value.as_bytes(), b"1" | b"t" | b"T" | b"true"));
    let mut found = Vec::new();
    for value in metadata.get_all(key) {
        let text = value.to_str().map_err(|_| invalid())?;
        // An empty value costs memory too.
        *left = left.checked_sub(text.len() + 32).ok_or_else(|| {
            Status::invalid_argument(format!("patterns and paths of more than {MAX_PATTERNS} bytes"))
        })?;
        found.push(if encoded { unescape(text).ok_or_else(invalid)? } else { text.to_owned() });
    }
    Ok(found)
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_outside_ascii_are_decoded() {
        let mut metadata = MetadataMap::new();
        metadata.insert("dir-name", "context".parse().unwrap());
        metadata.append("followpaths", "caf%C3%A9+1".parse().unwrap());
        metadata.append("followpaths", "plain".parse().unwrap());
        metadata.insert("followpaths-encoded", "1".parse().unwrap());
        metadata.append("exclude-patterns", "100%+".parse().unwrap());
        let asked = Asked::read(&metadata).unwrap();
        assert_eq!(asked.name, "context");
        assert_eq!(asked.follow, ["café 1", "plain"]);
        assert_eq!(asked.exclude, ["100%+"]);
        for broken in ["%", "%4", "%zz", "%ff"] {
            metadata.insert("followpaths", broken.parse().unwrap());
            assert!(Asked::read(&metadata).is_err(), "{broken}");
        }
    }

    #[test]
    fn metadata_is_bounded() {
        let mut metadata = MetadataMap::new();
        for _ in 0..20_000 {
            metadata.append("exclude-patterns", "".parse().unwrap());
        }
        assert!(Asked::read(&metadata).is_ok());
        metadata.insert("include-patterns", "x".repeat(MAX_PATTERNS - 20_000 * 32).parse().unwrap());
        assert!(Asked::read(&metadata).is_err());
    }
}
