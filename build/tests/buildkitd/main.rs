//! The client against a real buildkitd. Needs root, as buildkitd does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod builds;
mod caches;
mod ends;
mod lab;
mod session;

/// A stage to stand on: nothing but a busybox.
const BUSYBOX: &str = r#"FROM scratch AS base
COPY --chmod=755 busybox /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
ENV PATH=/bin
"#;
