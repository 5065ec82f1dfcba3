//! Folders of the guest that containers bind mount.

use cloister_protocol::v1;
use tokio::io::AsyncWriteExt;

use super::{Agent, QUICK, SLOW, call};
use crate::error::Error;

impl Agent {
    /// Mounts a plugged share and returns where it is in the guest.
    ///
    /// # Errors
    /// When the agent refuses, or names a place outside its own folder.
    pub async fn mount_share(&self, tag: &str, read_only: bool) -> Result<String, Error> {
        const CALL: &str = "mount a share in the guest";
        let request = v1::MountShareRequest { tag: tag.to_owned(), read_only };
        let reply = call(CALL, SLOW, self.client.clone().mount_share(request)).await?;
        place(CALL, reply.path, format!("/run/cloister/shares/{tag}"))
    }

    /// Unmounts a share, which writes back what the guest still holds of it.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn unmount_share(&self, tag: &str) -> Result<(), Error> {
        let request = v1::UnmountShareRequest { tag: tag.to_owned() };
        call("unmount a share in the guest", QUICK, self.client.clone().unmount_share(request)).await?;
        Ok(())
    }

    /// Makes or mounts a folder for containers and returns where it is in the guest. A disk is waited for.
    ///
    /// # Errors
    /// When the agent refuses, or names another place than the volume's own.
    pub async fn mount_volume(&self, request: v1::MountVolumeRequest) -> Result<String, Error> {
        const CALL: &str = "mount a volume in the guest";
        let expected = format!("/run/cloister/volumes/{}", request.id);
        let reply = call(CALL, SLOW, self.client.clone().mount_volume(request)).await?;
        place(CALL, reply.path, expected)
    }

    /// Unmounts a volume, which writes back what the guest still holds of a disk.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn unmount_volume(&self, id: &str) -> Result<(), Error> {
        let request = v1::UnmountVolumeRequest { id: id.to_owned() };
        call("unmount a volume in the guest", SLOW, self.client.clone().unmount_volume(request)).await?;
        Ok(())
    }

    /// Makes a tar archive the content of a `files` volume.
    ///
    /// # Errors
    /// When the agent refuses; the volume has its old content then.
    pub async fn sync_volume(&self, id: &str, archive: &[u8]) -> Result<(), Error> {
        const CALL: &str = "fill a volume in the guest";
        let (stream, mut connection) = self.open_stream().await?;
        let send = async {
            // When the agent gives up, its answer says why.
            if connection.write_all(archive).await.is_ok() {
                let _ = connection.shutdown().await;
            }
            // Kept open until the answer: a connection that goes may take its last bytes along.
            connection
        };
        let request = v1::SyncVolumeRequest { id: id.to_owned(), stream: stream.to_vec() };
        let mut client = self.client.clone();
        let exchange = async { tokio::join!(client.sync_volume(request), send).0 };
        call(CALL, SLOW, exchange).await?;
        Ok(())
    }
}

/// The one place a mount may be at; a guest can't point the host anywhere else.
fn place(call: &'static str, answered: String, expected: String) -> Result<String, Error> {
    if answered == expected {
        return Ok(answered);
    }
    Err(Error::Reply { call, why: "the mount is not where the protocol says" })
}
