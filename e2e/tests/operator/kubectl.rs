//! `kubectl cloister` with the rights that its document lists. Its folders are not taken here: no kubelet answers, and the
//! node that is played has its results all the same.

use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use cloister_crds::ImageBuild;
use cloister_e2e::lab::target_dir;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::kubelet::{self, Does, Kubelet};
use crate::site::{Site, until, words};

/// A developer at a terminal.
struct Dev {
    site: Site,
    node: Kubelet,
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
}

impl Dev {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(target_dir().join("cloister"));
        command.arg0("kubectl-cloister").arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        let done = tokio::time::timeout(Duration::from_secs(90), self.command(args).output()).await;
        let output = done.expect("in time").unwrap();
        eprintln!("$ kubectl cloister {}\n{}{}", args.join(" "), text(&output.stderr), text(&output.stdout));
        output
    }

    /// Runs a command that has to succeed; gives what it wrote.
    async fn ok(&self, args: &[&str]) -> (String, String) {
        let output = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    }

    fn context(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

#[tokio::test]
async fn a_user_builds_with_kubectl() {
    let site = Site::new(&["default"]).await;
    let operator = site.operator("alone", &[]);
    let node = Kubelet::start(site.client.clone(), Does::Builds(0));
    let kubeconfig = site.cluster.developer().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev { site, node, kubeconfig, folder };
    dev.write("Dockerfile", "FROM scratch\n");
    what_is_built_is_named_and_not_built_twice(&dev).await;
    a_failure_is_told_and_ends_with_1(&dev).await;
    a_folder_that_did_not_arrive_is_sent_again(&dev).await;
    a_build_that_is_interrupted_is_canceled_and_can_be_retried(&dev).await;
    an_api_server_may_go_away(&dev).await;
    a_secret_of_this_machine_goes_with_its_build(&dev).await;
    what_a_dry_run_prints_is_accepted(&dev).await;
    somebody_else_s_fields_are_left_alone(&dev).await;
    what_is_kept_of_a_log_is_shown(&dev).await;
    builds_are_listed(&dev).await;
    operator.terminate();
}

async fn what_is_built_is_named_and_not_built_twice(dev: &Dev) {
    let image = format!("docker.io/library/app:1@{}\n", kubelet::digest());
    let (out, err) = dev.ok(&["build", "-t", "app:1", dev.context()]).await;
    assert_eq!(out, image, "{err}");
    assert!(err.contains("imagebuild/app-1 created in namespace default"), "{err}");
    let (out, err) = dev.ok(&["build", "-t", "app:1", dev.context()]).await;
    assert_eq!(out, image);
    assert!(err.contains("unchanged") && err.contains("nothing has changed"), "{err}");
    dev.write("more", "1");
    let (_, err) = dev.ok(&["build", "-t", "app:1", dev.context()]).await;
    assert!(err.contains("imagebuild/app-1 changed"), "{err}");
    let (_, err) = dev.ok(&["build", "-t", "app:1", "--no-cache", dev.context()]).await;
    assert!(err.contains("changed"), "{err}");
    let (_, err) = dev.ok(&["build", "-t", "app:1", "--no-cache", dev.context()]).await;
    assert!(err.contains("unchanged"), "{err}");
    let build = dev.site.builds("default").get("app-1").await.unwrap();
    assert_eq!(build.status.unwrap().attempts.last().unwrap().number, 4);
}

async fn a_failure_is_told_and_ends_with_1(dev: &Dev) {
    dev.node.does(Does::Fails("StepFailed"));
    let output = dev.run(&["build", "-t", "bad", dev.context()]).await;
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{said}");
    assert!(said.contains("cloister: StepFailed: by a test"), "{said}");
    dev.node.does(Does::Builds(0));
    // The same once more is another attempt.
    dev.ok(&["build", "-t", "bad", dev.context()]).await;
}

async fn a_folder_that_did_not_arrive_is_sent_again(dev: &Dev) {
    dev.node.does(Does::Fails("SourceMismatch"));
    let output = dev.run(&["build", "-t", "cut", dev.context()]).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("sending the folder again").count(), 2, "{said}");
    let build = dev.site.builds("default").get("cut").await.unwrap();
    assert_eq!(build.status.unwrap().attempts.len(), 3);
}

async fn a_build_that_is_interrupted_is_canceled_and_can_be_retried(dev: &Dev) {
    dev.node.does(Does::Hangs);
    let child = dev.command(&["build", "-t", "slow", dev.context()]).spawn().unwrap();
    until("the build", || async { dev.site.builds("default").get_opt("slow").await.unwrap().is_some() })
        .await;
    dev.site.condition("slow", "Ready=False/Building").await;
    interrupt(&child);
    let output = child.wait_with_output().await.unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("imagebuild/slow canceled"), "{said}");
    let build = dev.site.condition("slow", "Stalled=True/Cancelled").await;
    assert!(build.spec.cancel);
    dev.node.does(Does::Builds(0));
    assert_eq!(dev.ok(&["retry", "slow"]).await.0, "imagebuild/slow retried\n");
    dev.site.condition("slow", "Ready=True/ImageReady").await;
    // Another build of it is no conflict with what these two wrote.
    dev.write("more", "2");
    dev.ok(&["build", "-t", "slow", dev.context()]).await;
    dev.node.does(Does::Hangs);
    dev.ok(&["retry", "slow"]).await;
    dev.site.condition("slow", "Succeeded=Unknown/Starting").await;
    assert_eq!(dev.ok(&["cancel", "slow"]).await.0, "imagebuild/slow canceled\n");
    dev.site
        .wait("slow", "its end", |build| words(build).contains(&"Stalled=True/Cancelled".to_owned()))
        .await;
}

