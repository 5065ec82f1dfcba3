//! Building images with BuildKit: what it asks of the side that has the files.

pub mod context;
pub mod output;
