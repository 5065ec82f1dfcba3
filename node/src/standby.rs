//! Who answers for the differ while the daemon is away.
//!
//! containerd asks our differ first about every layer of every runtime, and goes on to its own when ours does not do that
//! layer; one that does not answer at all is a failure to it. So without the daemon no image could be unpacked on the
//! node, the daemon's own next one among them. containerd therefore knows the differ by a link, which leads to the daemon
//! while it serves, and else to a process that does no layer at all.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::info;

use crate::error::IoContext;
use crate::listen;

/// How often the daemon is looked for while it is away.
const PERIOD: Duration = Duration::from_millis(200);
/// How long containerd may take to hang up when it is back.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where containerd finds the differ of the daemon that serves at `address`.
pub fn differ(address: &Path) -> PathBuf {
    address.with_file_name("diff.sock")
}

/// Has the differ's link lead to this socket.
pub fn lead(address: &Path, to: &Path) -> crate::error::Result<()> {
    let link = differ(address);
    let folder = link.parent().unwrap_or(Path::new("/"));
    // Under a name of its own: the daemon may do the same at this moment.
    let new = tempfile::Builder::new().prefix(".diff-").make_in(folder, |new| symlink(to, new));
    let new = new.at("make a link in", folder)?.into_temp_path();
    new.persist(&link).map_err(|error| error.error).at("publish", &link)
}

/// Answers whenever nobody serves at `address`, until SIGTERM or SIGINT.
pub async fn run(address: &Path) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        result = take_turns(address) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn take_turns(address: &Path) -> Result<()> {
    loop {
        match UnixStream::connect(address).await {
            // Says nothing until it ends.
            Ok(mut daemon) => while matches!(daemon.read(&mut [0; 64]).await, Ok(1..)) {},
            Err(_) => stand_in(address).await?,
        }
        sleep(PERIOD).await;
    }
}

/// Answers that it knows no differ until the daemon is there.
async fn stand_in(address: &Path) -> Result<()> {
    let own = address.with_file_name("standby.sock");
    let listener = UnixListenerStream::new(listen::unix(&own)?);
    lead(address, &own)?;
    info!("the daemon is away: containerd unpacks layers by itself");
    // Once told to, the server asks containerd to hang up, so that it follows the link once more.
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let server =
        Server::builder().add_routes(Routes::default()).serve_with_incoming_shutdown(listener, async {
            let _ = told.await;
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => result?,
        () = back(address) => {}
    }
    lead(address, address)?;
    drop(tell);
    let _ = timeout(FAREWELL, server).await;
    info!("the daemon is back");
    Ok(())
}

async fn back(address: &Path) {
    while UnixStream::connect(address).await.is_err() {
        sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tonic::Code;

    use super::*;
    use crate::api::diff::v1::ApplyRequest;
    use crate::api::diff::v1::diff_client::DiffClient;

    /// What the differ says to a request, once somebody answers.
    async fn asked(link: PathBuf) -> Code {
        let mut differ = DiffClient::new(crate::containerd::dial(link).unwrap());
        loop {
            let answer = differ.apply(ApplyRequest::default()).await;
            let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
            if code != Code::Unavailable {
                return code;
            }
            sleep(PERIOD).await;
        }
    }

    #[tokio::test]
    async fn somebody_answers_while_the_daemon_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let address = folder.path().join("node.sock");
        let link = differ(&address);
        let path = address.clone();
        let standby = tokio::spawn(async move { take_turns(&path).await });
        let patience = Duration::from_secs(10);
        assert_eq!(timeout(patience, asked(link.clone())).await.unwrap(), Code::Unimplemented);
        for _ in 0..2 {
            let daemon = UnixListener::bind(&address).unwrap();
            let followed = async {
                while std::fs::read_link(&link).unwrap() != address {
                    sleep(PERIOD).await;
                }
            };
            timeout(patience, followed).await.unwrap();
            let mut held = vec![daemon.accept().await.unwrap()];
            while let Ok(Ok(one)) = timeout(PERIOD * 3, daemon.accept()).await {
                held.push(one);
            }
            std::fs::remove_file(&address).unwrap();
            drop((daemon, held));
            assert_eq!(timeout(patience, asked(link.clone())).await.unwrap(), Code::Unimplemented);
        }
        assert!(!standby.is_finished());
    }
}
