//! Limits of a running container, and of a part of it.

use cloister_protocol::v1::UpdateContainerRequest;

use super::{Container, Containers};
use crate::error::Result;

impl Containers {
    /// Changes the limits that the request names. Blocks; to be called in a runtime.
    ///
    /// # Errors
    /// When they are none, or the kernel refuses them.
    pub fn update(&self, container: &Container, request: &UpdateContainerRequest) -> Result<()> {
        if request.cgroup.is_empty() {
            return container.cgroup.update(&request.resources);
        }
        let cgroup = container.cgroup.below(&request.cgroup)?;
        cgroup.update(&request.resources)?;
        if request.end_stalled {
            self.oom.end_stalled(&container.id, &cgroup, container.process("")?.exits())?;
        }
        Ok(())
    }
}
