//! `make bench-builds`: builds in microVMs beside `buildctl` on the host.

use anyhow::Result;
use cloister_e2e::bench::{builds, machine};

fn main() -> Result<()> {
    println!("{}\n\n{}", machine(), builds::table(&builds::run()?));
    Ok(())
}
