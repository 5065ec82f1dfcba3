//! `spec.triggers.baseImage`: what the base images of this node's builds are by now. The operator decides what follows.
//!
//! A build's Secrets are there for its pods only, and nothing of the project may read any (docs/security.md): between attempts
//! registries are asked without credentials.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use cloister_crds::{BaseImage, ImageBuild};
use cloister_image::Reference;
use cloister_image::source::registry::DockerConfig;
use futures::StreamExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use super::bases::Sources;
use super::drive::Driver;

/// Manager of what is written.
const MANAGER: &str = "cloister-bases";
/// Shortest interval, as the schema has it.
const LEAST: Duration = Duration::from_secs(60);
/// How long one registry or the API server may take.
const CALL: Duration = Duration::from_secs(30);
/// Objects of one page of a list.
const PAGE: u32 = 50;

/// A build that wants to know.
#[derive(Debug, Clone)]
struct Wish {
    namespace: String,
    name: String,
    uid: String,
    interval: Duration,
    bases: Vec<BaseImage>,
    latest: Vec<BaseImage>,
    /// When to ask next.
    due: Instant,
}

impl Wish {
    /// What `build` wants of the node `here`, which has built its newest result.
    fn of(build: &ImageBuild, here: &str, now: Instant) -> Option<Self> {
        let interval = Duration::from(build.spec.triggers.as_ref()?.base_image.as_ref()?.interval).max(LEAST);
        let status = build.status.as_ref()?;
        let triggers = status.triggers.as_ref()?;
        let held = build.spec.suspend || build.spec.cancel || build.metadata.deletion_timestamp.is_some();
        let ours = status.node.as_deref() == Some(here) && status.completion_time.is_some();
        if held || !ours || triggers.base_images.is_empty() {
            return None;
        }
        let uid = build.uid()?;
        Some(Self {
            namespace: build.namespace()?,
            name: build.name_any(),
            due: now + spread(&uid, interval),
            uid,
            interval,
            bases: triggers.base_images.clone(),
            latest: triggers.latest_base_images.clone(),
        })
    }
}

/// The interval, less up to a tenth of it, so that builds that were applied together do not ask together.
fn spread(uid: &str, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    interval - interval / 1000 * u32::try_from(hasher.finish() % 100).unwrap_or(0)
}

/// Asks for all builds of this node, one after the other, until the watch ends.
pub async fn run(driver: Arc<Driver>) {
    let api: Api<ImageBuild> = Api::all(driver.client.clone());
    let mut builds = watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff().boxed();
    let mut wishes: BTreeMap<String, Wish> = BTreeMap::new();
    let mut listed: BTreeMap<String, Wish> = BTreeMap::new();
    loop {
        let next = wishes.values().min_by_key(|wish| wish.due).cloned();
        let wait = async {
            match &next {
                Some(wish) => tokio::time::sleep_until(wish.due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = builds.next() => match event {
                Some(Ok(event)) => take(&mut wishes, &mut listed, event, &driver.node),
                Some(Err(error)) => tracing::warn!("watch of builds: {error}"),
                None => return,
            },
            () = wait => {
                let Some(wish) = next else { continue };
                ask(&driver, &wish).await;
                if let Some(known) = wishes.get_mut(&wish.uid) {
                    known.due = Instant::now() + spread(&wish.uid, wish.interval);
                }
            }
        }
    }
}

fn take(
    wishes: &mut BTreeMap<String, Wish>,
    listed: &mut BTreeMap<String, Wish>,
    event: Event<ImageBuild>,
    here: &str,
) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(build) => {
            let before = wishes.get(&uid(&build)).cloned();
            put(listed, before, &build, here);
        }
        Event::InitDone => *wishes = std::mem::take(listed),
        Event::Apply(build) => {
            let before = wishes.remove(&uid(&build));
            put(wishes, before, &build, here);
        }
        Event::Delete(build) => drop(wishes.remove(&uid(&build))),
    }
}

fn uid(build: &ImageBuild) -> String {
    build.uid().unwrap_or_default()
}

/// A build that changes does not wait anew.
fn put(into: &mut BTreeMap<String, Wish>, before: Option<Wish>, build: &ImageBuild, here: &str) {
    let Some(mut wish) = Wish::of(build, here, Instant::now()) else { return };
    if let Some(before) = before {
        wish.due = wish.due.min(before.due);
    }
    into.insert(wish.uid.clone(), wish);
}

