//! What a container is made of, before it exists.

use std::fs::File;
use std::path::PathBuf;

use cloister_image::Digest;
use cloister_protocol::v1;
use oci_spec::runtime::Spec;

use crate::scratch::Scratch;

/// A folder of the host to show in the guest.
#[derive(Debug)]
pub struct Share {
    /// `[a-z0-9-]`, at most 36 bytes, unique in the sandbox.
    pub tag: String,
    /// The folder, without symbolic links in its path.
    pub path: PathBuf,
    /// Whether the guest can't write.
    pub read_only: bool,
}

/// One layer of an image.
#[derive(Debug)]
pub struct Layer {
    /// Digest of the layer's tar; names its partition.
    pub diff_id: Digest,
    /// Its EROFS file, open for reading.
    pub file: File,
}

/// Where a container's root filesystem comes from.
#[derive(Debug)]
pub enum Root {
    /// Stacked by the guest.
    Layers {
        /// The image's layers, lowest first; none for an empty root filesystem.
        layers: Vec<Layer>,
        /// The writable part; `None` keeps what is written in the guest's memory.
        scratch: Option<Scratch>,
    },
    /// A folder below a mounted share, by its path in the guest: as it stands.
    Share(String),
}

/// A container to make.
#[derive(Debug)]
pub struct Container {
    /// `[A-Za-z0-9_.-]`, at most 128 bytes.
    pub id: String,
    /// Its root filesystem.
    pub root: Root,
    /// What to run and how; `root.path` is ignored.
    pub spec: Spec,
    /// docker's `USER`, resolved by the guest with the image's own files; empty for the user of `spec`.
    pub user: String,
    /// Whose process ids it sees.
    pub pid_namespace: v1::PidNamespace,
    /// The container whose process ids it sees, with [`v1::PidNamespace::Container`].
    pub pid_container: String,
    /// Plugged disks that it sees as device nodes.
    pub block_devices: Vec<v1::BlockDevice>,
}
