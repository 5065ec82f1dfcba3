//! What a user does with a running pod.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::site::{IDLE, Site, container, is_ready, shell, with};

/// A container that serves its own name on port 80, and is ready then.
fn server() -> Value {
    let script = format!("mkdir /tmp/www; hostname >/tmp/www/name; httpd -h /tmp/www -p 80; {IDLE}");
    with(shell(&script), json!({"readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}))
}

pub fn logs(site: &Site<'_>) -> Result<String> {
    let script = "for n in 1 2 3; do echo out $n; echo err $n >&2; sleep 1; done; exit 1";
    site.pod("talks", &[shell(script)], json!({"restartPolicy": "OnFailure"}))?;
    site.pod_when("talks", |pod| {
        container(pod)["state"]["running"].is_object() || container(pod)["restartCount"] != 0
    })?;
    let followed = site.kubectl(&["logs", "-f", "talks"])?;
    // Then the last one is there for certain: this kubelet forgets it as soon as there are two that do not run.
    site.pod_when("talks", |pod| container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff")?;
    let previous = site.kubectl(&["logs", "--previous", "--tail=2", "talks"])?;
    let mut last: Vec<&str> = previous.lines().collect();
    last.sort_unstable();
    Ok(format!(
        "{} lines followed to the end; the previous one's last: {}",
        followed.lines().count(),
        last.join(", ")
    ))
}

pub fn exec(site: &Site<'_>) -> Result<String> {
    site.ready_pod("target", shell(IDLE), json!({}))?;
    let run = |args: &[&str], input: &str| {
        let all = [&["-n", &site.namespace, "exec", "-i", "target", "--"], args].concat();
        site.cluster.kubectl_with(&all, input)
    };
    let output = run(&["sh", "-c", "tr a-z A-Z; echo aside >&2; exit 7"], "through")?;
    let input = "0123456789abcdef".repeat(1 << 16);
    let large = run(&["cat"], &input)?;
    ensure!(large.stdout == input.as_bytes(), "{} of {} bytes came back", large.stdout.len(), input.len());
    let missing = run(&["no-such-program"], "")?;
    ensure!(!missing.status.success(), "a program that is not there was run");
    let aside = String::from_utf8_lossy(&output.stderr);
    Ok(format!(
        "{:?} {:?}, 1 MiB there and back, {}",
        output.status.code().unwrap_or_default(),
        String::from_utf8_lossy(&output.stdout),
        aside.lines().next().unwrap_or_default()
    ))
}

pub fn attach(site: &Site<'_>) -> Result<String> {
    let listener = with(shell("read -r line; echo got $line"), json!({"stdin": true, "stdinOnce": true}));
    site.ready_pod("listens", listener, json!({"restartPolicy": "Never"}))?;
    let attach = ["-n", &site.namespace, "attach", "-i", "listens"];
    site.cluster.kubectl_with(&attach, "a word\n")?;
    Ok(site.log_with("listens", "got")?.trim().to_owned())
}

pub fn copy(site: &Site<'_>) -> Result<String> {
    site.ready_pod("target", shell(IDLE), json!({}))?;
    let folder = site.folder("copied")?;
    let bytes: Vec<u8> = (0..3_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.join("out"), &bytes)?;
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    site.kubectl(&["cp", &path("out"), "target:/tmp/there"])?;
    site.kubectl(&["cp", "target:/tmp/there", &path("back")])?;
    ensure!(fs::read(folder.join("back"))? == bytes, "other bytes came back");
    Ok("3 MiB there and back".to_owned())
}

pub fn port_forward(site: &Site<'_>) -> Result<String> {
    site.ready_pod("server", server(), json!({}))?;
    let mut command = site.cluster.kubectl_command()?;
    command.args(["-n", &site.namespace, "port-forward", "pod/server", ":80"]).stdout(Stdio::piped());
    let mut child = site.cluster.cell().spawn(&mut command)?;
    // It stays open: kubectl notes each connection there.
    let mut stdout = child.stdout.take().context("no pipe")?;
    let answer = forwarded(site, &mut stdout);
    // The program is kubectl's `timeout`, which hands on this signal and no other.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    child.wait()?;
    answer
}

fn forwarded(site: &Site<'_>, stdout: &mut impl Read) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let port: u16 =
        port.and_then(|port| port.parse().ok()).with_context(|| format!("kubectl says {line:?}"))?;
    let mut answer = String::new();
    site.cluster.cell().inside(|| {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
        socket.write_all(b"GET /name HTTP/1.0\r\n\r\n")?;
        socket.read_to_string(&mut answer)
    })??;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}

/// A pod of this runtime and one of the other call each other.
pub fn mixed(site: &Site<'_>) -> Result<String> {
    let other = if site.class == "runc" { "cloister" } else { "runc" };
    site.pod("ours", &[server()], json!({}))?;
    site.pod("theirs", &[server()], json!({"runtimeClassName": other}))?;
    let mut said = Vec::new();
    for (from, to) in [("ours", "theirs"), ("theirs", "ours")] {
        site.ready(from)?;
        let pod = site.pod_when(to, is_ready)?;
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        said.push(site.sh(from, &format!("wget -qO- http://{address}/name"))?);
    }
    Ok(said.join(" and "))
}

pub fn host_port(site: &Site<'_>) -> Result<String> {
    let port =
        json!({"ports": [{"containerPort": 80, "hostPort": if site.class == "runc" { 8081 } else { 8082 }}]});
    site.ready_pod("server", with(server(), port.clone()), json!({}))?;
    let url = format!("http://{}:{}/name", site.node.address(), port["ports"][0]["hostPort"]);
    let busybox = cloister_e2e::pod_images::lab_program("bin/busybox")?;
    let said = site.cluster.cell().run(&busybox.to_string_lossy(), &["wget", "-qO-", &url])?;
    Ok(said.trim().to_owned())
}
