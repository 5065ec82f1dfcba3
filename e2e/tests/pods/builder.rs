//! Pods that are builders: what the build driver finds of them, and what is left of them.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_builder::pod::{self, Control, Facts};
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::spec::{self, ContainerConfigExt};
use cloister_e2e::cri::stream::Wants;
use cloister_e2e::lab::builder_image;
use cloister_e2e::rig::{Container, PATIENCE};
use cloister_e2e::{Pod, Rig};
use cloister_sandbox::Agent;
use tokio::io::AsyncReadExt;

microvm_cases!(
    a_builder_is_what_its_driver_was_promised,
    a_builder_that_is_stopped_leaves_its_disk_warm,
    a_builder_that_dies_says_why,
    a_builder_ends_at_its_deadline,
    a_killed_builder_leaves_nothing,
);

/// Operator and build driver say it with the constants of `crds`, the shim with those of `builder`.
#[test]
fn all_rooms_have_the_same_names() {
    use cloister_crds::build_pod as crds;
    assert_eq!(
        (crds::BUILDER, crds::NETWORK, crds::CACHE_KEY, crds::CACHE_BYTES, crds::DEADLINE, crds::HOST),
        (pod::BUILDER, pod::NETWORK, pod::CACHE_KEY, pod::CACHE_BYTES, pod::DEADLINE, pod::HOST)
    );
}

const IMAGE: &str = "lab.test/builder:1";
const MEMORY: i64 = 384 << 20;
const DISK: u64 = 1 << 30;

/// A builder's pod, its container, and where the shim keeps its facts in the lab's cell.
struct Builder<'a> {
    pod: Pod<'a>,
    container: Container<'a>,
    folder: PathBuf,
    facts: Facts,
}

/// Runs something of the driver's in the lab's cell, as the driver would be.
fn drive<T: Send>(rig: &Rig, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    rig.lab.cell.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.context("too slow")? })
    })?
}

fn import(rig: &Rig) -> Result<()> {
    let archive = builder_image()?;
    let import = ["images", "import", "--snapshotter", "cloister", "--index-name", IMAGE];
    rig.lab.ctr(&[&import[..], &[&archive.to_string_lossy()]].concat())?;
    wait_for("the builder's image", PATIENCE, || Ok(rig.lab.image(IMAGE)?.map(drop)))
}

/// As the operator and the kubelet would make it.
fn builder<'a>(rig: &'a Rig, namespace: &str, more: &[(&str, &str)]) -> Result<Builder<'a>> {
    let begun = Instant::now();
    let mut config = rig.config();
    let secret = rig.volume(&config, "secret", "hub")?;
    std::fs::write(secret.join("token"), "hidden")?;
    config.metadata.get_or_insert_default().namespace = namespace.to_owned();
    let bytes = DISK.to_string();
    let annotations = [
        (pod::BUILDER, "true"),
        (pod::NETWORK, "None"),
        (pod::CACHE_KEY, "default"),
        (pod::CACHE_BYTES, &bytes),
    ];
    for (key, value) in annotations.iter().chain(more) {
        config.annotations.insert((*key).to_owned(), (*value).to_owned());
    }
    let pod = rig.run(config)?;
    let ran = begun.elapsed();
    let host = format!("{}/secrets/hub", pod::HOST);
    let mut config = spec::container("builder", IMAGE, &[]).mounted(&secret.to_string_lossy(), &host, true);
    config.resources().memory_limit_in_bytes = MEMORY;
    (config.stdin, config.stdin_once) = (true, true);
    let container = pod.create(config)?;
    let created = begun.elapsed();
    container.start()?;
    let folder = PathBuf::from("/run/cloister/pods/k8s.io").join(&pod.id);
    let facts = Facts::read(&rig.lab.cell.path(&folder.to_string_lossy()))?.context("no facts")?;
    let socket = cloister_builder::SOCKET;
    drive(rig, async {
        let (agent, _) = Agent::connect(facts.dialer.clone(), PATIENCE).await?;
        cloister_builder::connect(&agent, &facts.container, socket, PATIENCE).await?;
        Ok(())
    })?;
    println!("sandbox {ran:?}, container {created:?}, buildkitd {:?}", begun.elapsed());
    let secrets = std::path::Path::new("secrets/hub");
    ensure!(facts.mounts.get(secrets) == Some(&secret), "{facts:?}");
    ensure!((facts.memory_bytes, facts.disk_bytes) == (MEMORY as u64, DISK), "{facts:?}");
    Ok(Builder { pod, container, folder, facts })
}

impl Builder<'_> {
    fn end(&self, rig: &Rig, code: u8) -> Result<()> {
        drive(rig, async {
            Control::connect(&self.folder).await?.end(code).await?;
            Ok(())
        })?;
        let status = self.container.wait()?;
        ensure!(status.exit_code == i32::from(code), "{status:?}");
        Ok(())
    }
}