/// Asks what the images of one build are, and writes it down when it is news.
async fn ask(driver: &Driver, wish: &Wish) {
    let sources = Sources {
        scope: driver.scope.clone(),
        converter: driver.converter.clone(),
        store: driver.store.clone(),
        credentials: Arc::new(DockerConfig::default()),
        certificates: None,
        fresh: true,
    };
    let mut latest = Vec::new();
    for base in &wish.bases {
        let Ok(reference) = base.image.parse::<Reference>() else { continue };
        // A name with a digest stands for ever.
        if reference.digest().is_some() {
            continue;
        }
        let digest = match tokio::time::timeout(CALL, sources.latest(&reference)).await {
            Ok(Ok(digest)) => digest.to_string(),
            answer => {
                let why = answer.map_or_else(|late| late.to_string(), |answer| format!("{answer:?}"));
                tracing::debug!(build = wish.name, image = base.image, "what it is now is not known: {why}");
                // What was known stays.
                let Some(known) = wish.latest.iter().find(|known| known.image == base.image) else {
                    continue;
                };
                known.digest.clone()
            }
        };
        latest.push(BaseImage { image: base.image.clone(), digest });
    }
    if latest == wish.latest {
        return;
    }
    let object = json!({
        "apiVersion": ImageBuild::api_version(&()),
        "kind": ImageBuild::kind(&()),
        // Another build of this name is a conflict.
        "metadata": {"name": wish.name, "uid": wish.uid},
        "status": {"triggers": {"latestBaseImages": latest}},
    });
    let api: Api<ImageBuild> = Api::namespaced(driver.client.clone(), &wish.namespace);
    // Another node may have built before, and is out of it now.
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(object);
    match tokio::time::timeout(CALL, api.patch_status(&wish.name, &params, &patch)).await {
        Ok(Ok(_)) => tracing::info!(build = wish.name, "its base images have moved"),
        Ok(Err(error)) => tracing::debug!(build = wish.name, "base images not written: {error}"),
        Err(_) => tracing::debug!(build = wish.name, "base images not written: no answer in time"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn build(change: impl FnOnce(&mut Value)) -> ImageBuild {
        let mut object = json!({
            "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
            "metadata": {"namespace": "team", "name": "app", "uid": "u1"},
            "spec": {"source": {}, "output": {}, "triggers": {"baseImage": {"interval": "10m"}}},
            "status": {"node": "one", "completionTime": "2026-01-01T00:00:00Z",
                "triggers": {"baseImages": [{"image": "a:1", "digest": "sha256:aa"}]}},
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_node_that_built_asks_within_the_interval_and_not_at_once() {
        let now = Instant::now();
        let wish = Wish::of(&build(|_| {}), "one", now).unwrap();
        let wait = wish.due - now;
        assert!(wait <= Duration::from_secs(600) && wait > Duration::from_secs(500), "{wait:?}");
        let hasty = build(|object| object["spec"]["triggers"]["baseImage"]["interval"] = json!("1s"));
        assert_eq!(Wish::of(&hasty, "one", now).unwrap().interval, LEAST);
    }

    #[test]
    fn nobody_asks_for_builds_of_others_or_that_run_or_rest() {
        let now = Instant::now();
        assert!(Wish::of(&build(|_| {}), "two", now).is_none());
        for (at, value) in [
            ("/spec/suspend", json!(true)),
            ("/spec/triggers", json!({"annotation": "x"})),
            ("/status/completionTime", Value::Null),
            ("/status/triggers/baseImages", json!([])),
        ] {
            let (parent, key) = at.rsplit_once('/').unwrap();
            let changed = build(|object| object.pointer_mut(parent).unwrap()[key] = value);
            assert!(Wish::of(&changed, "one", now).is_none(), "{at}");
        }
    }

    #[test]
    fn a_build_that_changes_does_not_wait_anew() {
        let (mut wishes, mut listed) = (BTreeMap::new(), BTreeMap::new());
        take(&mut wishes, &mut listed, Event::Apply(build(|_| {})), "one");
        let first = wishes["u1"].due;
        take(&mut wishes, &mut listed, Event::Apply(build(|_| {})), "one");
        assert_eq!(wishes["u1"].due, first);
        take(&mut wishes, &mut listed, Event::Delete(build(|_| {})), "one");
        assert!(wishes.is_empty());
    }
}
