//! Volumes that are copies: small files, and the folders that kubelet fills.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use cloister_protocol::v1::{self, mount_volume_request};
use oci_spec::runtime::Mount;

use super::files::{self, Content};
use super::kind::Kind;
use super::watch::Watch;
use super::{Inner, Volumes, owner};
use crate::failure::{Failure, Result};

impl Volumes {
    /// Copies the small files of a container that are not in the guest yet, all in one volume.
    pub(super) async fn copy_files(
        &self,
        inner: &mut Inner,
        mounts: &[Mount],
        kinds: &[Option<Kind>],
    ) -> Result<()> {
        let mut fresh: Vec<PathBuf> = Vec::new();
        for (mount, kind) in mounts.iter().zip(kinds) {
            let source = mount.source().clone().unwrap_or_default();
            if *kind == Some(Kind::File) && !inner.files.contains_key(&source) && !fresh.contains(&source) {
                fresh.push(source);
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let guest = self.copied(inner, Content::Files(fresh.clone())).await?;
        for (number, source) in fresh.into_iter().enumerate() {
            inner.files.insert(source, format!("{guest}/{number}"));
        }
        Ok(())
    }

    /// Where the copy of a folder is in the guest; it is made at its first use.
    pub(super) async fn files_volume(&self, inner: &mut Inner, folder: PathBuf) -> Result<String> {
        if let Some(guest) = inner.folders.get(&folder) {
            return Ok(guest.clone());
        }
        let guest = self.copied(inner, Content::Folder(folder.clone())).await?;
        inner.folders.insert(folder, guest.clone());
        Ok(guest)
    }

    /// Makes a volume that holds a copy, and keeps it like the original.
    async fn copied(&self, inner: &mut Inner, content: Content) -> Result<String> {
        let id = format!("files{}", Self::number(inner));
        let watch = Watch::new(&content).context("cannot watch a volume").map_err(Failure::from)?;
        let reading = content.clone();
        let packed = tokio::task::spawn_blocking(move || files::pack(&reading));
        let (mode, gid) = match &content {
            Content::Folder(folder) => owner(folder)?,
            Content::Files(_) => (0o755, 0),
        };
        let kind = mount_volume_request::Kind::Files(v1::FilesVolume { bytes: 2 * files::BYTES });
        let request = v1::MountVolumeRequest { id: id.clone(), kind: Some(kind), mode, gid };
        let agent = self.sandbox.agent();
        let guest = self.sandbox.while_alive(agent.mount_volume(request)).await?;
        let packed = Arc::new(packed.await.map_err(Failure::other)??);
        self.sandbox.while_alive(agent.sync_volume(&id, &packed)).await?;
        let agent = agent.clone();
        let copy = move |bytes: Arc<Vec<u8>>| {
            let (agent, id) = (agent.clone(), id.clone());
            async move { Ok(agent.sync_volume(&id, &bytes).await?) }
        };
        inner.watches.spawn(watch.follow(content, packed, copy));
        Ok(guest)
    }
}
