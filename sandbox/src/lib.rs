//! A microVM with an agent inside it and the disks of an image: where containers run.
//!
//! [`Sandbox::boot`] starts a generic virtual machine and greets the agent in it; disks and shares are plugged into
//! the running machine, [`Sandbox::run`] makes a container from them and starts its process. [`Agent`] and [`Dialer`]
//! let another process of the host reach the same guest. Nothing here knows of a command line or of containerd.

mod agent;
mod booting;
mod container;
mod dial;
mod disks;
mod error;
mod machine;
mod process;
pub mod programs;
pub mod pump;
mod sandbox;
mod scratch;
pub mod spec;
mod timings;

pub use agent::{Agent, Exit, Grown, Guest, NewContainer, OomEvents, Running, Stdio};
pub use booting::Booting;
pub use cloister_protocol::v1::{BlockDevice, PidNamespace};
pub use container::{Container, Layer, Root, Share};
pub use dial::{Connection, Dialer};
pub use error::{Error, printable};
pub use machine::{Kernel, MachineConfig, OVERHEAD, memory_for};
pub use process::{Io, Process, Remote};
pub use sandbox::Sandbox;
pub use scratch::Scratch;
pub use timings::{Step, Timing, Timings};
