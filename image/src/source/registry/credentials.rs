//! Where credentials come from: docker's `config.json` and its credential helpers.
//!
//! Sources: docker CLI documentation ("Credential stores", "Credential helper protocol"), containers-auth.json(5).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::base64;
use crate::error::{Error, IoContext, Result};
use crate::oci::short;

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Longest answer of a helper, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// How long a helper may take; it may ask the user for a passphrase.
const HELPER_WAIT: Duration = Duration::from_secs(60);
/// The key docker uses for its own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What to present to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password.
    Password {
        /// User name.
        user: String,
        /// Password or access token.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for a bearer token.
    IdentityToken(String),
    /// A bearer token to use as it is.
    RegistryToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// A docker configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DockerConfig {
    auths: HashMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl std::fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthEntry(…)")
    }
}

impl DockerConfig {
    /// Reads `authfile`, or else the user's own configuration, which may be absent.
    pub fn load(authfile: Option<&Path>) -> Result<Self> {
        if let Some(path) = authfile {
            return Self::read(path);
        }
        let default = std::env::var_os("DOCKER_CONFIG")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".docker")))
            .map(|dir| dir.join("config.json"));
        match default {
            Some(path) if path.exists() => Self::read(&path),
            _ => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let mut text = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE).read_to_end(&mut text))
            .at("read", path)?;
        // The reason is left out on purpose: serde would quote what may be a password.
        serde_json::from_slice(&text).map_err(|error| {
            Error::invalid(
                path.display().to_string(),
                format!("not a docker configuration, line {}", error.line()),
            )
        })
    }

    /// The credentials that `documents` hold, docker configurations that somebody else wrote: no helper that they name is
    /// run. Of two for the same place the first counts.
    ///
    /// # Errors
    /// When one is no docker configuration; the message does not quote it.
    pub fn of<'a>(documents: impl IntoIterator<Item = &'a [u8]>) -> Result<Self> {
        let mut all = Self::default();
        for text in documents {
            let one: Self = serde_json::from_slice(text).map_err(|error| {
                let why = format!("not a docker configuration, line {}", error.line());
                Error::invalid("credentials of registries", why)
            })?;
            for (place, entry) in one.auths {
                all.auths.entry(place).or_insert(entry);
            }
        }
        Ok(all)
    }

    /// Credentials for a repository, from the most specific entry.
    pub fn get(&self, registry: &str, repository: &str) -> Result<Option<Credentials>> {
        let server = if registry == crate::reference::DEFAULT_REGISTRY { DOCKER_HUB_KEY } else { registry };
        if let Some(helper) = self.cred_helpers.get(registry).or_else(|| self.cred_helpers.get(server)) {
            return ask_helper(helper, server);
        }
        // containers-auth.json(5) allows keys for part of a registry; the longest wins.
        let mut scope = format!("{registry}/{repository}");
        loop {
            if let Some(found) = self.auths.get(&scope).and_then(AuthEntry::credentials) {
                return Ok(Some(found));
            }
            match scope.rsplit_once('/') {
                Some((shorter, _)) => scope.truncate(shorter.len()),
                None => break,
            }
        }
        // Docker itself writes keys as URLs of various shapes.
        let host = |key: &str| {
            let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
            key.split('/').next().unwrap_or_default().to_owned()
        };
        let wanted = host(server);
        let by_url = self.auths.iter().filter(|(key, _)| key.starts_with("http") && host(key) == wanted);
        if let Some(found) = by_url.filter_map(|(_, entry)| entry.credentials()).next() {
            return Ok(Some(found));
        }
        self.creds_store
            .as_deref()
            .filter(|store| !store.is_empty())
            .map_or(Ok(None), |store| ask_helper(store, server))
    }
}

impl AuthEntry {
    fn credentials(&self) -> Option<Credentials> {
        let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Some(Credentials::RegistryToken(token));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Some(Credentials::IdentityToken(token));
        }
        let (user, password) = match filled(&self.auth) {
            Some(auth) => {
                let plain = String::from_utf8(base64::decode(&auth)?).ok()?;
                let (user, password) = plain.split_once(':')?;
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => (filled(&self.username)?, filled(&self.password)?),
        };
        Some(Credentials::Password { user, password })
    }
}

