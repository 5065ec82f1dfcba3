//! One look at one build: what is seen, what is decided, what is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloister_crds::{BuildReason, ConditionType, ImageBuild};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::core::{Selector, SelectorExt};
use kube::runtime::controller::Action as Again;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};

use crate::cache::{Cache, Scope};
use crate::execute::{Error, Executor};
use crate::ledger::{Ledger, jitter};
use crate::metrics::Metrics;
use crate::plan::{Action, BuildPod, Event, Observed, Settings, Turn, is_running, next_due, plan};
use crate::pod::{self, PodSettings};
use crate::queue::Limits;
use crate::validate::validate;

/// Time until a build is looked at again after a step failed the first time; it doubles.
const FIRST: Duration = Duration::from_millis(500);
/// The longest such time.
const MOST: Duration = Duration::from_secs(120);
/// How long one look may take.
const LONGEST: Duration = Duration::from_secs(60);
/// Time until a build is looked at again whose look was out of date.
const STALE: Duration = Duration::from_millis(200);

/// Everything that looks at builds share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What is known without asking it.
    pub cache: Cache,
    /// Turns.
    pub ledger: Mutex<Ledger>,
    /// Failures in a row of each build, by uid.
    pub failures: Mutex<HashMap<String, u32>>,
    /// How many may run.
    pub limits: Limits,
    /// What decisions need.
    pub settings: Settings,
    /// What pods need.
    pub pods: PodSettings,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where people are told.
    pub recorder: Recorder,
}

impl Context {
    /// Turns.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Nothing that holds it can stop half-way.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at a build of `scope`.
///
/// # Errors
/// When a step failed; the rest is left to the next look.
pub async fn reconcile(build: Arc<ImageBuild>, scope: Scope, context: Arc<Context>) -> Result<Again, Error> {
    context.cache.ready().await;
    let started = Instant::now();
    let looked = tokio::time::timeout(LONGEST, look(&build, &scope, &context)).await;
    let result = looked.unwrap_or_else(|_| Err(Error::Time(build.name_any())));
    context.metrics.reconciles.inc();
    context.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
    if result.is_ok() {
        context.failures().remove(&build.uid().unwrap_or_default());
    }
    result
}

async fn look(build: &ImageBuild, scope: &Scope, context: &Context) -> Result<Again, Error> {
    let uid = build.uid().unwrap_or_default();
    let jitter = jitter(build);
    let mut observed = Observed {
        pods: pods(build, scope, &context.client).await?,
        nodes: nodes(build, &context.cache),
        turn: Turn::None,
        jitter,
    };
    let now = Timestamp::now();
    let refused = refused(build);
    let due = next_due(build, jitter, &context.settings, now).is_some_and(|due| due.at <= now);
    let attempts = build.status.as_ref().map_or(&[][..], |status| &status.attempts);
    let podless = |number: i64| observed.pods.iter().all(|pod| pod.attempt != number);
    let intent =
        attempts.iter().any(|one| is_running(one) && one.start_time.is_none() && podless(one.number));
    if refused.is_none() && (due || intent) {
        let (cache, limits, settings) = (&context.cache, &context.limits, &context.settings);
        observed.turn = match intent {
            true => context.ledger().resume(build, cache, limits, settings),
            false => context.ledger().turn(build, cache, limits, settings),
        };
    }
    let plan = plan(build, &observed, refused.as_deref(), &context.settings, now);
    let started = plan.status.as_ref().is_some_and(|status| status.attempts.iter().any(is_running));
    if observed.turn == Turn::Go && !started && !intent {
        context.ledger().give_back(&uid);
    }
    let mut executor = Executor::new(&context.client, build);
    for action in &plan.actions {
        let full = match action {
            Action::CreatePod(_) => Ledger::full(&context.cache, &context.limits),
            _ => Vec::new(),
        };
        tracing::debug!(build = build.name_any(), namespace = build.namespace(), ?action, "acts");
        let acted = executor.act(action, &context.pods, &full).await;
        if let Err(error @ (Error::Refused(..) | Error::Taken(_))) = &acted {
            let event = Event { warning: true, reason: BuildReason::Scheduling, note: error.to_string() };
            executor.tell(&context.recorder, &event).await;
        }
        acted?;
    }
    if let Some(status) = &plan.status {
        executor.status(status).await?;
    }
    if let Some(attempt) = &plan.ended {
        context.metrics.ended(attempt);
    }
    if let Some(event) = &plan.event {
        let (namespace, name) = (build.namespace(), build.name_any());
        tracing::info!(namespace, name, reason = event.reason.as_str(), "{}", event.note);
        executor.tell(&context.recorder, event).await;
    }
    Ok(match plan.again {
        Some(at) => {
            let left = at.duration_since(Timestamp::now());
            Again::requeue(Duration::try_from(left).unwrap_or_default().max(Duration::from_millis(50)))
        }
        None => Again::await_change(),
    })
}

/// When to look again at a build whose look failed.
pub fn failed(build: &ImageBuild, error: &Error, context: &Context) -> Again {
    let uid = build.uid().unwrap_or_default();
    context.metrics.errors.with_label_values(&[error.kind()]).inc();
    if matches!(error, Error::Conflict(_)) {
        return Again::requeue(STALE);
    }
    let failures = {
        let mut all = context.failures();
        let failures = all.entry(uid.clone()).or_default();
        *failures += 1;
        *failures
    };
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(failures.min(16) - 1)).min(MOST);
    let time = doubled.mul_f64(0.75 + 0.5 * jitter(build));
    let (namespace, name) = (build.namespace(), build.name_any());
    tracing::warn!(namespace, name, failures, "{error}");
    if matches!(error, Error::Refused(..) | Error::Taken(_)) {
        context.ledger().block(&uid, time);
    }
    Again::requeue(time)
}

