//! Tests and benchmarks against real virtual machines.
