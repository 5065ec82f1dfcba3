//! Label selectors as kubectl's `-l` takes them.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>

use anyhow::{Result, bail, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`; nothing at all selects everything.
pub fn parse(text: &str) -> Result<LabelSelector> {
    let mut selector = LabelSelector::default();
    for term in terms(text)? {
        let (key, operator, values) = requirement(term)?;
        ensure!(is_key(key), "selector `{text}`: `{key}` is not the name of a label");
        if operator == "=" {
            let labels = selector.match_labels.get_or_insert_default();
            let before = labels.insert(key.to_owned(), values.concat());
            ensure!(before.is_none_or(|before| before == values.concat()), "selector `{text}`: {key} twice");
        } else {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: (!values.is_empty()).then_some(values),
            });
        }
    }
    Ok(selector)
}

/// Its parts between commas that are not within parentheses.
fn terms(text: &str) -> Result<Vec<&str>> {
    let (mut found, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' if !inside => inside = true,
            ')' if inside => inside = false,
            '(' | ')' => bail!("selector `{text}`: a parenthesis too many"),
            ',' if !inside => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    ensure!(!inside, "selector `{text}`: a parenthesis is not closed");
    found.push(&text[start..]);
    Ok(if text.trim().is_empty() { Vec::new() } else { found })
}

fn requirement(term: &str) -> Result<(&str, &'static str, Vec<String>)> {
    let term = term.trim();
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((key, value)) = term.split_once("!=") {
        return Ok((key.trim(), "NotIn", one(value)));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok((key.trim(), "=", one(value)));
    }
    if let Some((head, list)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let mut words = head.split_whitespace();
        let operator = match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => (key, "In"),
            (Some(key), Some("notin"), None) => (key, "NotIn"),
            _ => bail!("selector: `{term}` is not KEY in (VALUES) or KEY notin (VALUES)"),
        };
        return Ok((operator.0, operator.1, list.split(',').map(|value| value.trim().to_owned()).collect()));
    }
    Ok(match term.strip_prefix('!') {
        Some(key) => (key.trim(), "DoesNotExist", Vec::new()),
        None => (term, "Exists", Vec::new()),
    })
}

/// The API server knows the rest.
fn is_key(key: &str) -> bool {
    !key.is_empty()
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(text: &str) -> Value {
        serde_json::to_value(parse(text).unwrap()).unwrap()
    }

    #[test]
    fn selectors_are_read_as_kubectl_reads_them() {
        assert_eq!(parsed(""), json!({}));
        assert_eq!(
            parsed("pool=web, zone==a,example.com/empty="),
            json!({"matchLabels": {"pool": "web", "zone": "a", "example.com/empty": ""}})
        );
        let expressions = json!([
            {"key": "a", "operator": "NotIn", "values": ["b"]},
            {"key": "c", "operator": "In", "values": ["d", "e"]},
            {"key": "f", "operator": "NotIn", "values": ["g"]},
            {"key": "h", "operator": "Exists"},
            {"key": "i", "operator": "DoesNotExist"},
        ]);
        assert_eq!(parsed("a!=b,c in (d, e),f notin (g),h,!i"), json!({"matchExpressions": expressions}));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for bad in ["=", ",", "a,", "a in b", "a in (b", "a)", "a b", "a=b,a=c", "a within (b)", "((a))"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