/// The build's pods. That the newest attempt has none is not said before the API server has said it.
async fn pods(build: &ImageBuild, scope: &Scope, client: &Client) -> Result<Vec<BuildPod>, Error> {
    let uid = build.metadata.uid.as_deref();
    let ours = |pod: &Pod| pod::owner(pod).map(|(_, owner)| owner) == uid;
    let mut pods: Vec<BuildPod> =
        scope.pods.state_filter(|pod| ours(pod)).iter().filter_map(|pod| pod::observe(pod)).collect();
    let attempts = build.status.as_ref().map_or(&[][..], |status| &status.attempts);
    let running = attempts.iter().find(|attempt| is_running(attempt));
    if let Some(attempt) = running.filter(|running| pods.iter().all(|pod| pod.attempt != running.number)) {
        let api: Api<Pod> = Api::namespaced(client.clone(), &build.namespace().unwrap_or_default());
        let name = pod::name(&build.name_any(), attempt.number);
        let live = api.get_opt(&name).await.map_err(|error| Error::Api("read a pod", Box::new(error)))?;
        pods.extend(live.filter(ours).and_then(|pod| pod::observe(&pod)));
    }
    Ok(pods)
}

/// Names of the nodes that the build selects.
fn nodes(build: &ImageBuild, cache: &Cache) -> Vec<String> {
    let Some(asked) = &build.spec.output.nodes else { return Vec::new() };
    let Ok(selector) = Selector::try_from(asked.clone()) else { return Vec::new() };
    let nodes = cache.nodes.state_filter(|node| selector.matches(node.labels()));
    nodes.iter().map(|node| node.name_any()).collect()
}

/// What is wrong with the spec; a spec that was looked at before is not looked at again.
fn refused(build: &ImageBuild) -> Option<String> {
    let status = build.status.clone().unwrap_or_default();
    if status.observed_generation != build.metadata.generation {
        let selector = build.spec.output.nodes.clone().map(Selector::try_from).and_then(Result::err);
        let selector = selector.map(|error| format!("spec.output.nodes: {error}"));
        return validate(build).err().or(selector);
    }
    let invalid = |condition: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        condition.type_ == ConditionType::Stalled.as_str()
            && condition.reason == BuildReason::InvalidSpec.as_str()
    };
    status.conditions.iter().find(invalid).map(|condition| condition.message.clone())
}

/// The builds to wake because it is their turn.
pub fn next(context: &Context) -> Vec<ObjectRef<ImageBuild>> {
    let order = context.ledger().next(&context.cache, &context.limits, &context.settings);
    context.metrics.waiting.set(i64::try_from(order.line.len()).unwrap_or(i64::MAX));
    let go = order.line.iter().filter(|waiting| order.go.contains(&waiting.uid));
    go.map(|waiting| ObjectRef::new(&waiting.name).within(&waiting.namespace)).collect()
}
