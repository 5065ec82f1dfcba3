//! What a failed build says.

use cloister_build::client::Error;
use cloister_build::job::Reason;
use cloister_builder::Builder;

use crate::output;

/// Everything there is to say about a build that failed.
pub async fn tell(builder: &Builder, error: &Error, disk: u64) -> String {
    let mut text = String::new();
    if let Some(failure) = error.failure() {
        text.push_str(&failure.report());
        text.push('\n');
    }
    text.push_str("cloister: ");
    let memory = builder.out_of_memory().await;
    match (Reason::of(error, memory.is_some()), memory) {
        (Reason::OutOfMemory, Some(memory)) => {
            let (limit, peak) = (output::bytes(memory.limit), output::bytes(memory.peak));
            text.push_str(&format!("OutOfMemory: the build used {peak} of {limit}; give it more with -m: "));
        }
        (Reason::DiskFull, _) => {
            let disk = output::bytes(disk);
            text.push_str(&format!("DiskFull: the build's disk of {disk} is full; see --cache-size: "));
        }
        (Reason::NoNetwork, _) => text.push_str("NoNetwork: steps of a build have no network: "),
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
