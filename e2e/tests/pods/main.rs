//! What a user of Kubernetes expects of a pod, with every runtime handler on every containerd: microVMs and, as the
//! proof that the cases are right, ordinary containers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

/// Makes a test of each case for each handler and version, in modules named after them.
macro_rules! cases {
    ($([$($image:expr),*])? $($case:ident),+ $(,)?) => {
        cases!(@module runc_on_1_7 V1_7 Runc [$($($image),*)?] $($case),+);
        cases!(@module runc_on_2_1 V2_1 Runc [$($($image),*)?] $($case),+);
        microvm_cases!([$($($image),*)?] $($case),+);
    };
    (@module $module:ident $version:ident $handler:ident $images:tt $($case:ident),+) => {
        mod $module {
            use cloister_e2e::containerd::{Handler, Version};
            #[allow(unused_imports, reason = "for the names of images")]
            use super::*;
            $(
                #[test]
                fn $case() {
                    cloister_e2e::run_case(Version::$version, Handler::$handler, &$images, super::$case);
                }
            )+
        }
    };
}

/// The same for microVMs alone.
macro_rules! microvm_cases {
    ($([$($image:expr),*])? $($case:ident),+ $(,)?) => {
        cases!(@module cloister_on_1_7 V1_7 Cloister [$($($image),*)?] $($case),+);
        cases!(@module cloister_on_2_1 V2_1 Cloister [$($($image),*)?] $($case),+);
        cases!(@module cloister_sandbox_on_2_1 V2_1 CloisterSandbox [$($($image),*)?] $($case),+);
    };
}

mod builder;
mod death;
mod flaws;
mod life;
mod logs;
mod network;
mod observability;
mod pains;
mod process;
mod resources;
mod restrictions;
mod rootfs;
mod storage;
mod validation;
mod volumes;
