//! The client against a real buildkitd. Needs root, as buildkitd does.

mod builds;
mod ends;
mod lab;
mod session;

/// A stage to stand on: nothing but a busybox.
const BUSYBOX: &str = r#"FROM scratch AS base
COPY --chmod=755 busybox /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
ENV PATH=/bin
"#;
