//! What a kubelet asks containers, and what it does with the answers. Of 1.20: there are no probes by gRPC yet.

use anyhow::Result;
use serde_json::{Value, json};

use super::site::{IDLE, Site, container, is_ready, shell, with};

/// A pod that is ready, then not, then again, and whose container is started again when it is said to be ill.
fn probed(site: &Site<'_>, subject: Value, not_ready: &str, ready: &str, ill: &str) -> Result<String> {
    site.ready_pod("probed", subject, json!({}))?;
    site.sh("probed", not_ready)?;
    site.pod_when("probed", |pod| !is_ready(pod))?;
    site.sh("probed", ready)?;
    site.ready("probed")?;
    site.sh("probed", ill)?;
    site.pod_when("probed", |pod| container(pod)["restartCount"] == 1 && is_ready(pod))?;
    Ok("ready, not ready, ready; ill: started again, ready".to_owned())
}

/// The probes of a container, which are made every second.
fn probes(readiness: Value, liveness: Value) -> Value {
    let quick = json!({"periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 3});
    // A slow machine may take a while to what the script does.
    let start =
        with(readiness.clone(), json!({"periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 3}));
    json!({"startupProbe": start, "readinessProbe": with(readiness, quick.clone()), "livenessProbe": with(liveness, quick)})
}

pub fn by_exec(site: &Site<'_>) -> Result<String> {
    let probes = probes(
        json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}}),
        json!({"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}}),
    );
    let container = with(shell(&format!("touch /tmp/ready; {IDLE}")), probes);
    probed(site, container, "rm /tmp/ready", "touch /tmp/ready", "touch /tmp/ill")
}

pub fn by_http(site: &Site<'_>) -> Result<String> {
    let probes = probes(
        json!({"httpGet": {"path": "/ready", "port": "web"}}),
        json!({"httpGet": {"path": "/live", "port": 8080}}),
    );
    let script = format!("mkdir /tmp/www; cd /tmp/www; touch ready live; httpd -p 8080; {IDLE}");
    let container =
        with(with(shell(&script), probes), json!({"ports": [{"name": "web", "containerPort": 8080}]}));
    probed(site, container, "rm /tmp/www/ready", "touch /tmp/www/ready", "rm /tmp/www/live")
}

pub fn by_tcp(site: &Site<'_>) -> Result<String> {
    let probes = probes(json!({"tcpSocket": {"port": 81}}), json!({"tcpSocket": {"port": 80}}));
    let script = format!("cd /tmp; httpd -p 80; httpd -p 81; {IDLE}");
    // The servers are told apart by the port on their command lines.
    let end = |port: u8| format!("kill $(ps -o pid,args | grep '[h]ttpd -p {port}$' | awk '{{print $1}}')");
    probed(site, with(shell(&script), probes), &end(81), "cd /tmp; httpd -p 81", &end(80))
}

pub fn at_start(site: &Site<'_>) -> Result<String> {
    let probes = json!({"startupProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 60},
        "livenessProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1}});
    let script = format!("sleep 5; touch /tmp/up; {IDLE}");
    site.pod("slow", &[with(shell(&script), probes)], json!({}))?;
    let pod = site.pod_when("slow", |pod| container(pod)["started"] == true && is_ready(pod))?;
    Ok(format!("started, {} restarts", container(&pod)["restartCount"]))
}
