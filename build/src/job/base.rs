//! The images a build begins from: offered by our side, as the builder has no network and gets no credentials.

use cloister_image::{Digest, Reference};

use crate::client::{Offer, Session, Solve};

/// An image under the name that the Dockerfile uses.
#[derive(Debug, Clone)]
pub struct Base {
    /// The name.
    pub reference: Reference,
    /// The image's blobs.
    pub offer: Offer,
    /// Its manifest.
    pub manifest: Digest,
}

impl Base {
    pub(super) fn offer(self, number: usize, session: Session, solve: &mut Solve) -> Session {
        let store = format!("base{number}");
        solve.base_image(&self.reference, &store, self.manifest);
        session.content(format!("oci:{store}"), self.offer)
    }
}
