//! The agent's part of the kernel command line.

use tracing::Level;

/// What the kernel command line says to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmdline {
    /// `cloister.privileged=1`: containers may ask for everything inside this guest.
    pub privileged: bool,
    /// `cloister.log=error|warn|info|debug|trace`: what reaches the console.
    pub log: Level,
}

impl Cmdline {
    /// Reads `/proc/cmdline`; the defaults when it cannot be read.
    pub fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(line: &str) -> Self {
        let mut parsed = Self { privileged: false, log: Level::WARN };
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("cloister.privileged", value)) => parsed.privileged = value == "1",
                Some(("cloister.log", value)) => parsed.log = value.parse().unwrap_or(Level::WARN),
                _ => {}
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_needs_exactly_one() {
        assert!(Cmdline::parse("console=hvc0 cloister.privileged=1 quiet").privileged);
        for line in [
            "",
            "cloister.privileged",
            "cloister.privileged=0",
            "xcloister.privileged=1",
            "cloister.privileged=yes",
        ] {
            assert!(!Cmdline::parse(line).privileged, "{line}");
        }
    }

    #[test]
    fn log_level_defaults_to_warn() {
        assert_eq!(Cmdline::parse("cloister.log=debug").log, Level::DEBUG);
        assert_eq!(Cmdline::parse("cloister.log=loud").log, Level::WARN);
    }
}
