//! `cloister version`.

use anyhow::Result;
use serde::Serialize;

use crate::args::{Format, Global};
use crate::paths::Root;
use crate::{kernel, output};

#[derive(Serialize)]
struct Versions {
    cloister: &'static str,
    protocol: String,
    kernels: Vec<String>,
}

/// Prints the versions of this program, of the protocol it speaks and of the guest kernels found.
pub fn run(global: &Global) -> Result<()> {
    let versions = Versions {
        cloister: env!("CARGO_PKG_VERSION"),
        protocol: cloister_protocol::version::VERSION.to_string(),
        kernels: kernel::list(&Root::find(global)?).into_iter().map(|found| found.version).collect(),
    };
    if global.output == Format::Json {
        return output::json(&versions);
    }
    let kernels =
        if versions.kernels.is_empty() { "none found".to_owned() } else { versions.kernels.join(", ") };
    output::print(&format!(
        "cloister  {}\nprotocol  {}\nkernels   {kernels}\n",
        versions.cloister, versions.protocol
    ))
}
