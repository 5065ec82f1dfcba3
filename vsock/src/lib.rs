//! A vhost-user-vsock device that never trusts its guest.
