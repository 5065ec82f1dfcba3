//! What calls about images share: the namespace of the CRI, and the lease that keeps what they make.

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{CRI, Containerd, failed, request};
use crate::error::{Error, Result};

/// Header with the lease.
const LEASE: &str = "containerd-lease";

/// Calls in the namespace of the CRI, the only one whose images pods can use.
#[derive(Debug, Clone)]
pub struct Scope {
    pub(super) containerd: Containerd,
    lease: Option<MetadataValue<Ascii>>,
}

impl Scope {
    /// Calls without a lease: what they make is removed at the next collection unless something refers to it.
    pub fn new(containerd: Containerd) -> Self {
        Self { containerd, lease: None }
    }

    /// The same with everything made kept by the lease of this name.
    pub fn leased(&self, lease: &str) -> Result<Self> {
        let lease = lease.parse().map_err(|_| Error::Invalid(format!("{lease:?} is not a lease")))?;
        Ok(Self { lease: Some(lease), ..self.clone() })
    }

    pub(super) fn channel(&self) -> Channel {
        self.containerd.channel.clone()
    }

    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = request(CRI, message)?;
        self.add_lease(&mut request);
        Ok(request)
    }

    pub(super) fn add_lease<T>(&self, request: &mut Request<T>) {
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE, lease.clone());
        }
    }
}

/// The reply, or `None` when containerd says that there is no such thing.
pub(super) fn found<T>(what: &str, reply: Result<T, Status>) -> Result<Option<T>> {
    match reply {
        Ok(reply) => Ok(Some(reply)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failed(what, &status)),
    }
}

/// Whether the call made something; not when it is there already.
pub(super) fn made<T>(what: &str, reply: Result<T, Status>) -> Result<Option<T>> {
    match reply {
        Ok(reply) => Ok(Some(reply)),
        Err(status) if status.code() == Code::AlreadyExists => Ok(None),
        Err(status) => Err(failed(what, &status)),
    }
}
