//! Values of options, in docker's notation.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Bytes: a number, and b, k, m, g or t (powers of 1024) with an optional b or ib behind.
pub fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = lower.strip_prefix(digits).unwrap_or_default();
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("`{text}` has no unit of b, k, m, g or t")),
    };
    let invalid = || format!("`{text}` is not a size such as 512m");
    let bytes = match digits.split_once('.') {
        None => u128::from(digits.parse::<u64>().map_err(|_| invalid())?) << shift,
        Some((whole, fraction)) => {
            // Exact to a thousandth, which is as far as people write.
            let fraction = fraction.get(..3.min(fraction.len())).unwrap_or_default();
            let places = u32::try_from(fraction.len()).unwrap_or_default();
            let whole = u128::from(whole.parse::<u64>().map_err(|_| invalid())?) << shift;
            let part = u128::from(fraction.parse::<u64>().map_err(|_| invalid())?) << shift;
            whole + part / 10u128.pow(places)
        }
    };
    u64::try_from(bytes).map_err(|_| format!("`{text}` is too large"))
}

/// Processors in thousandths: `2`, `0.5`, `1.25`.
pub fn cpus(text: &str) -> Result<u64, String> {
    let invalid = || format!("`{text}` is not a number of processors such as 2 or 0.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
    let millis = whole.saturating_mul(1000) + fraction.parse::<u64>().map_err(|_| invalid())?;
    match millis {
        10..=255_000 => Ok(millis),
        _ => Err(format!("`{text}` is not between 0.01 and 255 processors")),
    }
}

/// Layers converted at a time.
pub fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err(format!("`{text}` is not a number from 1 to 64")),
    }
}

/// One `-v`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// A path of this machine.
    pub host: PathBuf,
    /// An absolute path in the container.
    pub guest: String,
    /// Whether the guest can't write.
    pub read_only: bool,
}

/// `HOST:GUEST[:ro|rw]`, both absolute or the first one relative with `./` or `../`, as docker takes them.
pub fn volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (Some(host), Some(guest), mode, None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("`{text}` is not HOST:GUEST or HOST:GUEST:ro"));
    };
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(format!("`{other}` is not ro or rw")),
    };
    if host.is_empty()
        || !(host.starts_with('/')
            || host == "."
            || host == ".."
            || host.starts_with("./")
            || host.starts_with("../"))
    {
        return Err(format!(
            "`{host}` is not a path of this machine: begin it with / or ./ (there are no named volumes)"
        ));
    }
    let clean = !Path::new(guest).components().any(|part| part == std::path::Component::ParentDir);
    if !guest.starts_with('/') || !clean || guest.trim_end_matches('/').is_empty() {
        return Err(format!("`{guest}` is not an absolute path in the container below /"));
    }
    Ok(Volume { host: PathBuf::from(host), guest: guest.to_owned(), read_only })
}

/// The variables of `--env-file` and `-e`, in that order; a key without a value takes this process's, or is left out.
pub fn environment(files: &[PathBuf], given: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                let place = || format!("{}, line {}", file.display(), number + 1);
                all.extend(variable(line).with_context(place)?);
            }
        }
    }
    for entry in given {
        all.extend(variable(entry)?);
    }
    Ok(all)
}

fn variable(entry: &str) -> Result<Option<String>> {
    let key = entry.split_once('=').map_or(entry, |(key, _)| key);
    if key.is_empty() || key.contains(char::is_whitespace) || entry.contains('\0') {
        bail!("`{entry}` is not KEY=VALUE");
    }
    if entry.contains('=') {
        return Ok(Some(entry.to_owned()));
    }
    match std::env::var(key) {
        Ok(value) => Ok(Some(format!("{key}={value}"))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("the variable {key} is not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("1"), Ok(1));
        assert_eq!(size("64k"), Ok(64 << 10));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("10b"), Ok(10));
        for bad in ["", "m", "1x", "-1", "1.", ".5g", "1e3", "99999999999999t", "1 2"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        assert_eq!(cpus("2"), Ok(2000));
        assert_eq!(cpus("0.5"), Ok(500));
        assert_eq!(cpus(".25"), Ok(250));
        for bad in ["", "0", "0.001", "-1", "x", "1.x", "300"] {
            assert!(cpus(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn volumes_name_a_path_on_each_side() {
        let volume = |text| super::volume(text);
        assert_eq!(
            volume("/data:/srv/data:ro"),
            Ok(Volume { host: "/data".into(), guest: "/srv/data".to_owned(), read_only: true })
        );
        assert!(!volume("./x:/y").unwrap().read_only);
        for bad in ["/data", "data:/srv", "/a:b", "/a:/b:rx", "/a:/b:ro:z", ":/b", "/a:/", "/a:/b/../c"] {
            assert!(volume(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables_without_a_value_come_from_here_or_vanish() {
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        let got =
            environment(&[], &["A=1".into(), "PATH".into(), "CLOISTER_SURELY_UNSET".into(), "B=".into()])
                .unwrap();
        assert_eq!(got, ["A=1".to_owned(), path, "B=".to_owned()]);
        assert!(environment(&[], &["=x".into()]).is_err());
    }

    #[test]
    fn files_of_variables_skip_comments_and_name_bad_lines() {
        let dir = std::env::temp_dir().join(format!("cloister-env-{}", std::process::id()));
        fs::write(&dir, "# note\n\nA=1\n B=two words\n").unwrap();
        assert_eq!(environment(std::slice::from_ref(&dir), &[]).unwrap(), ["A=1", "B=two words"]);
        fs::write(&dir, "A=1\nbad key=2\n").unwrap();
        let error = format!("{:#}", environment(std::slice::from_ref(&dir), &[]).unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        fs::remove_file(&dir).unwrap();
    }
}
