//! Turns containerd's `.proto` files into Rust, with a compiler that is itself a crate: no `protoc` is needed.

const SERVICES: [&str; 4] = [
    "github.com/containerd/containerd/api/services/containers/v1/containers.proto",
    "github.com/containerd/containerd/api/services/content/v1/content.proto",
    "github.com/containerd/containerd/api/services/diff/v1/diff.proto",
    "github.com/containerd/containerd/api/services/snapshots/v1/snapshots.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(SERVICES, ["proto"])?;
    tonic_prost_build::configure().build_transport(false).include_file("api.rs").compile_fds(files)?;
    Ok(())
}
