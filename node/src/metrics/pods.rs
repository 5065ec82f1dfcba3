//! Collects from the pods' shims: `DIR/NAMESPACE/ID/metrics.sock` each, all at once, within one deadline.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::text::Sum;

/// How long all pods together may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// Most bytes read from one pod.
const MAX_PAGE: u64 = 256 << 10;
/// Pods asked at the same time.
const PARALLEL: usize = 64;
/// Shims that serve HTTP need it; those that only write do not mind.
const REQUEST: &[u8] = b"GET /metrics HTTP/1.0\r\n\r\n";

struct Pod {
    namespace: String,
    id: String,
    socket: PathBuf,
}

/// The sum of what the pods say, in Prometheus' text format; pods that do not answer in time are left out.
pub async fn collect(dir: &Path, pod_labels: bool) -> String {
    let pods = find(dir);
    let places = Arc::new(Semaphore::new(PARALLEL));
    let mut tasks = JoinSet::new();
    let (found, mut answered) = (pods.len(), 0);
    for pod in pods {
        let places = places.clone();
        tasks.spawn(async move {
            let _place = places.acquire().await.ok()?;
            let page = read(&pod.socket).await.ok()?;
            Some((pod, page))
        });
    }
    let mut sum = Sum::default();
    let all = async {
        while let Some(done) = tasks.join_next().await {
            if let Ok(Some((pod, page))) = done {
                answered += 1;
                // Names of folders the shim made, but quoted all the same.
                let labels = pod_labels.then(|| format!("namespace={:?},pod_id={:?}", pod.namespace, pod.id));
                sum.add(&page, labels.as_deref());
            }
        }
    };
    // What still runs at the deadline is ended with the set.
    let _ = tokio::time::timeout(DEADLINE, all).await;
    format!(
        "# HELP cloister_node_pods Pods with metrics, and those of them that answered\n# TYPE cloister_node_pods gauge\n\
         cloister_node_pods{{state=\"found\"}} {found}\ncloister_node_pods{{state=\"answered\"}} {answered}\n{}",
        sum.page()
    )
}

fn find(dir: &Path) -> Vec<Pod> {
    let mut pods = Vec::new();
    for namespace in entries(dir) {
        for id in entries(&namespace) {
            let socket = id.join("metrics.sock");
            if socket.exists() {
                pods.push(Pod { namespace: name(&namespace), id: name(&id), socket });
            }
        }
    }
    pods
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

async fn read(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    let _ = stream.write_all(REQUEST).await;
    let mut page = Vec::new();
    stream.take(MAX_PAGE).read_to_end(&mut page).await?;
    let page = String::from_utf8_lossy(&page).into_owned();
    Ok(match page.strip_prefix("HTTP/").and_then(|http| http.split_once("\r\n\r\n")) {
        Some((_, body)) => body.to_owned(),
        None => page,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn shim(dir: &Path, id: &str, answer: Option<&'static str>) {
        let dir = dir.join("k8s.io").join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("metrics.sock")).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
        });
    }

    #[tokio::test]
    async fn pods_that_answer_are_summed_and_others_hold_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        shim(dir.path(), "a", Some("# TYPE cloister_vm gauge\ncloister_vm 1\n"));
        shim(
            dir.path(),
            "b",
            Some("HTTP/1.0 200 OK\r\nX: y\r\n\r\n# TYPE cloister_vm gauge\ncloister_vm 2\n"),
        );
        shim(dir.path(), "stuck", None);
        std::fs::create_dir_all(dir.path().join("k8s.io/no-socket")).unwrap();
        let start = std::time::Instant::now();
        let page = collect(dir.path(), false).await;
        assert!(start.elapsed() < DEADLINE * 2);
        assert!(page.contains("\ncloister_vm 3\n"), "{page}");
        assert!(
            page.contains("{state=\"found\"} 3\n") && page.contains("{state=\"answered\"} 2\n"),
            "{page}"
        );
        assert_eq!(collect(&dir.path().join("nothing"), false).await.lines().count(), 4);
    }
}
