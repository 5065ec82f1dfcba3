//! An entry for fuzzers and property tests: outputs as packets, without a connection.

use std::path::Path;

use bollard_buildkit_proto::fsutil::types::Packet;

use crate::output::{Limits, OutputError, Received, Receiver, Staging};

/// Receives a tree into the folder `target` from a builder that sends these packets, whatever it is asked for. An error
/// when they end before the tree does.
pub fn output(
    target: &Path,
    limits: Limits,
    packets: impl IntoIterator<Item = Packet>,
) -> Result<Received, OutputError> {
    let mut receiver = Receiver::new(Staging::new(target)?, limits);
    let mut answers = Vec::new();
    for packet in packets {
        if let Some(received) = receiver.take(packet, &mut answers)? {
            return Ok(received);
        }
        answers.clear();
    }
    Err(OutputError::Missing)
}
