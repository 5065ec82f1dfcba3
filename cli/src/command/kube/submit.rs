//! The ImageBuild in the cluster: made, or changed where it is there already.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use cloister_crds::ImageBuild;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Error, ResourceExt};
use serde_json::json;

use super::MANAGER;
use super::client::{ANSWER, Cluster, answer, plain};
use super::secret::Given;
use super::stand::rebuild_annotation;

/// What became of it.
pub struct Submitted {
    /// As the API server has it.
    pub build: ImageBuild,
    /// What happened: created, changed or unchanged.
    pub how: How,
}

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is new.
    Created,
    /// Its spec is another one.
    Changed,
    /// Its spec was like this.
    Unchanged,
}

impl How {
    /// In one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Applies the build. Values of this machine become a Secret first, which needs the build as its owner: a new build is
/// therefore held back until the Secret is there.
pub async fn submit(
    cluster: &Cluster,
    mut build: ImageBuild,
    given: &Given,
    force: bool,
) -> Result<Submitted> {
    let name = build.name_any();
    let api = cluster.builds();
    let before = answer(api.get_opt(&name)).await.with_context(|| format!("imagebuild {name}"))?;
    if given.any_here() {
        let owner = match &before {
            Some(before) => before.clone(),
            None => {
                let mut held = build.clone();
                held.spec.suspend = true;
                apply(&api, &held, force).await?
            }
        };
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let made = answer(secrets.create(&PostParams::default(), &given.secret(&owner)))
            .await
            .with_context(|| format!("cannot make the Secret of imagebuild {name}"))?;
        build.spec.secrets = given.in_secret(&made.name_any());
    }
    let build = apply(&api, &build, force).await?;
    let how = match before {
        None => How::Created,
        Some(before) if before.metadata.generation == build.metadata.generation => How::Unchanged,
        Some(_) => How::Changed,
    };
    Ok(Submitted { build, how })
}

async fn apply(api: &Api<ImageBuild>, build: &ImageBuild, force: bool) -> Result<ImageBuild> {
    let name = build.name_any();
    let what = || format!("cannot apply imagebuild {name}");
    let params = PatchParams { force, ..PatchParams::apply(MANAGER) };
    match apply_once(api, build, &params).await {
        Ok(build) => Ok(build),
        // What `cancel` and `retry` wrote is ours as well; the API tells an update from an apply.
        Err(Error::Api(status)) if status.code == 409 => {
            let causes: Vec<_> = status.details.iter().flat_map(|details| &details.causes).collect();
            let ours = format!("conflict with \"{MANAGER}\"");
            if !causes.is_empty() && causes.iter().all(|cause| cause.message.contains(&ours)) {
                return apply_once(api, build, &params.force()).await.map_err(plain).with_context(what);
            }
            bail!(
                "{}: {}; take these fields over with --force-conflicts, or choose another --name",
                what(),
                status.message
            )
        }
        Err(error) => Err(plain(error)).with_context(what),
    }
}

async fn apply_once(
    api: &Api<ImageBuild>,
    build: &ImageBuild,
    params: &PatchParams,
) -> kube::Result<ImageBuild> {
    let name = build.name_any();
    match tokio::time::timeout(ANSWER, api.patch(&name, params, &Patch::Apply(build))).await {
        Ok(answered) => answered,
        Err(_) => Err(Error::Service("no answer in time".into())),
    }
}

/// Asks for another attempt; returns the value of the annotation that does.
pub async fn rebuild(api: &Api<ImageBuild>, build: &ImageBuild) -> Result<(ImageBuild, String)> {
    let value = Timestamp::now().to_string();
    let mut patch = json!({"metadata": {"annotations": {rebuild_annotation(build): value}}});
    if build.spec.cancel {
        patch["spec"] = json!({"cancel": false});
    }
    Ok((write(api, build, patch).await?, value))
}

/// Ends the running attempt; no other starts.
pub async fn cancel(api: &Api<ImageBuild>, build: &ImageBuild) -> Result<ImageBuild> {
    write(api, build, json!({"spec": {"cancel": true}})).await
}

/// Writes into a build, also when the API server is away for a moment.
async fn write(api: &Api<ImageBuild>, build: &ImageBuild, patch: serde_json::Value) -> Result<ImageBuild> {
    let name = build.name_any();
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let mut pause = super::client::Pause::new();
    let patched = async {
        loop {
            match api.patch(&name, &params, &Patch::Merge(&patch)).await {
                Err(error) if super::client::may_pass(&error) => pause.wait().await,
                other => return other.map_err(plain),
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), patched).await {
        Ok(patched) => patched.with_context(|| format!("cannot change imagebuild {name}")),
        Err(_) => bail!("cannot change imagebuild {name}: the API server does not answer"),
    }
}
