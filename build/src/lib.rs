//! Building images with BuildKit: what it asks of the side that has the files.

pub mod builder;
pub mod context;
pub mod dockerfile;
pub mod fuzzing;
pub mod output;
