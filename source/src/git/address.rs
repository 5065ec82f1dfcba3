//! Addresses of repositories: `https://`, `ssh://` and `user@host:path`, and those of submodules beside them.

use crate::{Error, Result};

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// As git takes it.
    pub(super) url: String,
    /// Over https, otherwise over ssh.
    pub(super) https: bool,
    /// Host, with the port if one is said, in lower case.
    pub(super) host: String,
}

impl Address {
    /// Reads an address; everything that git could take for an option or for another protocol is refused.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let refuse = |why| Error::invalid(format!("source.git: {url:?} {why}"));
        if url.len() > 2048 || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse("is no address of a repository"));
        }
        let (https, rest) = if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("ssh://") {
            (false, rest)
        } else if let Some((place, path)) = url.split_once(':').filter(|(place, _)| place.contains('@')) {
            // scp's way of writing it; a slash before the colon would make it a path.
            if path.is_empty() || place.contains('/') {
                return Err(refuse("is no address of a repository"));
            }
            (false, place)
        } else {
            return Err(refuse("is not reached over https or ssh, the only protocols that are taken"));
        };
        let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = place.rsplit_once('@').map_or((None, place), |(user, host)| (Some(user), host));
        if https && user.is_some() || user.is_some_and(|user| user.contains(':')) {
            return Err(refuse("holds credentials: name a Secret in source.git.credentials"));
        }
        let word = |text: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
            !text.is_empty() && !text.starts_with('-') && text.bytes().all(known)
        };
        if !word(host) || user.is_some_and(|user| !word(user)) {
            return Err(refuse("has no host, or one that can't be"));
        }
        Ok(Self { url: url.to_owned(), https, host: host.to_ascii_lowercase() })
    }

    /// Host and port to connect to.
    pub(super) fn place(&self) -> (&str, u16) {
        let usual = if self.https { 443 } else { 22 };
        match self.host.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((host, port)) => (host, port.parse().unwrap_or(usual)),
            None => (&self.host, usual),
        }
    }

    /// The repository that a `.gitmodules` of this one names: another address, or a path relative to this one.
    pub(super) fn join(&self, url: &str) -> Result<Self> {
        if !url.starts_with("./") && !url.starts_with("../") {
            return Self::parse(url);
        }
        // What stands before the path, and what `..` may take away.
        let scheme = self.url.find("://").map_or(0, |at| at + 3);
        let start = self.url[scheme..].find(['/', ':']).map_or(self.url.len(), |at| scheme + at + 1);
        // A port is no path.
        let start = match self.url[start..].find('/') {
            Some(at) if scheme > 0 && self.url[..start].ends_with(':') => start + at + 1,
            _ => start,
        };
        let (base, path) = self.url.split_at(start);
        let mut parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        for part in url.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => {
                    let why = format!("source.git: the submodule address {url:?} leads out of {}", self.url);
                    return Err(Error::invalid(why));
                }
                ".." => {}
                part => parts.push(part),
            }
        }
        Self::parse(&format!("{base}{}", parts.join("/")))
    }

    /// Whether what opens one may be shown to the other.
    pub(super) fn shares(&self, other: &Self) -> bool {
        self.https == other.https && self.host == other.host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (url, https, host) in [
            ("https://Example.com/a/b.git", true, "example.com"),
            ("https://example.com:8443/a", true, "example.com:8443"),
            ("ssh://git@example.com:22/a", false, "example.com:22"),
            ("git@example.com:a/b.git", false, "example.com"),
        ] {
            let expected = Address { url: url.into(), https, host: host.into() };
            assert_eq!(Address::parse(url).unwrap(), expected);
        }
        for (url, host, port) in [
            ("https://h/a", "h", 443),
            ("https://h:8443/a", "h", 8443),
            ("https://[::1]/a", "[::1]", 443),
            ("https://[::1]:8443/a", "[::1]", 8443),
            ("ssh://git@h:2222/a", "h", 2222),
            ("git@h:a", "h", 22),
        ] {
            assert_eq!(Address::parse(url).unwrap().place(), (host, port), "{url}");
        }
        for url in [
            "http://example.com/a",
            "file:///etc",
            "ext::sh -c id",
            "/etc",
            "../x",
            "https://user:pw@example.com/a",
            "https://user@example.com/a",
            "ssh://git:pw@example.com/a",
            "ssh://-oProxyCommand=id/a",
            "ssh://x@-oProxyCommand=id/a",
            "-x@example.com:a",
            "git@example.com:",
            "git@exa mple.com:a",
            "https://",
            "",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn submodules_stand_beside_their_repository() {
        for (base, url, expected) in [
            ("https://h/team/app.git", "../lib.git", "https://h/team/lib.git"),
            ("https://h:8443/team/app.git", "../../other/lib", "https://h:8443/other/lib"),
            ("ssh://git@h:22/team/app", "./sub", "ssh://git@h:22/team/app/sub"),
            ("git@h:team/app.git", "../lib.git", "git@h:team/lib.git"),
            ("git@h:team/app.git", "https://other/x", "https://other/x"),
        ] {
            assert_eq!(Address::parse(base).unwrap().join(url).unwrap().url, expected);
        }
        let base = Address::parse("https://h/team/app").unwrap();
        for url in ["../../../x", "file:///x", "/x", "http://h/x"] {
            assert!(base.join(url).is_err(), "{url}");
        }
        let other = |url| base.shares(&base.join(url).unwrap());
        assert!(other("../x") && other("https://H/y") && !other("https://h.evil/y") && !other("git@h:x"));
    }
}
