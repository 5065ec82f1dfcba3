//! Exit codes, as docker and shells use them.

/// The microVM or this program failed, not the command.
pub const FAILED: u8 = 125;
/// The command was found and can't be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;

/// The code for a command that could not be run.
pub fn of_error(error: &cloister_sandbox::Error) -> u8 {
    if error.is_not_found() {
        NOT_FOUND
    } else if error.is_not_executable() {
        NOT_EXECUTABLE
    } else {
        FAILED
    }
}

/// The code of a command ended by a signal.
pub fn of_signal(signal: i32) -> u8 {
    u8::try_from(signal).ok().and_then(|signal| signal.checked_add(128)).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_counted_from_128() {
        assert_eq!(of_signal(9), 137);
        assert_eq!(of_signal(15), 143);
        assert_eq!(of_signal(-1), FAILED);
    }
}
