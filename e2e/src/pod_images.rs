//! Images for pods, made from Debian's busybox and kept in the cache under a hash of what they are made from.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::archive::{Layer, digest, tar};
use crate::lab::cache;

/// The sandbox image: one program that waits and leaves no zombie.
pub const PAUSE: &str = "lab.test/pause:1";
/// Every busybox applet, some users, a shell.
pub const BUSYBOX: &str = "lab.test/busybox:1";
/// Busybox in 128 layers; layer N wrote `/layers/N` and overwrote `/top`.
pub const LAYERS: &str = "lab.test/layers:1";
/// Busybox with a user, a working folder, a volume, an environment, an entry point and a stop signal.
pub const CONFIGURED: &str = "lab.test/configured:1";
/// Busybox with links where volumes may be mounted: `/up`, `/absolute`, `/through`, `/to-proc`; and a file `/mark`.
pub const LINKS: &str = "lab.test/links:1";
/// Busybox and `inotifywait`.
pub const WATCHER: &str = "lab.test/watcher:1";
/// A configuration and no layer.
pub const NO_LAYERS: &str = "lab.test/no-layers:1";

/// How many layers [`LAYERS`] has.
pub const LAYER_COUNT: usize = 128;

/// A Debian file that `make setup` unpacked.
pub fn lab_program(path: &str) -> Result<PathBuf> {
    unpacked("lab-programs", path)
}

fn unpacked(packages: &str, path: &str) -> Result<PathBuf> {
    let path = cache()?.join("tools").join(packages).join(path);
    anyhow::ensure!(path.exists(), "{} is missing: run make setup", path.display());
    Ok(path)
}

/// The archives of these images, made when they are not in the cache.
pub fn archives(names: &[&str]) -> Result<Vec<PathBuf>> {
    names.iter().map(|name| archive(name)).collect()
}

fn archive(name: &str) -> Result<PathBuf> {
    let busybox = fs::read(lab_program("bin/busybox")?)?;
    let (layers, config) = match name {
        PAUSE => (vec![Layer::plain(pause_layer()?)], json!({"Entrypoint": ["/pause"]})),
        BUSYBOX => (vec![Layer::plain(busybox_layer(&busybox)?)], shell()),
        LAYERS => {
            let mut layers = vec![Layer::plain(busybox_layer(&busybox)?)];
            for number in 1..LAYER_COUNT {
                layers.push(Layer::plain(numbered_layer(number)?));
            }
            (layers, shell())
        }
        LINKS => (vec![Layer::plain(busybox_layer(&busybox)?), Layer::plain(links_layer()?)], shell()),
        WATCHER => (vec![Layer::plain(busybox_layer(&busybox)?), Layer::plain(watcher_layer()?)], shell()),
        NO_LAYERS => (vec![], shell()),
        CONFIGURED => (
            vec![Layer::plain(busybox_layer(&busybox)?)],
            json!({
                "User": "worker", "WorkingDir": "/srv/work", "Volumes": {"/data": {}}, "Entrypoint": ["/bin/sh", "-c"],
                "Cmd": ["echo from the image"], "StopSignal": "SIGUSR1", "ExposedPorts": {"80/tcp": {}},
                "Env": ["PATH=/usr/bin:/bin", "GREETING=hello from the image"]
            }),
        ),
        other => anyhow::bail!("no image {other}"),
    };
    let config = image_config(&layers, &config).to_string();
    let folder = cache()?.join("images");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("pod-{}.tar", &digest(format!("{name} {config}").as_bytes())[7..23]));
    if !path.exists() {
        let mut partial = tempfile::NamedTempFile::new_in(&folder)?;
        write_archive(partial.as_file_mut(), name, &layers, &config)?;
        partial.persist(&path).with_context(|| format!("cannot publish {}", path.display()))?;
    }
    Ok(path)
}

