//! `containerd-shim-cloister-v2`: the shim that containerd starts for each pod.

fn main() {}
