//! Links the shim so that it is small in memory: each pod has one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Half a megabyte of relocations, read at every start, becomes a few kilobytes. Needs glibc 2.36.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
