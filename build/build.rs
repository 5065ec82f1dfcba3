//! Generates containerd's content service, which a build session serves, from the contract that the node daemon has.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../node/proto";
    println!("cargo:rerun-if-changed={proto}");
    let content = "github.com/containerd/containerd/api/services/content/v1/content.proto";
    let files = protox::compile([content], [proto])?;
    tonic_prost_build::configure().build_client(false).build_transport(false).compile_fds(files)?;
    Ok(())
}
