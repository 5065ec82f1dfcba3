//! OCI reference to verified blobs to one read-only filesystem per layer to a bootable disk; the node-local store.
