//! Answers who collects.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::pod::Pod;

/// How long a client may take for its request, and for taking the answer.
const CLIENT: Duration = Duration::from_secs(2);
/// Most bytes of a request.
const REQUEST: usize = 4096;

/// Answers on `metrics.sock` in `folder` until the process ends.
///
/// # Errors
/// When the socket can't be made.
pub fn serve(folder: &Path, pod: Arc<Pod>) -> Result<()> {
    let path = folder.join("metrics.sock");
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    // One after the other: there is one collector, and it is bounded in time.
                    let answered = tokio::time::timeout(CLIENT, answer(client, &pod)).await;
                    tracing::trace!(?answered, "metrics collected");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a collector's connection");
                    tokio::time::sleep(CLIENT).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut client: UnixStream, pod: &Pod) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST {
        if client.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let page = pod.counted.page(pod).await?;
    client.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n").await?;
    client.write_all(&page).await?;
    client.shutdown().await?;
    Ok(())
}