/// Runs `docker-credential-NAME get`.
fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{name}");
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(Error::invalid(short(&program), "not the name of a credential helper"));
    }
    let fail =
        |why: String| Error::invalid(program.clone(), format!("asked for credentials of {server}: {why}"));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    let answer = talk(&mut child, server);
    // Whatever happened, the helper does not outlive the question.
    let status = match answer {
        Ok(_) => child.wait(),
        Err(_) => child.kill().and_then(|()| child.wait()),
    }
    .map_err(|error| fail(error.to_string()))?;
    let answer = answer.map_err(&fail)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        return if said.contains("credentials not found") { Ok(None) } else { Err(fail(short(said.trim()))) };
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| fail("the answer is not what the helper protocol says".to_owned()))?;
    Ok(Some(if answer.username == "<token>" {
        Credentials::IdentityToken(answer.secret)
    } else {
        Credentials::Password { user: answer.username, password: answer.secret }
    }))
}

/// Writes the question and reads the bounded answer until the helper closes its output or the time is up.
fn talk(child: &mut Child, server: &str) -> Result<Vec<u8>, String> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("no pipe to it".to_owned());
    };
    // A server name fits any pipe, so this cannot block.
    stdin.write_all(server.as_bytes()).map_err(|error| error.to_string())?;
    drop(stdin);
    let (send, receive) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let result = stdout.take(MAX_ANSWER).read_to_end(&mut answer).map(|_| answer);
        // The other side may have given up waiting.
        let _ = send.send(result);
    });
    let answer = receive
        .recv_timeout(HELPER_WAIT)
        .map_err(|_| format!("no answer for {} s", HELPER_WAIT.as_secs()))?;
    let _ = reader.join();
    // It closed its output; a helper that stays on anyway is ended.
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > deadline {
            return Err("it answered and did not end".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    answer.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DockerConfig {
        serde_json::from_str(json).unwrap()
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let config = config(
            r#"{"auths":{"reg:5000":{"auth":"dTpw"},"reg:5000/team":{"username":"t","password":"q"},
               "https://index.docker.io/v1/":{"auth":"aHViOmE6Yg=="},"https://old.example/v2/":{"identitytoken":"tok"}},"other":1}"#,
        );
        assert_eq!(config.get("reg:5000", "x/y").unwrap(), password("u", "p"));
        assert_eq!(config.get("reg:5000", "team/y").unwrap(), password("t", "q"));
        assert_eq!(config.get("docker.io", "library/debian").unwrap(), password("hub", "a:b"));
        assert_eq!(
            config.get("old.example", "a").unwrap(),
            Some(Credentials::IdentityToken("tok".to_owned()))
        );
        assert_eq!(config.get("reg", "x").unwrap(), None);
    }

    #[test]
    fn strangers_configurations_name_no_helpers() {
        let first = br#"{"auths":{"reg:5000":{"auth":"dTpw"}},"credsStore":"x","credHelpers":{"other":"y"}}"#;
        let second = br#"{"auths":{"reg:5000":{"auth":"YTpi"},"more":{"auth":"YTpi"}}}"#;
        let all = DockerConfig::of([&first[..], &second[..]]).unwrap();
        assert_eq!(all.get("reg:5000", "x").unwrap(), password("u", "p"));
        assert_eq!(all.get("more", "x").unwrap(), password("a", "b"));
        assert_eq!(all.get("other", "x").unwrap(), None);
        let error = DockerConfig::of([&b"hunter2"[..]]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn helper_names_cannot_be_paths() {
        let config = config(r#"{"credHelpers":{"reg":"../../bin/sh"}}"#);
        assert!(config.get("reg", "a").unwrap_err().to_string().contains("not the name"));
    }

    #[test]
    fn a_broken_file_is_named_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"auths":{"x":{"auth":5,"password":"hunter2"}}}"#).unwrap();
        let error = DockerConfig::load(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
    }
}
