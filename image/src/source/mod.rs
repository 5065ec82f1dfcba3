//! Where images come from.

pub mod archive;
mod docker;
mod files;
mod folder;
mod found;
mod layout;
pub mod registry;
mod spool;
mod tarfile;
mod wrapper;

pub use archive::{Input, Request};
pub(crate) use files::Section;
pub use wrapper::unpacked;
