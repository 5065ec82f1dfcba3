//! One microVM: machine, devices, hot-plug, vsock transport, file sharing.

pub mod accel;
mod error;
mod process;

pub use accel::Accel;
pub use error::{Error, Result};
pub use process::User;

/// x
#[derive(Debug, Clone)]
pub struct Exit;
impl std::fmt::Display for Exit { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("x") } }
