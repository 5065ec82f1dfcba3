//! Collects from the pods' shims: `DIR/NAMESPACE/ID/metrics.sock` each, all at once, within one deadline, and what pods that
//! ended left in the folder `ended` beside DIR.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::ledger::{Ledger, Seen};
use super::text::Sum;

/// How long all pods together may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// Most bytes read from one pod.
const MAX_PAGE: u64 = 256 << 10;
/// Pods asked at the same time.
const PARALLEL: usize = 64;
/// Shims that serve HTTP need it; those that only write do not mind.
const REQUEST: &[u8] = b"GET /metrics HTTP/1.0\r\n\r\n";

/// The name of the file with the sum of all pods that ended; those of single pods have a dot in theirs.
const TOTAL: &str = "total";
/// Most bytes of that file.
const MAX_TOTAL: u64 = 16 << 20;

struct Pod {
    namespace: String,
    id: String,
    socket: PathBuf,
}

impl Pod {
    /// A name that no other pod has or had.
    fn key(&self) -> String {
        format!("{}.{}", self.namespace, self.id)
    }
}

/// One collection.
#[derive(Debug)]
pub struct Collected {
    /// Pods that are there.
    pub found: usize,
    /// Those of them that answered.
    pub answered: usize,
    /// What the pods say, in Prometheus' text format.
    pub page: String,
}

/// The pods of this node, those that ended included.
#[derive(Debug)]
pub struct Pods {
    dir: PathBuf,
    ended: PathBuf,
    labels: bool,
    /// Held during a collection.
    ledger: Mutex<Ledger>,
}

impl Pods {
    /// The pods whose state is below `dir`; with `labels`, each pod's series stay apart and go with the pod.
    pub fn open(dir: PathBuf, labels: bool) -> Self {
        let ended = dir.with_file_name("ended");
        let mut before = Sum::default();
        before.add(&file(&ended.join(TOTAL), MAX_TOTAL), None);
        Self { dir, ended, labels, ledger: Mutex::new(Ledger::new(before)) }
    }

    /// Asks them all.
    pub async fn collect(&self) -> Collected {
        let mut ledger = self.ledger.lock().await;
        let found = find(&self.dir);
        let keys: BTreeSet<String> = found.iter().map(Pod::key).collect();
        let fresh = self.ask(found).await;
        let answered = fresh.len();
        // After the living: a pod leaves its last page before its folder goes.
        let files = self.last_pages();
        let last = files.iter().map(|path| (name(path), self.parse(&file(path, MAX_PAGE), None))).collect();
        let there = keys.len();
        let settled = ledger.settle(Seen { found: keys, fresh, last });
        if settled.ended {
            self.remember(ledger.ended(), &files);
        }
        let page = if self.labels { settled.living } else { settled.all }.page();
        Collected { found: there, answered, page }
    }

    /// Asks the pods; those that do not answer in time are left out.
    async fn ask(&self, pods: Vec<Pod>) -> Vec<(String, Sum)> {
        let places = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = JoinSet::new();
        for pod in pods {
            let places = places.clone();
            tasks.spawn(async move {
                let _place = places.acquire().await.ok()?;
                let page = read(&pod.socket).await.ok()?;
                Some((pod, page))
            });
        }
        let mut fresh = Vec::new();
        let all = async {
            while let Some(done) = tasks.join_next().await {
                if let Ok(Some((pod, page))) = done {
                    fresh.push((pod.key(), self.parse(&page, Some(&pod))));
                }
            }
        };
        // What still runs at the deadline is ended with the set.
        let _ = tokio::time::timeout(DEADLINE, all).await;
        fresh
    }

    fn parse(&self, page: &str, pod: Option<&Pod>) -> Sum {
        // Names of folders the shim made, but quoted all the same.
        let labels = pod
            .filter(|_| self.labels)
            .map(|pod| format!("namespace={:?},pod_id={:?}", pod.namespace, pod.id));
        let mut sum = Sum::default();
        sum.add(page, labels.as_deref());
        sum
    }

    /// The files of pods that ended.
    fn last_pages(&self) -> Vec<PathBuf> {
        let is_page = |path: &PathBuf| name(path).find('.').is_some_and(|dot| dot > 0);
        entries(&self.ended).into_iter().filter(is_page).collect()
    }

    /// Writes down what is known of pods that ended, and only then lets go of their own files.
    fn remember(&self, total: &Sum, files: &[PathBuf]) {
        let temporary = self.ended.join(format!(".{TOTAL}"));
        let written = std::fs::create_dir_all(&self.ended)
            .and_then(|()| std::fs::write(&temporary, total.page()))
            .and_then(|()| std::fs::rename(&temporary, self.ended.join(TOTAL)));
        match written {
            // One that stays is known by its name.
            Ok(()) => files.iter().for_each(|path| drop(std::fs::remove_file(path))),
            Err(error) => {
                tracing::warn!(%error, folder = %self.ended.display(), "cannot keep the counters of ended pods")
            }
        }
    }
}

/// The beginning of a file; empty when there is none.
fn file(path: &Path, most: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What was read of a file that fails half-way is as good as nothing.
        let _ = file.take(most).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
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
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pods");
        shim(&dir, "a", Some("# TYPE cloister_vm gauge\ncloister_vm 1\n"));
        shim(&dir, "b", Some("HTTP/1.0 200 OK\r\nX: y\r\n\r\n# TYPE cloister_vm gauge\ncloister_vm 2\n"));
        shim(&dir, "stuck", None);
        std::fs::create_dir_all(dir.join("k8s.io/no-socket")).unwrap();
        let start = std::time::Instant::now();
        let all = Pods::open(dir, false).collect().await;
        assert!(start.elapsed() < DEADLINE * 2);
        assert!(all.page.contains("\ncloister_vm 3\n"), "{all:?}");
        assert_eq!((all.found, all.answered), (3, 2));
        assert_eq!(Pods::open(root.path().join("nothing"), false).collect().await.page, "");
    }

    #[tokio::test]
    async fn what_ended_pods_left_is_counted_once_and_survives_the_daemon() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pods");
        let ended = root.path().join("ended");
        std::fs::create_dir_all(&ended).unwrap();
        let page = "# TYPE cloister_x counter\ncloister_x 4\n# TYPE cloister_g gauge\ncloister_g 1\n";
        std::fs::write(ended.join("k8s.io.a"), page).unwrap();
        std::fs::write(ended.join(".k8s.io.b"), page).unwrap();
        let pods = Pods::open(dir.clone(), false);
        for _ in 0..2 {
            let page = pods.collect().await.page;
            assert!(page.contains("\ncloister_x 4\n") && page.contains("\ncloister_g 0\n"), "{page}");
        }
        assert!(!ended.join("k8s.io.a").exists());
        std::fs::write(ended.join("k8s.io.b"), page).unwrap();
        let page = Pods::open(dir, false).collect().await.page;
        assert!(page.contains("\ncloister_x 8\n"), "{page}");
    }
}
