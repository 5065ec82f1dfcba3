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

pub use archive::{Input, Request};
pub(crate) use files::Section;
