//! Blocks for a cluster, and the objects that pages show: against a real API server, with Helm's own engine. Nodes are not
//! there; what needs them names its test.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::lab::{cache, checkout};

use crate::machine::{path, programs};
use crate::page::{Page, documents};

/// How long one block may take, in seconds.
const PATIENCE: &str = "120";

/// A folder with the programs, the charts and the objects that a page calls by their files' names.
fn folder(page: &Page, cluster: &Cluster) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    programs(&bin);
    let helm = checkout().join("scripts/charts/helm.py");
    let wrapper = format!(
        "#!/bin/sh\nexec {} \"$@\" --kubeconfig {}\n",
        helm.display(),
        cluster.kubeconfig().display()
    );
    fs::write(bin.join("helm"), wrapper).unwrap();
    fs::set_permissions(bin.join("helm"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink(checkout().join("charts"), folder.path().join("charts")).unwrap();
    for block in page.blocks().iter().filter(|block| block.language == "yaml") {
        if let Some(name) = block
            .text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "))
            .filter(|name| name.ends_with(".yaml"))
        {
            fs::write(folder.path().join(name), &block.text).unwrap();
        }
    }
    folder
}

fn run(script: &str, folder: &Path, cluster: &Cluster) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", PATIENCE, "bash", "-ec", &format!("exec 2>&1\n{script}")])
        .current_dir(folder);
    command
        .env("PATH", path(&folder.join("bin")))
        .env("HOME", folder)
        .env("KUBECONFIG", cluster.kubeconfig());
    command.env("CLOISTER_CACHE", cache().unwrap());
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(format!("{}: {said}", output.status)),
    }
}

/// A cluster in which pods are taken.
fn cluster() -> Cluster {
    let cluster = Cluster::control_plane().unwrap();
    cluster.start("kube-controller-manager").unwrap();
    wait_for("the default service account", Duration::from_secs(30), || {
        let secrets = ["get", "serviceaccount", "default", "-o", "jsonpath={.secrets}"];
        let found = cluster.try_kubectl(&secrets)?;
        Ok((found.status.success() && !found.stdout.is_empty()).then_some(()))
    })
    .unwrap();
    cluster
}

#[test]
fn what_a_cluster_is_told_works_and_objects_are_taken() {
    let cluster = cluster();
    let (mut blocks, mut objects) = (0, 0);
    // README.md installs the charts that the others take for granted.
    let mut pages = documents();
    pages.sort_by_key(|page| page.path != "README.md");
    for page in &pages {
        let folder = folder(page, &cluster);
        for block in page.blocks() {
            let script = match block.language.as_str() {
                "sh" if block.is_run("cluster") => block.text.clone(),
                "yaml" if block.text.contains("kind: ") => {
                    fs::write(folder.path().join("object.yaml"), &block.text).unwrap();
                    objects += 1;
                    "kubectl apply --dry-run=server -f object.yaml".to_owned()
                }
                _ => continue,
            };
            blocks += 1;
            match run(&script, folder.path(), &cluster) {
                // Helm shows whole manifests.
                Ok(said) => eprintln!("{}\n{said:.2000}", block.place),
                Err(why) => panic!("{}: {why}", block.place),
            }
        }
    }
    assert!(blocks >= 6 && objects >= 3, "{blocks} blocks, {objects} objects");
}
