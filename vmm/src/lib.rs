//! One microVM: machine, devices, hotplug, vsock transport, file sharing.
