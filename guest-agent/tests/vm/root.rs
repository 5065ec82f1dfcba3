//! What a container's root is stacked from, and what many processes in it leave behind.

use cloister_image::Digest;
use cloister_layer::{Expected, Limits, convert};
use cloister_protocol::v1::PidNamespace;
use cloister_sandbox::{Io, Layer, Root};
use tokio::io::AsyncReadExt;

use crate::lab::{Lab, outcome, wishes};

/// A layer with these files; its root folder has `mode` when there is one.
fn layer(mode: Option<u32>, files: &[&str]) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, mode| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        builder.append_data(&mut header, name, std::io::empty()).unwrap();
    };
    if let Some(mode) = mode {
        add("./", tar::EntryType::Directory, mode);
    }
    for name in files {
        add(name, tar::EntryType::Regular, 0o755);
    }
    let tar = builder.into_inner().unwrap();
    let file = tempfile::tempfile().unwrap();
    convert(&tar[..], &Expected::default(), &file, &Limits::default(), &|_| {}).unwrap();
    Layer { diff_id: Digest::of(&tar), file }
}

#[tokio::test]
async fn a_root_is_its_top_layers_and_an_opaque_one_hides_those_below() {
    let lab = Lab::boot(false).await;
    let mut container = lab.container("c", &wishes(&["/run"]));
    let layers = vec![
        layer(Some(0o700), &["hidden"]),
        layer(Some(0o755), &[".wh..wh..opq", "run", "shown"]),
        layer(Some(0o1751), &["top"]),
    ];
    container.root = Root::Layers { layers, scratch: None };
    let _process = lab.sandbox.create(container, Io::default()).await.unwrap();

    let agent = lab.sandbox.agent();
    for (name, there) in [("/run", true), ("/shown", true), ("/top", true), ("/hidden", false)] {
        let (stream, mut connection) = agent.open_stream().await.unwrap();
        let mut bytes = Vec::new();
        let (copied, _) = tokio::join!(agent.copy_out("c", name, stream), connection.read_to_end(&mut bytes));
        assert_eq!(copied.is_ok(), there, "{name}");
    }
    lab.sandbox.delete("c").await.unwrap();

    let mut container = lab.container("d", &wishes(&["stat", "-c", "%a %u %g %Y", "/"]));
    if let Root::Layers { layers, .. } = &mut container.root {
        layers.push(layer(Some(0o1751), &["top"]));
    }
    let (process, out, err) = lab.start_container(container, None, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    assert_eq!(end.stdout, "1751 5 6 1000000000\n", "{end:?}");
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn many_processes_leave_no_growth() {
    let lab = Lab::boot(false).await;
    let mut container = lab.container("c", &wishes(&["sleep", "10000"]));
    container.pid_namespace = PidNamespace::Guest;
    let (process, _out, _err) = lab.start_container(container, None, None).await.unwrap();
    let measure = async |name: &str| {
        let script = "grep -E 'VmRSS|Threads' /proc/1/status | tr -dc '0-9\\n'; ls -d /proc/[0-9]* | wc -l";
        let end = lab.exec("c", name, "", &["sh", "-c", script]).await.unwrap();
        let numbers: Vec<u64> = end.stdout.lines().map(|line| line.parse().unwrap()).collect();
        (numbers[0], numbers[1], numbers[2])
    };
    for number in 0..10 {
        lab.exec("c", &format!("warm{number}"), "", &["true"]).await.unwrap();
    }
    let before = measure("before").await;
    for number in 0..30 {
        // A name is free again when nothing was started by it.
        lab.exec("c", &format!("more{number}"), "", &["true"]).await.unwrap();
        assert!(lab.exec("c", "missing", "", &["/nothing"]).await.unwrap_err().is_not_found());
    }
    let after = measure("after").await;
    println!("KiB, threads, processes: {before:?}, then {after:?}");
    assert!(
        after.0 < before.0 + 1024 && after.1 <= before.1 + 4 && after.2 <= before.2 + 4,
        "{before:?} {after:?}"
    );
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}