pub fn a_builder_is_what_its_driver_was_promised(rig: &Rig) -> Result<()> {
    import(rig)?;
    let first = builder(rig, "team", &[])?;
    assert!(!first.facts.warm);
    let name = first.pod.config.metadata.clone().unwrap_or_default().name;
    assert_eq!(first.facts.pod, format!("team/{name}"));

    // What is for the host stays there, and there is no way out.
    assert_eq!(first.container.sh("ls -d /run/cloister 2>/dev/null; ls /sys/class/net")?, "lo");
    assert_eq!(first.container.sh("grep -rl hidden /run /etc 2>/dev/null || true")?, "");
    assert_eq!(first.container.sh("cat /proc/1/comm")?, "buildkitd");
    assert!(first.container.sh("df /var/lib/buildkit")?.contains("/dev/vd"), "not a disk of its own");

    // What arrives on standard input is the driver's, and what the driver says is the log.
    let attached = first.container.attach(Wants { stdin: true, tty: false })?;
    attached.write(b"a context\n")?;
    attached.close_stdin()?;
    let input = drive(rig, async {
        let mut input = pod::input(&first.folder).await?;
        let mut text = String::new();
        input.read_to_string(&mut text).await?;
        let mut control = Control::connect(&first.folder).await?;
        control.log(b"#1 [internal] load build definition\n").await?;
        control.log(b"#1 DONE 0.1s\n").await?;
        Ok(text)
    })?;
    assert_eq!(input, "a context\n");
    first.container.wait_for_output("#1 DONE 0.1s\n")?;

    first.end(rig, 3)?;
    assert_eq!(first.container.output_at_end()?, b"#1 [internal] load build definition\n#1 DONE 0.1s\n");
    assert!(drive(rig, async { Ok(Control::connect(&first.folder).await?) }).is_err());
    first.pod.remove()?;

    let other = builder(rig, "other", &[])?;
    assert!(!other.facts.warm, "a disk of another namespace");
    other.end(rig, 0)?;
    let second = builder(rig, "team", &[])?;
    assert!(second.facts.warm, "the disk was not kept");
    second.end(rig, 0)
}

pub fn a_builder_that_is_stopped_leaves_its_disk_warm(rig: &Rig) -> Result<()> {
    import(rig)?;
    let first = builder(rig, "team", &[])?;
    first.container.stop(20)?;
    assert_eq!(first.container.status()?.exit_code, 143);
    first.pod.remove()?;
    let second = builder(rig, "team", &[])?;
    assert!(second.facts.warm);
    // As the kubelet removes a pod in haste.
    second.pod.remove()?;
    let third = builder(rig, "team", &[])?;
    assert!(third.facts.warm);
    third.pod.remove()?;
    let none = builder(rig, "team", &[(pod::CACHE_KEY, "other")])?;
    assert!(!none.facts.warm);
    Ok(())
}

pub fn a_builder_that_dies_says_why(rig: &Rig) -> Result<()> {
    import(rig)?;
    let builder = builder(rig, "team", &[])?;
    builder.container.exec(&["sh", "-c", "kill -TERM 1"])?;
    let status = builder.container.wait()?;
    assert_ne!(status.exit_code, 0);
    builder.container.output_at_end()?;
    let lines = builder.container.lines()?;
    let text: Vec<u8> = lines.into_iter().flat_map(|line| line.bytes).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("cloister: buildkitd ended with code"), "{text}");
    Ok(())
}

pub fn a_builder_ends_at_its_deadline(rig: &Rig) -> Result<()> {
    import(rig)?;
    let begun = Instant::now();
    let builder = builder(rig, "team", &[(pod::DEADLINE, "15")])?;
    let status = builder.container.wait()?;
    let took = begun.elapsed();
    assert_ne!(status.exit_code, 0);
    assert!(took > Duration::from_secs(14) && took < Duration::from_secs(30), "{took:?}");
    let mut refused = rig.config();
    refused.annotations =
        [(pod::BUILDER, "true"), (pod::DEADLINE, "soon")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let error = format!("{:#}", rig.run(refused).err().context("it runs")?);
    assert!(error.contains(pod::DEADLINE), "{error}");
    Ok(())
}

pub fn a_killed_builder_leaves_nothing(rig: &Rig) -> Result<()> {
    import(rig)?;
    let first = builder(rig, "team", &[])?;
    let words = format!("-id {}", first.pod.id);
    let shim = rig.lab.cell.find(&words)?.into_iter().next().context("no shim")?;
    rig.lab.cell.kill(shim.pid, "KILL")?;
    first.container.wait()?;
    first.pod.remove()?;
    let second = builder(rig, "team", &[])?;
    assert!(!second.facts.warm, "a disk that was not unmounted");
    second.end(rig, 0)?;
    let left = std::fs::read_dir(rig.lab.root().join("caches/team.default"))?;
    let mut names: Vec<_> = left.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    names.sort();
    assert_eq!(names, ["0.ext4"]);
    Ok(())
}
