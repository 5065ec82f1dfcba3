//! Docker-style users, resolved with the container's own passwd(5) and group(5) files.

use crate::error::{Error, Result};
use crate::inroot::Root;

/// Bytes read of either file.
const LIMIT: u64 = 4 << 20;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one not among them.
    pub groups: Vec<u32>,
    /// The home folder; `/` when passwd has no entry.
    pub home: String,
}

/// Resolves `name`, `uid`, `name:group` or `uid:gid`. Numbers need no entry; a number that is also a name is the name,
/// as docker has it. An explicit group replaces the supplementary groups.
///
/// # Errors
/// When a name has no entry, a number is out of range, or a file cannot be read.
pub fn resolve(root: &Root, user: &str) -> Result<User> {
    let passwd = root.read("/etc/passwd", LIMIT)?.unwrap_or_default();
    let group = root.read("/etc/group", LIMIT)?.unwrap_or_default();
    find(user, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
}

/// The home folder of a user id; `/` when there is no entry.
///
/// # Errors
/// When passwd cannot be read.
pub fn home(root: &Root, uid: u32) -> Result<String> {
    let passwd = root.read("/etc/passwd", LIMIT)?.unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    let entry = accounts(&passwd).find(|account| account.uid == uid);
    Ok(entry.map_or_else(|| "/".into(), |account| account.home()))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Account<'_> {
    fn home(&self) -> String {
        if self.home.is_empty() { "/".into() } else { self.home.into() }
    }
}

/// name:password:uid:gid:gecos:home:shell; malformed lines are passed over.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    })
}

/// name:password:gid:member,member
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((name, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or("")))
    })
}

fn find(user: &str, passwd: &str, group: &str) -> Result<User> {
    let (who, which) = match user.split_once(':') {
        Some((who, which)) => (who, Some(which).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let number = id(who);
    let account = accounts(passwd)
        .find(|account| account.name == who)
        .or_else(|| number.and_then(|uid| accounts(passwd).find(|account| account.uid == uid)));
    let mut found = match (account, number) {
        (Some(account), _) => {
            let member = |members: &str| members.split(',').any(|member| member.trim() == account.name);
            let mut supplementary: Vec<u32> = groups(group)
                .filter(|(_, gid, members)| *gid != account.gid && member(members))
                .map(|(_, gid, _)| gid)
                .collect();
            supplementary.sort_unstable();
            supplementary.dedup();
            User { uid: account.uid, gid: account.gid, groups: supplementary, home: account.home() }
        }
        (None, Some(uid)) => User { uid, gid: 0, groups: Vec::new(), home: "/".into() },
        (None, None) => {
            return Err(Error::invalid(format!("user {who:?}: no such name in the container's /etc/passwd")));
        }
    };
    if let Some(which) = which {
        found.gid = groups(group)
            .find(|(name, ..)| *name == which)
            .map(|(_, gid, _)| gid)
            .or_else(|| id(which))
            .ok_or_else(|| {
                Error::invalid(format!("group {which:?}: no such name in the container's /etc/group"))
            })?;
        found.groups.clear();
    }
    Ok(found)
}

/// A numeric id: decimal digits, at most what the kernel's 32 bits hold without -1.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/sh\n1000:x:7:8::/seven:\nbad:x:x:1::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nstaff:x:50:web,root\naudio:x:29:web\nmine:x:60: web \n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn names_and_numbers_resolve() {
        let cases = [
            ("", user(0, 0, &[50], "/root")),
            ("root", user(0, 0, &[50], "/root")),
            ("web", user(33, 33, &[29, 50, 60], "/var/www")),
            ("33", user(33, 33, &[29, 50, 60], "/var/www")),
            ("web:audio", user(33, 29, &[], "/var/www")),
            ("web:", user(33, 33, &[29, 50, 60], "/var/www")),
            ("4000", user(4000, 0, &[], "/")),
            ("4000:5000", user(4000, 5000, &[], "/")),
            ("4294967294:70000", user(4_294_967_294, 70000, &[], "/")),
            ("1000", user(7, 8, &[], "/seven")),
            (":audio", user(0, 29, &[], "/root")),
        ];
        for (text, expected) in cases {
            assert_eq!(find(text, PASSWD, GROUP).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        for text in ["nobody", "web:nogroup", "-1", "4294967295", "99999999999", "+5", "bad", "0:4294967295"]
        {
            assert!(find(text, PASSWD, GROUP).is_err(), "{text:?}");
        }
    }

    #[test]
    fn images_without_files_have_numeric_users_only() {
        assert_eq!(find("", "", "").unwrap(), user(0, 0, &[], "/"));
        assert!(find("root", "", "").is_err());
    }
}
