//! Reading layer tars: V7, ustar, GNU, star and PAX, entry by entry, from a stream that is seen once.
//!
//! Sources: POSIX.1-2024 `pax` ("ustar Interchange Format", "pax Interchange Format"), GNU tar manual "Basic Tar Format"
//! and "Storing Sparse Files", star(5). Where they leave room, the reading is that of GNU tar and containerd (Go's
//! archive/tar): links, devices and folders have no data whatever their size field says; a file whose name ends in a
//! slash is a folder; the archive may end without its marker, but nothing except zeros may follow the marker.

mod entry;
mod header;
mod number;
mod pax;
mod reader;
mod sparse;

pub use entry::{Entry, EntryKind, SparseMap};
pub use reader::Reader;
