//! Run and inspect container images in microVMs.
fn main() {}
