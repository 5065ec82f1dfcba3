//! The virtual machines of this user, as they are on disk.

pub mod folder;
pub mod follow;
pub mod log;
pub mod pods;
pub mod record;

pub use folder::{Folder, Vms};
pub use follow::Follow;
pub use record::{Record, Status};
