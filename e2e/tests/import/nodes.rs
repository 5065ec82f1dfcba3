//! A second node gets the image of a build from the first.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::archive::digest;
use cloister_e2e::cell::wait_for;
use cloister_e2e::containerd::Version;
use cloister_e2e::node;
use cloister_e2e::oci_archive::OciArchive;

use crate::bench::{Bench, app, busybox, noise, run_case};

/// Where the first node serves, in its own network.
const SERVES: &str = "127.0.0.1:9443";
/// Where the second node reaches it, in its own network.
const REACHED: &str = "127.0.0.1:9444";

/// Two nodes, and the wire between them.
struct Pair {
    second: Bench,
    wire: Arc<Wire>,
}

/// Passes connections on, and breaks them.
#[derive(Default)]
struct Wire {
    /// Bytes after which a connection is cut; 0 for never.
    cut: AtomicU64,
    connections: AtomicUsize,
    ended: AtomicBool,
}

/// An authority, and a node's certificate by it.
fn certificates(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)?;
    let script = "cd \"$1\"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=nodes -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=cloister-node -keyout tls.key -out tls.csr
printf 'subjectAltName=DNS:cloister-node' >ext
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out tls.crt";
    let output = Command::new("sh").args(["-ec", script, "sh"]).arg(folder).output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn configure(bench: &Bench, tls: &Path, serve: bool) -> Result<()> {
    let mut text = format!("tls = {tls:?}\n");
    if serve {
        text += &format!("images_address = {SERVES:?}\n");
    }
    std::fs::write(node::settings(bench.lab.root()), text)?;
    bench.lab.stop_node(false)?;
    bench.lab.start_node()
}

fn pump(mut from: TcpStream, mut to: TcpStream, cut: u64) {
    let mut left = if cut == 0 { u64::MAX } else { cut };
    let mut buffer = vec![0; 16 << 10];
    while left > 0 {
        let Ok(n) = from.read(&mut buffer) else { break };
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
        left = left.saturating_sub(n as u64);
    }
    for end in [from, to] {
        let _ = end.shutdown(std::net::Shutdown::Both);
    }
}

/// Runs a case with two nodes of one version.
fn with_pair(first: &Bench, case: impl FnOnce(&Pair) -> Result<()>) -> Result<()> {
    let tls = first.lab.root().join("tls");
    certificates(&tls)?;
    configure(first, &tls, true)?;
    let lab = cloister_e2e::containerd::Containerd::start(first.lab.version(), true, &[])?;
    let pair = Pair { second: Bench { lab }, wire: Arc::default() };
    configure(&pair.second, &tls, false)?;
    let listener = pair.second.lab.cell.inside(|| TcpListener::bind(REACHED))??;
    listener.set_nonblocking(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !pair.wire.ended.load(Ordering::Relaxed) {
                let Ok((near, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let far = first.lab.cell.inside(|| TcpStream::connect(SERVES));
                let Ok(Ok(far)) = far else { continue };
                let _ = near.set_nonblocking(false);
                pair.wire.connections.fetch_add(1, Ordering::Relaxed);
                let cut = pair.wire.cut.load(Ordering::Relaxed);
                let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else { continue };
                std::thread::spawn(move || pump(near, far, 0));
                std::thread::spawn(move || pump(far2, near2, cut));
            }
        });
        let result = case(&pair);
        pair.wire.ended.store(true, Ordering::Relaxed);
        if result.is_err() {
            pair.second.print_logs();
        }
        result
    })
}

impl Pair {
    fn fetch(&self, digest: &str, more: &[&str]) -> Result<String> {
        let args = ["fetch", "--build", "lab/app", "--digest", digest, "--from", REACHED, "app:1"];
        self.second.image(&[&args[..], more].concat())
    }
}

