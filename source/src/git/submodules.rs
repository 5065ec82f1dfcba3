//! Submodules: commits of other repositories, at the places that `.gitmodules` names.

use std::collections::HashMap;

use super::Repository;
use super::address::Address;
use crate::folder::Folder;
use crate::{Error, Result};

/// Submodules of submodules.
const MAX_DEPTH: usize = 8;
/// Submodules of one source.
const MAX_COUNT: usize = 64;
/// Bytes of `.gitmodules`, and of a list of submodules.
const MAX_TEXT: u64 = 1 << 20;
/// Bytes of the list of all files.
const MAX_LIST: u64 = 64 << 20;

/// A submodule that is to be fetched.
struct Wanted {
    address: Address,
    commit: String,
    /// Where it belongs, from the source's root.
    path: String,
    depth: usize,
}

/// Adds the submodules of a commit, and theirs, to `folder`.
pub(super) fn add(
    repository: &Repository<'_>,
    address: &Address,
    commit: &str,
    folder: &mut Folder,
) -> Result<()> {
    let mut waiting = find(repository, address, commit, "", 1)?;
    let mut count = 0;
    while let Some(next) = waiting.pop() {
        count += 1;
        if count > MAX_COUNT {
            return Err(Error::invalid(format!("source.git: more than {MAX_COUNT} submodules")));
        }
        repository.fetch(&next.address, &next.commit)?;
        repository.write_out(&next.commit, folder, next.path.as_bytes())?;
        waiting.extend(find(repository, &next.address, &next.commit, &next.path, next.depth + 1)?);
    }
    Ok(())
}

fn find(
    repository: &Repository<'_>,
    address: &Address,
    commit: &str,
    base: &str,
    depth: usize,
) -> Result<Vec<Wanted>> {
    let list = repository.plain(["ls-tree", "-r", "-z", "--full-tree", commit])?.text(MAX_LIST)?;
    let links: Vec<_> = list.split('\0').filter_map(link).collect();
    if links.is_empty() {
        return Ok(Vec::new());
    }
    if depth > MAX_DEPTH {
        return Err(Error::invalid(format!("source.git: submodules are more than {MAX_DEPTH} deep")));
    }
    let urls = urls(repository, commit)?;
    let wanted = links.into_iter().map(|(commit, path)| {
        let url = urls.get(path).ok_or_else(|| {
            Error::invalid(format!("source.git: .gitmodules has no address for the submodule {path:?}"))
        })?;
        let path = if base.is_empty() { path.to_owned() } else { format!("{base}/{path}") };
        Ok(Wanted { address: address.join(url)?, commit: commit.to_owned(), path, depth })
    });
    wanted.collect()
}

/// Commit and path of an entry that is a submodule: `160000 commit COMMIT<TAB>PATH`.
fn link(entry: &str) -> Option<(&str, &str)> {
    let (about, path) = entry.split_once('\t')?;
    Some((about.strip_prefix("160000 commit ")?, path))
}

/// Addresses by path, as `.gitmodules` of a commit has them.
fn urls(repository: &Repository<'_>, commit: &str) -> Result<HashMap<String, String>> {
    let blob = format!("--blob={commit}:.gitmodules");
    let text = repository.plain(["config", &blob, "-z", "--list"])?.text(MAX_TEXT)?;
    let (mut paths, mut urls) = (HashMap::new(), HashMap::new());
    for setting in text.split('\0') {
        let Some((key, value)) = setting.split_once('\n') else { continue };
        let Some((name, what)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else {
            continue;
        };
        match what {
            "path" => drop(paths.insert(name, value)),
            "url" => drop(urls.insert(name, value)),
            _ => {}
        }
    }
    let both =
        paths.into_iter().filter_map(|(name, path)| Some((path.to_owned(), (*urls.get(name)?).to_owned())));
    Ok(both.collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_commits_are_submodules() {
        assert_eq!(super::link("160000 commit abc\ta b"), Some(("abc", "a b")));
        assert_eq!(super::link("100644 blob abc\tx"), None);
        assert_eq!(super::link(""), None);
    }
}
