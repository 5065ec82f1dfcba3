//! File modes as Go writes them (`io/fs.FileMode`): permissions as everywhere, kinds and special bits at the top.

use rustix::fs::FileType;

/// A folder.
pub(crate) const FOLDER: u32 = 1 << 31;
/// A symbolic link.
pub(crate) const LINK: u32 = 1 << 27;
/// A device, with [`CHARACTER`] a character device.
pub(crate) const DEVICE: u32 = 1 << 26;
/// A FIFO.
pub(crate) const FIFO: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
/// See [`DEVICE`].
pub(crate) const CHARACTER: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const IRREGULAR: u32 = 1 << 19;
/// All bits that say what a file is; a regular file has none of them.
pub(crate) const KIND: u32 = FOLDER | LINK | DEVICE | FIFO | SOCKET | CHARACTER | IRREGULAR;

/// Whether a file has bytes that can be asked for.
pub(crate) fn is_regular(mode: u32) -> bool {
    mode & KIND == 0
}

/// The mode of a `struct stat`.
pub(crate) fn from_unix(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => 0,
        FileType::Directory => FOLDER,
        FileType::Symlink => LINK,
        FileType::Fifo => FIFO,
        FileType::Socket => SOCKET,
        FileType::CharacterDevice => DEVICE | CHARACTER,
        FileType::BlockDevice => DEVICE,
        FileType::Unknown => IRREGULAR,
    };
    let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
    special.iter().filter(|(unix, _)| mode & unix != 0).fold(kind | mode & 0o777, |sum, (_, go)| sum | go)
}

/// Permissions and special bits as a `struct stat` and an archive have them.
pub(crate) fn to_unix(mode: u32) -> u32 {
    let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
    special.iter().filter(|(_, go)| mode & go != 0).fold(mode & 0o777, |sum, (unix, _)| sum | unix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_go() {
        for (unix, go) in [
            (0o100_644, 0o644),
            (0o104_755, 0o755 | 1 << 23),
            (0o102_755, 0o755 | 1 << 22),
            (0o041_777, 0o777 | 1 << 31 | 1 << 20),
            (0o120_777, 0o777 | 1 << 27),
            (0o010_600, 0o600 | 1 << 25),
            (0o020_666, 0o666 | 1 << 26 | 1 << 21),
            (0o060_660, 0o660 | 1 << 26),
            (0o140_755, 0o755 | 1 << 24),
        ] {
            assert_eq!(from_unix(unix), go, "{unix:o}");
            assert_eq!(to_unix(go), unix & 0o7777, "{unix:o}");
        }
        assert!(is_regular(from_unix(0o107_777)) && !is_regular(from_unix(0o140_755)));
    }
}
