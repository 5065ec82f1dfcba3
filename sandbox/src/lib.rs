//! A microVM with an agent inside it and the disks of an image: where containers run.
