//! Brings back what was removed of builds' images, by hand or by the kubelet's collection.

use std::collections::HashMap;
use std::time::Duration;

use super::Importer;
use crate::error::Result;

/// How often to look when containerd reports nothing.
const PERIOD: Duration = Duration::from_secs(60);
/// Quiet after a look, so that a burst of removals is one.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to leave a containerd alone that does not answer.
const AWAY: Duration = Duration::from_secs(3);

/// Looks after the images of all builds, until dropped.
pub async fn run(importer: Importer) {
    let mut failing = HashMap::new();
    loop {
        let event = async {
            let event = tokio::time::timeout(PERIOD, importer.scope.image_event()).await;
            if matches!(event, Ok(Err(_))) {
                tokio::time::sleep(AWAY).await;
            }
        };
        let look = async {
            if let Err(error) = round(&importer, &mut failing).await {
                tracing::debug!(%error, "builds' images not looked at");
            }
            tokio::time::sleep(PAUSE).await;
        };
        // Listens while it looks: what is removed meanwhile is not missed.
        tokio::join!(event, look);
    }
}

/// One look; a failure is reported once, until it changes or ends.
async fn round(importer: &Importer, failing: &mut HashMap<String, String>) -> Result<()> {
    importer.sweep().await?;
    let records = importer.records().await?;
    failing.retain(|build, _| records.iter().any(|record| record.build == *build));
    for record in records {
        match importer.ensure(&record).await {
            Ok(false) => drop(failing.remove(&record.build)),
            Ok(true) => {
                failing.remove(&record.build);
                tracing::info!(build = record.build, digest = %record.top.digest, "image brought back");
            }
            Err(error) => {
                let text = error.to_string();
                if failing.get(&record.build) != Some(&text) {
                    tracing::warn!(build = record.build, %error, "image not complete");
                }
                failing.insert(record.build, text);
            }
        }
    }
    Ok(())
}
