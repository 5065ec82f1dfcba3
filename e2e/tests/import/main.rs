//! Images of builds into the image store of real containerds, without a registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod bench;

/// Makes a test of each case for each containerd, in modules named after them.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        cases!(@module on_1_7 V1_7 $($case),+);
        cases!(@module on_2_1 V2_1 $($case),+);
    };
    (@module $module:ident $version:ident $($case:ident),+) => {
        mod $module {
            $(
                #[test]
                fn $case() {
                    crate::bench::run_case(cloister_e2e::containerd::Version::$version, super::$case);
                }
            )+
        }
    };
}

mod checklist;
mod crash;
mod drift;
mod hostile;
mod measure;
mod nodes;
mod placed;
mod pods;