fn a_second_node_fetches_and_heals_from_the_first(first: &Bench) -> Result<()> {
    with_pair(first, |pair| {
        let image = OciArchive::new(&[busybox()?, noise(1, 6 << 20)?]);
        first.import(&image, &["--pin", "app:1"])?;
        // The connection breaks each 1.5 MB: a blob of 6 MB needs several.
        pair.wire.cut.store(1_500_000, Ordering::Relaxed);
        pair.fetch(&image.digest, &["--pin"])?;
        let connections = pair.wire.connections.load(Ordering::Relaxed);
        ensure!((5..12).contains(&connections), "{connections} connections");
        let known = pair.second.expect("app:1", &image.id)?;
        ensure!(known.pinned, "{known:?}");
        ensure!(pair.second.holdings()?.leases.lines().count() == 1);

        // Its content goes, by hand: it comes from the first again.
        for blob in pair.second.lab.ctr(&["content", "ls", "-q"])?.lines() {
            pair.second.lab.ctr(&["content", "rm", blob])?;
        }
        pair.wire.cut.store(0, Ordering::Relaxed);
        pair.second.lab.ctr(&["images", "rm", "--sync", "docker.io/library/app:1"])?;
        wait_for("the image", Duration::from_secs(10), || {
            let content = pair.second.lab.ctr(&["content", "ls", "-q"])?;
            let image = pair.second.cri("app:1")?.filter(|known| known.id == image.id);
            Ok((image.is_some() && content.lines().count() == 4).then_some(()))
        })
    })
}

fn only_nodes_get_images_and_only_those_of_builds(first: &Bench) -> Result<()> {
    with_pair(first, |pair| {
        let image = app("one")?;
        first.import(&image, &["app:1"])?;
        // Not a build's: what the node pulled for somebody.
        let other = app("private")?;
        let path = first.lab.root().join("other.tar");
        other.write(&path)?;
        first.lab.ctr(&["images", "import", "--index-name", "private:1", &path.to_string_lossy()])?;
        let error = pair.fetch(&other.digest, &[]).unwrap_err().to_string();
        ensure!(error.contains(&other.digest) && error.contains("not found"), "{error}");
        let secret = other
            .files
            .iter()
            .find(|(_, content)| content.len() < 10_000 && content.windows(7).any(|w| w == b"private"));
        let secret = digest(&secret.context("the layer")?.1);
        for path in [
            format!("/v1/images/{}/blobs/{secret}", image.digest),
            format!("/v1/images/{secret}/blobs/{secret}"),
            format!("/v1/images/{}/blobs/../../../etc/passwd", image.digest),
            "/".to_owned(),
        ] {
            ensure!(ask(first, &first.lab.root().join("tls"), &path)?.contains(" 404 "), "{path}");
        }
        let path = format!("/v1/images/{}/blobs/{}", image.digest, image.id);
        ensure!(ask(first, &first.lab.root().join("tls"), &path)?.contains(" 200 "));

        // A certificate by somebody else, and none.
        let foreign = pair.second.lab.root().join("foreign");
        certificates(&foreign)?;
        let answer = ask(first, &foreign, &path)?;
        ensure!(!answer.contains("HTTP/"), "{answer}");
        configure(&pair.second, &foreign, false)?;
        let before = pair.second.holdings()?;
        let error = pair.fetch(&image.digest, &[]).unwrap_err().to_string();
        ensure!(error.contains("certificate"), "{error}");
        ensure!(pair.second.holdings()? == before);
        let plain = first.lab.cell.inside(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(SERVES)?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            Ok(String::from_utf8_lossy(&answer).into_owned())
        })??;
        ensure!(!plain.contains("HTTP/1.1 200"), "{plain}");
        Ok(())
    })
}

/// One request with these certificates, by a client that is not ours; the head of the answer.
fn ask(first: &Bench, tls: &Path, path: &str) -> Result<String> {
    let script = "printf 'GET %s HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' \"$2\" |
        timeout 5 openssl s_client -quiet -connect 127.0.0.1:9443 -cert \"$1/tls.crt\" -key \"$1/tls.key\" 2>/dev/null |
        head -n 1 || true";
    first.lab.cell.run("sh", &["-c", script, "sh", &tls.to_string_lossy(), path])
}

#[test]
fn on_1_7_a_second_node_fetches_and_heals_from_the_first() {
    run_case(Version::V1_7, a_second_node_fetches_and_heals_from_the_first);
}

#[test]
fn on_2_1_a_second_node_fetches_and_heals_from_the_first() {
    run_case(Version::V2_1, a_second_node_fetches_and_heals_from_the_first);
}

#[test]
fn only_nodes_get_images_and_only_those_of_builds_on_2_1() {
    run_case(Version::V2_1, only_nodes_get_images_and_only_those_of_builds);
}
