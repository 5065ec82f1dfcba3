//! What a failed build says.

use std::time::{Duration, Instant};

use cloister_build::client::Error;
use cloister_build::job::Reason;
use cloister_builder::Builder;

use crate::args::build::Network;
use crate::output;

/// How long the word of a failed step may have been on its way.
const WAY: Duration = Duration::from_secs(2);

/// Everything there is to say about a build that failed; it began at `begun`.
pub async fn tell(builder: &Builder, error: &Error, disk: u64, network: Network, begun: Instant) -> String {
    let mut text = String::new();
    if let Some(failure) = error.failure() {
        text.push_str(&failure.report());
        text.push('\n');
    }
    text.push_str("cloister: ");
    // A process may have been killed in a step before, which went on.
    let ran = error.failure().and_then(|failure| failure.time);
    let since = ran.and_then(|ran| Instant::now().checked_sub(ran + WAY)).map_or(begun, |at| at.max(begun));
    let memory = builder.out_of_memory(since).await;
    match (Reason::of(error, memory.is_some()), memory) {
        (Reason::OutOfMemory, Some(memory)) => {
            let (limit, peak) = (output::bytes(memory.limit), output::bytes(memory.peak));
            text.push_str(&format!("OutOfMemory: the build used {peak} of {limit}; give it more with -m: "));
        }
        (Reason::DiskFull, _) => {
            let disk = output::bytes(disk);
            text.push_str(&format!("DiskFull: the build's disk of {disk} is full; see --cache-size: "));
        }
        (Reason::NoNetwork, _) if network == Network::None => {
            text.push_str("NoNetwork: steps of a build have no network without --network egress: ");
        }
        (Reason::TooLarge, _) => text.push_str("ResultTooLarge: a result has to fit --cache-size: "),
        (Reason::NoRoom, _) => text.push_str("DiskFull: no room on this machine, see --root and -o: "),
        (Reason::Deadline, _) => text.push_str("Deadline: "),
        _ => {}
    }
    text.push_str(&error.to_string());
    if matches!(error, Error::Lost(_)) {
        let log = builder.log();
        if !log.is_empty() {
            text.push_str(&format!("; its log ends with: {log}"));
        }
    }
    text
}
