//! What the tests share: making tars, converting them, and looking at the result through the kernel.
#![allow(dead_code)] // each test file uses its part

pub mod kernel;
pub mod maker;

use std::fs::File;

use cloister_layer::{Converted, Error, Expected, Limits, convert};

/// Converts `blob` with default limits.
pub fn converted(blob: &[u8]) -> Result<(File, Converted), Error> {
    converted_within(blob, &Limits::default())
}

/// Converts `blob`.
pub fn converted_within(blob: &[u8], limits: &Limits) -> Result<(File, Converted), Error> {
    let file = tempfile::tempfile().unwrap();
    let done = convert(blob, &Expected::default(), &file, limits, &|_| {})?;
    Ok((file, done))
}
