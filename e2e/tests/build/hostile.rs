//! Builds made to harm: each fails with a reason that is named, in bounded time and memory, and leaves nothing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use cloister_e2e::archive::Layer;
use cloister_e2e::cell::Cell;
use cloister_e2e::oci_archive::OciArchive;
use cloister_e2e::{lab, pod_images};

use crate::site::{Site, cached, text};

/// Boot, build and teardown of a build that fails soon, on a busy machine.
const SOON: Duration = Duration::from_secs(200);

#[test]
fn memory_that_is_used_up_little_by_little_is_told_and_not_waited_for() {
    let site = Site::new();
    let hog = "FROM base\nRUN awk 'BEGIN { while (1) a[i++] = sprintf(\"%4000s\", \"x\") }'\n";
    let refused = site.refuses(&site.context("hog", &[("Dockerfile", hog)]), &["-t", "hog"]);
    let reason = refused.reason();
    assert!(reason.contains("OutOfMemory: the build used") && reason.contains("exit code 137"), "{reason}");
    assert!(refused.time < SOON, "{:?}", refused.time);
}

#[test]
fn a_process_that_kills_itself_has_not_run_out_of_memory() {
    let site = Site::new();
    // Something ran out of memory, but in another step, which went on.
    let dockerfile = "FROM base\nRUN tail -c 1g /dev/zero | cat >/dev/null; sleep 4\nRUN echo out of memory; sh -c 'kill -9 $$'; exit $?\n";
    let refused = site.refuses(&site.context("killed", &[("Dockerfile", dockerfile)]), &["-t", "killed"]);
    assert!(refused.said.contains("exit code: 137"), "{}", refused.said);
    assert!(!refused.reason().contains("OutOfMemory"), "{}", refused.reason());
}

#[test]
fn a_fork_bomb_ends_with_the_build() {
    let site = Site::new();
    let bomb =
        site.context("bomb", &[("Dockerfile", "FROM base\nRUN f() { f | f; }; while :; do f; done\n")]);
    let refused = site.refuses(&bomb, &["-t", "bomb", "--timeout", "30"]);
    let reason = refused.reason();
    // The bomb may also end itself: a shell that cannot fork gives up.
    let named = ["build not done after 30 s", "OutOfMemory: ", "while :; do f; done: exit code 2"];
    assert!(named.iter().any(|name| reason.contains(name)), "{reason}");
    assert!(refused.time < SOON, "{:?}", refused.time);
}

#[test]
fn a_disk_that_is_filled_again_and_again_ends_with_the_build() {
    let site = Site::new();
    let filler = "FROM base\nRUN i=0; while : >/n$i; do i=$((i+1)); dd if=/dev/zero of=/n$i bs=4M count=16 2>/dev/null; done\n";
    let filler = site.context("filler", &[("Dockerfile", filler)]);
    let refused = site.refuses(&filler, &["-t", "filler", "--cache-key", "filler", "--timeout", "60"]);
    let reason = refused.reason();
    // It ends by itself when there is no room for one more name.
    let named = ["DiskFull: the build's disk of ", "build not done after 60 s"];
    assert!(named.iter().any(|name| reason.contains(name)), "{reason}");
    assert!(refused.time < SOON, "{:?}", refused.time);
}

/// Left to itself, QEMU stops a guest whose host has no room until somebody makes some.
#[test]
fn a_machine_without_room_is_an_error_and_no_wait() {
    let (site, cell) = (Site::new(), Cell::new().unwrap());
    let root = site.lab.root();
    cell.run("mount", &["-t", "tmpfs", "-o", "size=900m", "small", &root.to_string_lossy()]).unwrap();
    let output = |mut command: Command| {
        let output = cell.inside(|| command.output()).unwrap().unwrap();
        eprintln!("{}", text(&output));
        output
    };
    let fill = |leave: u64| {
        cell.inside(|| {
            let (file, free) = (fs::File::create(root.join("fill"))?, rustix::fs::statvfs(root)?);
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, free.f_bavail * free.f_frsize - leave)?;
            Ok::<_, std::io::Error>(())
        })
        .unwrap()
        .unwrap();
    };
    let archive = pod_images::archives(&[pod_images::BUSYBOX]).unwrap().remove(0);
    let mut import = site.lab.cloister();
    import.args(["image", "import", "base", "-i"]).arg(archive);
    assert!(output(import).status.success());
    let build = |name: &str, dockerfile: &str| {
        let context = site.context(name, &[("Dockerfile", dockerfile)]);
        output(site.command(&context, &["-t", name, "--cache-key", "one"]))
    };
    assert!(build("first", "FROM base\nRUN echo first >/first\n").status.success());

    fill(24 << 20);
    let mut run = site.lab.cloister();
    run.args(["run", "--rm", "base", "--", "dd", "if=/dev/zero", "of=/x", "bs=1M", "count=60", "conv=fsync"]);
    let begun = Instant::now();
    let ended = output(run);
    let said = text(&ended);
    assert!(ended.status.code() == Some(1) && said.contains("put/output error"), "{said}");
    assert!(said.contains("a disk of the guest failed to write") && begun.elapsed() < SOON, "{said}");

    let large = "FROM base\nRUN dd if=/dev/urandom of=/x bs=1M count=60\n";
    let begun = Instant::now();
    let refused = build("large", large);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("No space left on device") && begun.elapsed() < SOON);

    // What the cache's disk had is gone with it, and not in the way.
    cell.inside(|| fs::remove_file(root.join("fill"))).unwrap().unwrap();
    let again = build("large", large);
    assert!(again.status.success() && cached(&text(&again)).is_empty());
}