fn shell() -> Value {
    json!({"Cmd": ["sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]})
}

fn image_config(layers: &[Layer], config: &Value) -> Value {
    let ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    json!({"architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids}})
}

fn write_archive(file: &mut File, name: &str, layers: &[Layer], config: &str) -> Result<()> {
    let config_name = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}.tar")).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]).to_string();
    let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
    file_entry(&mut archive, "manifest.json", 0o644, manifest.as_bytes())?;
    file_entry(&mut archive, &config_name, 0o644, config.as_bytes())?;
    for (name, layer) in names.iter().zip(layers) {
        file_entry(&mut archive, name, 0o644, &layer.blob)?;
    }
    Ok(archive.into_inner()?.flush()?)
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn file_entry<W: Write>(to: &mut tar::Builder<W>, name: &str, mode: u32, data: &[u8]) -> std::io::Result<()> {
    to.append_data(&mut header(tar::EntryType::Regular, mode, data.len()), name, data)
}

fn folder<W: Write>(to: &mut tar::Builder<W>, name: &str, mode: u32, owner: u64) -> std::io::Result<()> {
    let mut header = header(tar::EntryType::Directory, mode, 0);
    header.set_uid(owner);
    header.set_gid(owner);
    to.append_data(&mut header, Path::new(name), std::io::empty())
}

fn busybox_layer(busybox: &[u8]) -> Result<Vec<u8>> {
    let listed = std::process::Command::new(lab_program("bin/busybox")?).arg("--list").output()?;
    let applets = String::from_utf8(listed.stdout)?;
    tar(|to| {
        for name in ["bin", "dev", "etc", "proc", "sys", "usr", "usr/bin", "var", "srv"] {
            folder(to, name, 0o755, 0)?;
        }
        folder(to, "root", 0o700, 0)?;
        folder(to, "tmp", 0o1777, 0)?;
        folder(to, "srv/work", 0o755, 1000)?;
        folder(to, "data", 0o755, 1000)?;
        file_entry(to, "data/seed", 0o644, b"from the image\n")?;
        let users = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/srv/work:/bin/sh\n\
                     nobody:x:65534:65534::/:/bin/false\n";
        let groups = "root:x:0:\nworker:x:1000:\nhelpers:x:2000:worker\nnogroup:x:65534:\n";
        file_entry(to, "etc/passwd", 0o644, users.as_bytes())?;
        file_entry(to, "etc/group", 0o644, groups.as_bytes())?;
        file_entry(to, "bin/busybox", 0o755, busybox)?;
        for applet in applets.lines().filter(|&applet| applet != "busybox") {
            to.append_link(
                &mut header(tar::EntryType::Symlink, 0o777, 0),
                format!("bin/{applet}"),
                "busybox",
            )?;
        }
        Ok(())
    })
}

fn numbered_layer(number: usize) -> Result<Vec<u8>> {
    tar(|to| {
        folder(to, "layers", 0o755, 0)?;
        file_entry(to, &format!("layers/{number}"), 0o644, format!("{number}\n").as_bytes())?;
        file_entry(to, "top", 0o644, format!("{number}\n").as_bytes())
    })
}

fn links_layer() -> Result<Vec<u8>> {
    tar(|to| {
        file_entry(to, "mark", 0o644, b"of the image\n")?;
        for (name, target) in [
            ("up", "../../../../srv/up"),
            ("absolute", "/srv/absolute"),
            ("through", "/srv"),
            ("to-proc", "/proc"),
        ] {
            to.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), name, target)?;
        }
        Ok(())
    })
}

/// `inotifywait` and what it is linked with.
fn watcher_layer() -> Result<Vec<u8>> {
    let libraries = "lib/x86_64-linux-gnu";
    let files = [
        ("usr/bin/inotifywait", "usr/bin/inotifywait".to_owned()),
        ("usr/lib/x86_64-linux-gnu/libinotifytools.so.0.4.1", format!("{libraries}/libinotifytools.so.0")),
        ("lib/x86_64-linux-gnu/libc.so.6", format!("{libraries}/libc.so.6")),
        ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2".to_owned()),
    ];
    let contents = files
        .map(|(from, to)| Ok::<_, anyhow::Error>((to, fs::read(unpacked("inotify", from)?)?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    tar(|to| contents.iter().try_for_each(|(name, content)| file_entry(to, name, 0o755, content)))
}

fn pause_layer() -> Result<Vec<u8>> {
    let program = pause_program();
    tar(|to| file_entry(to, "pause", 0o755, &program))
}

/// An x86-64 ELF file of one segment: `rt_sigaction(SIGCHLD, SIG_IGN)`, so that orphans are reaped by the kernel,
/// then `pause()` for ever.
fn pause_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut code: Vec<u8> = Vec::new();
    code.extend([0xb8, 13, 0, 0, 0]); // mov eax, rt_sigaction
    code.extend([0xbf, 17, 0, 0, 0]); // mov edi, SIGCHLD
    code.push(0xbe); // mov esi, action
    let action_at = code.len();
    code.extend([0; 4]);
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]); // again: mov eax, pause; syscall; jmp again
    let action = BASE + HEADERS + code.len() as u64;
    code[action_at..action_at + 4].copy_from_slice(&(action as u32).to_le_bytes());
    code.push(1); // SIG_IGN, then no flags, no restorer, an empty mask
    code.extend([0; 31]);
    let size = HEADERS + code.len() as u64;

    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // sizes and counts of the headers
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // a loaded segment, read and execute
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use super::pause_program;

    #[test]
    fn the_pause_program_runs_until_it_is_killed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pause");
        std::fs::write(&path, pause_program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
