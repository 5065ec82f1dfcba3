//! `cloister-node`: the daemon of each node.

fn main() {}
