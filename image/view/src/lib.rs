//! What stands in layer filesystems: reading, merging, and writing them as ext4, tar or a GPT disk.
