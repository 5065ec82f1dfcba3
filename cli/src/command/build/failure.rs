//! What a failed build says, and what its words alone do not tell.

use cloister_build::client::Error;
use cloister_builder::Builder;

use crate::output;

/// What programs say that want a network, in lower case.
const NETWORK: [&str; 8] = [
    "network is unreachable",
    "network unreachable",
    "temporary failure in name resolution",
    "temporary failure resolving",
    "could not resolve",
    "bad address",
    "name or service not known",
    "no such host",
];

/// Everything there is to say about a build that failed.
pub async fn tell(builder: &Builder, error: &Error, disk: u64) -> String {
    let mut text = String::new();
    let mut words = error.to_string();
    if let Some(failure) = error.failure() {
        text.push_str(&failure.report());
        text.push('\n');
        words.push_str(&failure.message);
        words.extend(failure.log_tail.iter().map(String::as_str));
    }
    text.push_str("cloister: ");
    let words = words.to_ascii_lowercase();
    if let Some(memory) = builder.out_of_memory().await {
        let (limit, peak) = (output::bytes(memory.limit), output::bytes(memory.peak));
        text.push_str(&format!("OutOfMemory: the build used {peak} of {limit}; give it more with -m: "));
    } else if words.contains("no space left on device") {
        let disk = output::bytes(disk);
        text.push_str(&format!("DiskFull: the build's disk of {disk} is full; see --cache-size: "));
    } else if NETWORK.iter().any(|one| words.contains(one)) {
        text.push_str("NoNetwork: steps of a build have no network: ");
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
