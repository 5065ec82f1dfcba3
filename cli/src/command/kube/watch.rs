//! One build, watched: always its newest version, over API servers that go away for a moment.
//!
//! It needs `get` and `watch` of the one object, not `list`.

use std::time::{Duration, Instant};

use cloister_crds::ImageBuild;
use futures::{StreamExt, TryStreamExt};
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Error, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::{ANSWER, Pause, may_pass, plain};
use crate::output;

/// How long the API server may be away.
const AWAY: Duration = Duration::from_secs(300);
/// How long an API server that has just started may not know yet who may do what.
const REFUSING: Duration = Duration::from_secs(30);
/// After this many seconds the server ends a watch, and another one begins.
const TURN: u32 = 240;

/// What is known of the build.
#[derive(Debug, Clone)]
pub enum Seen {
    /// It is as it is here.
    Build(Box<ImageBuild>),
    /// It was deleted.
    Gone,
    /// It can't be seen any more, for this reason.
    Lost(String),
}

/// A build that is watched until this is dropped.
pub struct Watched {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Begins with what is known of it.
    pub fn new(api: Api<ImageBuild>, build: ImageBuild) -> Self {
        let name = build.name_any();
        let (sender, mut seen) = watch::channel(Seen::Build(Box::new(build)));
        seen.mark_changed();
        let task = tokio::spawn(async move {
            let last = follow(&api, &name, &sender).await;
            let _ = sender.send(last);
        });
        Self { seen, task }
    }

    /// The next version; those in between are left out. Nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Seen {
        match self.seen.changed().await {
            Ok(()) => self.seen.borrow_and_update().clone(),
            // It has ended with what it said last.
            Err(_) => self.seen.borrow().clone(),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Hands on every version; returns why there are no more.
async fn follow(api: &Api<ImageBuild>, name: &str, sender: &watch::Sender<Seen>) -> Seen {
    let mut pause = Pause::new();
    let mut answered = Instant::now();
    loop {
        let error = match tokio::time::timeout(ANSWER, turn(api, name, sender, &mut answered)).await {
            Ok(Ok(Turn::Gone)) => return Seen::Gone,
            Ok(Ok(Turn::Over(watching))) => match watched(watching, sender, &mut answered).await {
                Ok(true) => return Seen::Gone,
                Ok(false) => {
                    pause = Pause::new();
                    None
                }
                Err(error) => Some(error),
            },
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let passes = |error: &Error| may_pass(error) || (is_refusal(error) && answered.elapsed() < REFUSING);
        if let Some(error) = error.filter(|error| !passes(error)) {
            return Seen::Lost(output::one_line(&plain(error)));
        }
        if answered.elapsed() > AWAY {
            return Seen::Lost(format!("the API server has not answered for {} s", AWAY.as_secs()));
        }
        pause.wait().await;
    }
}

/// Whether the API server says that this user may not.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Api(status) if matches!(status.code, 401 | 403))
}

type Events = futures::stream::BoxStream<'static, kube::Result<WatchEvent<ImageBuild>>>;

/// How a turn begins.
enum Turn {
    /// There is no such build.
    Gone,
    /// What changes from now on.
    Over(Events),
}

/// Reads the build and begins to watch it.
async fn turn(
    api: &Api<ImageBuild>,
    name: &str,
    sender: &watch::Sender<Seen>,
    answered: &mut Instant,
) -> Result<Turn, Error> {
    let Some(build) = api.get_opt(name).await? else { return Ok(Turn::Gone) };
    *answered = Instant::now();
    let version = build.resource_version().unwrap_or_default();
    sender.send_replace(Seen::Build(Box::new(build)));
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(TURN);
    Ok(Turn::Over(api.watch(&params, &version).await?.boxed()))
}

/// Hands on changes until the server ends the watch; whether the build is gone.
async fn watched(
    mut events: Events,
    sender: &watch::Sender<Seen>,
    answered: &mut Instant,
) -> Result<bool, Error> {
    // A connection that died silently ends here.
    let silence = Duration::from_secs(u64::from(TURN) + 30);
    while let Ok(event) = tokio::time::timeout(silence, events.try_next()).await {
        *answered = Instant::now();
        match event? {
            Some(WatchEvent::Added(build) | WatchEvent::Modified(build)) => {
                sender.send_replace(Seen::Build(Box::new(build)));
            }
            Some(WatchEvent::Deleted(_)) => return Ok(true),
            Some(WatchEvent::Bookmark(_)) => {}
            // Such as a version that is too old: read again.
            Some(WatchEvent::Error(_)) | None => break,
        }
    }
    Ok(false)
}
