//! Turns containerd's and the CRI's `.proto` files into Rust, with a compiler that is itself a crate: no `protoc` is needed.

const SERVICES: [&str; 10] = [
    "github.com/containerd/containerd/api/services/containers/v1/containers.proto",
    "github.com/containerd/containerd/api/services/content/v1/content.proto",
    "github.com/containerd/containerd/api/services/diff/v1/diff.proto",
    "github.com/containerd/containerd/api/services/events/v1/events.proto",
    "github.com/containerd/containerd/api/services/images/v1/images.proto",
    "github.com/containerd/containerd/api/services/leases/v1/leases.proto",
    "github.com/containerd/containerd/api/services/snapshots/v1/snapshots.proto",
    "github.com/containerd/containerd/api/services/tasks/v1/tasks.proto",
    "k8s.io/cri-api/pkg/apis/runtime/v1/images.proto",
    "k8s.io/cri-api/pkg/apis/runtime/v1/runtime.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(SERVICES, ["proto"])?;
    tonic_prost_build::configure().build_transport(false).include_file("api.rs").compile_fds(files)?;
    Ok(())
}
