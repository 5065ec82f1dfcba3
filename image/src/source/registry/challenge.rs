//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1; docker token specification).

use std::collections::HashMap;

/// One way the server would accept a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case, such as `bearer`.
    pub(super) scheme: String,
    params: HashMap<String, String>,
}

impl Challenge {
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }
}

/// Reads one header value, which may hold several challenges. What cannot be read ends the list.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() && out.len() < 8 {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let value = after.trim_start();
        match (value.strip_prefix('='), out.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = parse_value(value.trim_start()) else { break };
                if challenge.params.len() < 16 {
                    challenge.params.insert(word.to_lowercase(), value);
                }
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                out.push(Challenge { scheme: word.to_lowercase(), params: HashMap::new() });
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    out
}

/// A token or a quoted string, and what follows it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_headers_are_read() {
        let list = parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].scheme, "bearer");
        assert_eq!(list[0].param("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(list[0].param("scope"), Some("repository:a/b:pull,push"));
        let list = parse(r#"Basic realm="a \"b\"", Bearer realm=x,error=y"#);
        assert_eq!(list.iter().map(|c| c.scheme.as_str()).collect::<Vec<_>>(), ["basic", "bearer"]);
        assert_eq!(list[0].param("realm"), Some("a \"b\""));
        assert_eq!(list[1].param("error"), Some("y"));
    }

    #[test]
    fn nonsense_gives_a_short_list() {
        for text in ["", "=", "a=b", "Bearer realm=\"x", ",,,,", "Bearer =x"] {
            assert!(parse(text).len() <= 1, "{text}");
        }
        assert!(parse(&"A ".repeat(1000)).len() <= 8);
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in "\\PC{0,200}") {
            parse(&text);
        }
    }
}
