//! One compressed tar layer in, one EROFS file out: verified, streaming, bounded.

mod apply;
mod blob;
mod convert;
pub mod digest;
pub mod erofs;
pub mod error;
pub mod inflate;
pub mod limits;
mod pipeline;
pub mod tar;

pub use blob::{Compression, Expected};
pub use convert::{Converted, convert};
pub use digest::Digest;
pub use error::{Error, Reason};
pub use limits::Limits;