#[test]
fn floods_and_endless_lines_are_cut_short() {
    let site = Site::new();
    let flood =
        "FROM base\nRUN yes | head -c 6m; yes | tr -d '\\n' | head -c 6m; echo; echo the end; exit 3\n";
    let refused = site.refuses(&site.context("flood", &[("Dockerfile", flood)]), &["-t", "flood"]);
    assert!(refused.reason().ends_with("exit code 3"), "{}", refused.reason());
    // 4 MiB of a step; plain progress adds a number and a time to each of its lines.
    assert!(refused.said.len() < 32 << 20, "{} bytes", refused.said.len());
    assert!(refused.said.lines().all(|line| line.len() < 5000));
}

#[test]
fn links_lead_out_of_no_context_and_no_output() {
    let site = Site::new();
    let outside = site.contexts.path().join("outside");
    fs::write(&outside, "not of this build").unwrap();
    let context = site.context(
        "links",
        &[("Dockerfile", "FROM scratch\nCOPY link /copy\n"), ("all", "FROM scratch\nCOPY folder /\n")],
    );
    symlink(&outside, context.join("link")).unwrap();
    fs::create_dir(context.join("folder")).unwrap();
    symlink("../../../../../../etc/passwd", context.join("folder/passwd")).unwrap();
    let refused = site.refuses(&context, &["-t", "links"]);
    assert!(refused.reason().contains("not found"), "{}", refused.reason());

    // The same link is fine in an image and refused in a folder of this machine.
    let folder = site.contexts.path().join("tree");
    let file = context.join("all");
    let file = file.to_string_lossy();
    let refused =
        site.refuses(&context, &["-f", &file, "-o", &format!("type=local,dest={}", folder.display())]);
    assert!(refused.reason().contains("passwd"), "{}", refused.reason());
    assert!(!folder.exists());
    assert!(!refused.said.contains("not of this build"));
}

/// buildkitd's SHA-256 with one bit of its constants changed: each digest it gives is a wrong one.
fn liar(site: &Site) -> String {
    let programs = lab::made_by("buildkit.sh", &[]).unwrap();
    let mut buildkitd = fs::read(programs.join("buildkitd")).unwrap();
    // The first of the constants, in the table and in instructions.
    let constant = 0x428a_2f98_u32.to_le_bytes();
    let places: Vec<usize> =
        buildkitd.windows(4).enumerate().filter(|(_, bytes)| *bytes == constant).map(|(at, _)| at).collect();
    assert!(places.len() > 1, "{places:?}");
    places.iter().for_each(|&at| buildkitd[at] ^= 1);

    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, bytes: &[u8], link: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(bytes.len() as u64);
        if link.is_empty() {
            tar.append_data(&mut header, name, bytes).unwrap();
        } else {
            tar.append_link(&mut header, name, link).unwrap();
        }
    };
    for folder in
        ["bin/", "dev/", "etc/", "proc/", "root/", "run/", "sys/", "tmp/", "usr/", "usr/bin/", "var/"]
    {
        add(tar::EntryType::Directory, folder, b"", "");
    }
    add(tar::EntryType::Regular, "usr/bin/buildkitd", &buildkitd, "");
    add(tar::EntryType::Regular, "usr/bin/runc", &fs::read(programs.join("runc")).unwrap(), "");
    add(tar::EntryType::Regular, "bin/busybox", &fs::read(programs.join("busybox")).unwrap(), "");
    add(tar::EntryType::Symlink, "bin/sh", b"", "busybox");
    let archive = OciArchive::new(&[Layer::plain(tar.into_inner().unwrap())]);
    let path = site.contexts.path().join("liar.tar");
    archive.write(&path).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn digests_that_are_not_those_of_the_bytes_are_refused() {
    let site = Site::new();
    let liar = liar(&site);
    let context = site.context("lies", &[("Dockerfile", "FROM scratch\nCOPY file /file\n")]);
    fs::File::create(context.join("file")).unwrap().write_all(b"content").unwrap();
    let output = site.build(&context, &["-t", "lies", "--builder", &liar]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("digest"), "{said}");
    assert!(!site.images().contains("lies"), "{}", site.images());
}
