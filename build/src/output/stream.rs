//! Outputs of one stream: `tar`, `oci`, `docker`.

use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tonic::Streaming;

use super::target::Target;
use super::tree::STALL;
use super::{OutputError, Received};

/// Takes a stream to its end; a file has its name afterwards.
pub(super) async fn receive(
    target: Target,
    mut incoming: Streaming<BytesMessage>,
) -> Result<Received, OutputError> {
    match target {
        Target::Stream { writer, max_bytes } => copy(&mut incoming, writer, max_bytes, "stream").await,
        Target::File { file, path, max_bytes } => {
            let name = path.display().to_string();
            let failed = |error| OutputError::Write(name.clone(), error);
            let writer = tokio::fs::File::from_std(file.as_file().try_clone().map_err(failed)?);
            let received = copy(&mut incoming, writer, max_bytes, &name).await?;
            file.persist(&path).map_err(|error| failed(error.error))?;
            Ok(received)
        }
        Target::Folder { .. } => Err(OutputError::Protocol("a stream where a tree was asked for")),
    }
}

async fn copy(
    incoming: &mut Streaming<BytesMessage>,
    mut writer: impl AsyncWrite + Unpin,
    max_bytes: u64,
    name: &str,
) -> Result<Received, OutputError> {
    let failed = |error| OutputError::Write(name.to_owned(), error);
    let (mut bytes, mut hash) = (0_u64, Sha256::new());
    loop {
        let message = timeout(STALL, incoming.message()).await.map_err(|_| OutputError::Stalled)?;
        let Some(message) = message.map_err(|_| OutputError::Missing)? else { break };
        bytes += message.data.len() as u64;
        if bytes > max_bytes {
            return Err(OutputError::TooLarge(max_bytes));
        }
        hash.update(&message.data);
        writer.write_all(&message.data).await.map_err(failed)?;
    }
    writer.shutdown().await.map_err(failed)?;
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Received { bytes, digest: Some(format!("sha256:{hex}")) })
}
