//! What a long operation says while it runs.

/// Where one layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Queued, or another process is working on the same layer.
    Waiting,
    /// Being read, checked and converted, in one pass.
    Converting,
    /// Already in the store; nothing was read.
    Exists,
    /// In the store.
    Done,
}

/// A state of one layer. `done` and `total` are bytes of the blob as stored in the source (usually compressed).
#[derive(Debug, Clone, Copy)]
pub struct LayerProgress<'a> {
    /// Short, stable within one operation: twelve hex digits of the layer's diff ID.
    pub id: &'a str,
    /// Place in the image, lowest layer 0.
    pub index: usize,
    /// Bytes to read, when known.
    pub total: Option<u64>,
    /// Bytes read so far.
    pub done: u64,
    /// What is happening to it.
    pub phase: Phase,
}

/// Receives progress; called from several threads, at most every few hundred milliseconds per layer.
pub trait Progress: Sync {
    /// A layer moved on.
    fn layer(&self, _state: &LayerProgress<'_>) {}

    /// A line worth showing once, such as `retrying in 2 s`.
    fn message(&self, _line: &str) {}
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
