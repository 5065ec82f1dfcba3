//! The contract between host and guest agent.
