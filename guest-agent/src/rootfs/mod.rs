//! File systems that come from the host: disks of layers, scratch disks, shares.

mod disk;
mod overlay;
mod share;
mod uevent;

pub use overlay::{Mounted, mount};
pub use share::{SHARES, Shares};
