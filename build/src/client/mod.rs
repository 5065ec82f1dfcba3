//! BuildKit's client: buildkitd over any stream, builds on it, and the session through which a build asks for what it
//! may have.
//!
//! What buildkitd says is hostile, since it shares its machine with every build: messages, answers and progress are
//! bounded in size and checked for shape, and every wait ends when the connection does.

mod connection;
mod content;
mod error;
mod failure;
mod id;
mod link;
mod options;
mod run;
mod session;
mod solved;

pub use connection::{BuildKit, CacheRecord, Info, Prune};
pub use content::{ContentStore, Layout, Offer, Remote};
pub use error::{Error, Result};
pub use failure::Failure;
pub use options::{Attestation, CacheFrom, CacheTo, NamedContext, Network, NoCache, Output, Solve};
pub use session::{DEFAULT_AGENT, MAX_SECRET, Registries, Secret, Secrets, Session, SshAgents};
pub use solved::{Descriptor, Solved};
