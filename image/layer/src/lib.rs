//! One compressed tar layer in, one EROFS file out: verified, streaming, bounded.

pub mod digest;
pub mod erofs;
pub mod error;
pub mod limits;

pub use digest::Digest;
pub use error::{Error, Reason};
pub use limits::Limits;
