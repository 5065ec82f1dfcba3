//! What controllers make pods for.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::site::{IDLE, Site, is_ready, shell, with};

/// A template of pods with the label `app: web` and a variable `VERSION`.
fn template(site: &Site<'_>, container: Value) -> Value {
    let container = with(container, json!({"env": [{"name": "VERSION", "value": "1"}]}));
    json!({"metadata": {"labels": {"app": "web"}}, "spec": site.spec(&[container], json!({}))})
}

/// What each ready pod of the label has in `VERSION`.
fn versions(site: &Site<'_>) -> Result<String> {
    let pods = site.get(&["pods", "-l", "app=web"])?;
    let ready = pods["items"].as_array().into_iter().flatten().filter(|pod| is_ready(pod));
    let said =
        ready.map(|pod| site.sh(pod["metadata"]["name"].as_str().unwrap_or_default(), "echo $VERSION"));
    Ok(said.collect::<Result<Vec<_>>>()?.join(" "))
}

/// Versions before an update, after it, and after it was undone.
fn updated(site: &Site<'_>, object: &str) -> Result<String> {
    let rolled_out = || site.kubectl(&["rollout", "status", object, "--timeout=200s"]);
    rolled_out()?;
    let mut seen = vec![versions(site)?];
    site.kubectl(&["set", "env", object, "VERSION=2"])?;
    rolled_out()?;
    seen.push(versions(site)?);
    site.kubectl(&["rollout", "undo", object])?;
    rolled_out()?;
    seen.push(versions(site)?);
    Ok(seen.join(", then "))
}

pub fn deployment(site: &Site<'_>) -> Result<String> {
    let probe =
        json!({"readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1}});
    let container = with(shell(&format!("sleep 1; touch /tmp/ready; {IDLE}")), probe);
    site.create(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 2, "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": {"app": "web"}}, "template": template(site, container)}}),
    )?;
    let seen = updated(site, "deployment/web")?;
    ensure!(seen == "1 1, then 2 2, then 1 1", "{seen}");
    Ok(seen)
}

pub fn daemon_set(site: &Site<'_>) -> Result<String> {
    site.create(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}}, "template": template(site, shell(IDLE))}}))?;
    let seen = updated(site, "daemonset/web")?;
    ensure!(seen == "1, then 2, then 1", "{seen}");
    Ok(seen)
}

/// The specification of a job whose pods run a script once.
fn job(site: &Site<'_>, script: &str, more: Value) -> Value {
    let spec = site.spec(&[shell(script)], json!({"restartPolicy": "Never"}));
    with(json!({"template": {"spec": spec}}), more)
}

/// Waits for an end of a job, and gives its status.
fn job_ended(site: &Site<'_>, name: &str) -> Result<Value> {
    site.until(&format!("the end of job {name}"), || {
        let status = site.get(&["job", name])?["status"].clone();
        Ok(status["conditions"].is_array().then_some(status))
    })
}

pub fn jobs(site: &Site<'_>) -> Result<String> {
    let make = |name: &str, spec: Value| {
        site.create(
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}),
        )
    };
    make("good", job(site, "echo $((6 * 7))", json!({"completions": 3, "parallelism": 2})))?;
    make("bad", job(site, "exit 3", json!({"backoffLimit": 1})))?;
    let (good, bad) = (job_ended(site, "good")?, job_ended(site, "bad")?);
    let log = site.kubectl(&["logs", "-l", "job-name=good"])?;
    ensure!(log == "42\n42\n42\n", "{log}");
    Ok(format!(
        "{}: {} of 3; {}: {}, {} failed",
        good["conditions"][0]["type"],
        good["succeeded"],
        bad["conditions"][0]["type"],
        bad["conditions"][0]["reason"],
        bad["failed"]
    ))
}

pub fn cron_job(site: &Site<'_>) -> Result<String> {
    let spec = json!({"schedule": "* * * * *", "concurrencyPolicy": "Forbid",
        "jobTemplate": {"spec": job(site, "echo now", json!({}))}});
    site.create(json!({"apiVersion": "batch/v1beta1", "kind": "CronJob", "metadata": {"name": "minutely"}, "spec": spec}))?;
    let name = site.until("a job", || {
        Ok(site.get(&["jobs"])?["items"][0]["metadata"]["name"].as_str().map(str::to_owned))
    })?;
    let status = job_ended(site, &name)?;
    let log = site.kubectl(&["logs", "-l", &format!("job-name={name}")])?;
    Ok(format!("{}: {log:?}", status["conditions"][0]["type"]))
}