async fn an_api_server_may_go_away(dev: &Dev) {
    dev.node.does(Does::Hangs);
    let child = dev.command(&["build", "-t", "patient", dev.context()]).spawn().unwrap();
    until("the build", || async { dev.site.builds("default").get_opt("patient").await.unwrap().is_some() })
        .await;
    dev.site.condition("patient", "Ready=False/Building").await;
    dev.site.cluster.stop("kube-apiserver", true).unwrap();
    dev.site.cluster.start("kube-apiserver").unwrap();
    // With all that the played node said before: an API server of 1.20 leaves null where a field is no longer applied.
    let steps = json!({"total": 3, "completed": 1, "cached": 0, "cachedPercent": 0});
    let stages = json!([{"name": "Solve", "startTime": "2026-01-01T00:00:00Z"}]);
    let status = json!({"attempts": [{"number": 1, "digest": kubelet::digest(), "stages": stages, "steps": steps}],
        "nodes": [{"name": "n1", "state": "Ready", "digest": kubelet::digest()}]});
    kubelet::write(&dev.site.client, "default", "patient", status).await.unwrap();
    let ended = kube::api::Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    dev.site.pods("default").patch_status("patient-1", &Default::default(), &ended).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    dev.node.does(Does::Builds(0));
}

async fn a_secret_of_this_machine_goes_with_its_build(dev: &Dev) {
    let token = dev.folder.path().join("../token-of-a-test");
    fs::write(&token, "hunter2").unwrap();
    let secret = format!("id=token,src={}", token.display());
    let (_, said) = dev.ok(&["build", "-t", "secretive", "--secret", &secret, dev.context()]).await;
    fs::remove_file(&token).unwrap();
    assert!(!said.contains("hunter2"));
    let build = dev.site.builds("default").get("secretive").await.unwrap();
    assert!(!serde_json::to_string(&build).unwrap().contains("hunter2"));
    let name = &build.spec.secrets[0].secret_key_ref.name;
    let secret = dev.site.cluster.get(&["secret", name]).unwrap();
    assert_eq!(secret["data"]["token"], "aHVudGVyMg==");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], build.metadata.uid.unwrap());
    assert_eq!(build.status.unwrap().attempts.len(), 1, "it was held back until the Secret was there");
}

async fn what_a_dry_run_prints_is_accepted(dev: &Dev) {
    let flags = [
        "build",
        "--dry-run",
        "-n",
        "default",
        "-t",
        "dry:1",
        "--build-arg",
        "A=1",
        "--label",
        "b=c",
        "--target",
        "run",
        "--platform",
        "linux/amd64",
        "--network",
        "egress",
        "--cache-key",
        "web",
        "--nodes",
        "pool in (web),!old",
        "--push",
        "registry.example.com/team",
        "--push-secret",
        "robot",
        "--timeout",
        "90m",
        "--ssh",
        "id=default,secret=deploy/ssh-privatekey",
    ];
    let (yaml, _) = dev.ok(&[&flags[..], &[dev.context()]].concat()).await;
    dev.site.cluster.apply(&yaml).unwrap();
    // The operator holds the rules in CEL against it, which this API server does not.
    let begun = |build: &ImageBuild| build.status.iter().any(|status| !status.attempts.is_empty());
    let build = dev.site.wait("dry-1", "an attempt", begun).await;
    assert_eq!(build.spec.output.nodes.unwrap().match_expressions.unwrap().len(), 2);
}

async fn somebody_else_s_fields_are_left_alone(dev: &Dev) {
    let output = dev.run(&["build", "-t", "dry:1", "--timeout", "5m", dev.context()]).await;
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("--force-conflicts"), "{said}");
    let refused = dev.run(&["build", "-n", "kube-system", "-t", "app", dev.context()]).await;
    assert!(text(&refused.stderr).contains("User \"dev\" cannot get"), "{}", text(&refused.stderr));
}

async fn what_is_kept_of_a_log_is_shown(dev: &Dev) {
    let status = json!({"status": {"logTail": "#5 DONE 0.1s\n"}}).to_string();
    dev.site.cluster.patch_status("imagebuilds", "app-1", &status).unwrap();
    let (out, err) = dev.ok(&["logs", "app-1"]).await;
    assert_eq!(out, "#5 DONE 0.1s\n");
    assert!(err.contains("on node n1: cloister-node builds log default/app-1 4"), "{err}");
    let none = dev.run(&["logs", "app-1", "--attempt", "9"]).await;
    assert!(text(&none.stderr).contains("has no attempt 9"), "{}", text(&none.stderr));
    let none = dev.run(&["logs", "nothing"]).await;
    assert_eq!(text(&none.stderr), "cloister: there is no imagebuild nothing in namespace default\n");
}

async fn builds_are_listed(dev: &Dev) {
    let (table, _) = dev.ok(&["ls"]).await;
    let line = |name: &str| {
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("NAME"), ["NAME", "IMAGE", "PHASE", "PROGRESS", "NODE", "AGE"]);
    assert_eq!(line("slow")[1..3], ["slow", "Cancelled"]);
    assert_eq!(line("app-1")[1..3], ["app:1", "Succeeded"]);
    let (wide, _) = dev.ok(&["ls", "-o", "wide"]).await;
    assert!(wide.contains(&kubelet::digest()) && wide.contains("ImageReady"), "{wide}");
    let (all, _) = dev.ok(&["ls", "-o", "json"]).await;
    let all: Value = serde_json::from_str(&all).unwrap();
    assert!(all["items"].as_array().is_some_and(|items| items.len() >= 7), "{all:#}");
    let refused = dev.run(&["ls", "-A"]).await;
    assert!(text(&refused.stderr).contains("at the cluster scope"), "{}", text(&refused.stderr));
}
