//! The interfaces that CNI plugins made for a pod, mirrored onto taps for its microVM.
