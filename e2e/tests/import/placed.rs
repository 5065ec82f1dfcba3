//! Images of builds on the nodes of a cluster: `cloister-node builds` brings them, tells of them and takes them away.
//! Attempts and their results are this test's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::{Builds, Node};
use cloister_e2e::containerd::Version;
use cloister_e2e::oci_archive::OciArchive;
use serde_json::{Value, json};

use crate::bench::{app, busybox, image, noise};

/// How soon an image has to be where it belongs, or gone.
const SOON: Duration = Duration::from_secs(60);

struct Site {
    // In the order in which they have to end.
    builds: Builds,
    nodes: [Node; 2],
    cluster: Cluster,
}

fn with_site(test: impl FnOnce(&Site) -> Result<()>) {
    let cluster = Cluster::control_plane().unwrap();
    cluster.start_controllers().unwrap();
    let nodes = std::thread::scope(|scope| {
        let two = scope.spawn(|| cluster.node("two", Version::V1_7, &[]));
        [cluster.node("one", Version::V2_1, &[]).unwrap(), two.join().unwrap().unwrap()]
    });
    let builds = Builds::start(&cluster, &nodes, &[]).unwrap();
    // Attempts without pods would have ended for it.
    builds.operator.stop(true).unwrap();
    let site = Site { builds, nodes, cluster };
    if let Err(error) = test(&site) {
        site.nodes.iter().for_each(Node::print_logs);
        site.builds.print_logs();
        panic!("{error:#}");
    }
}

impl Site {
    fn spec(&self, patch: &Value) -> Result<()> {
        let patch = json!({"spec": patch}).to_string();
        self.cluster.kubectl(&["patch", "imgb", "app", "--type=merge", "-p", &patch]).map(drop)
    }

    /// Node one imports what it has built, as its build driver does.
    fn import(&self, archive: &OciArchive) -> Result<()> {
        let build = self.cluster.get(&["imgb", "app"])?;
        let uid = build["metadata"]["uid"].as_str().context("no uid")?;
        let path = self.nodes[0].lab.root().join("build.tar");
        archive.write(&path)?;
        let path = path.to_string_lossy();
        let args = ["import", "--build", "default/app", "--object", uid, "--digest", &archive.digest];
        image(&self.nodes[0].lab, &[&args[..], &["--pin", "-i", &path, "app:1"]].concat()).map(drop)
    }

    /// An attempt on node one, as the operator and the driver tell of it: it runs, or has made this.
    fn attempt(&self, number: u64, result: Option<&OciArchive>) -> Result<()> {
        let build = self.cluster.get(&["imgb", "app"])?;
        let mut attempt = json!({"number": number, "generation": build["metadata"]["generation"],
            "trigger": "Spec", "node": "one"});
        if let Some(archive) = result {
            attempt["digest"] = archive.digest.clone().into();
            attempt["completionTime"] = "2026-01-01T00:00:00Z".into();
        }
        let mut attempts = build["status"]["attempts"].as_array().cloned().unwrap_or_default();
        attempts.retain(|other| other["number"] != number);
        attempts.push(attempt);
        let status = json!({"status": {"attempts": attempts}}).to_string();
        self.cluster.patch_status("imagebuilds", "app", &status).map(drop)
    }

    /// The entry of a node, or null.
    fn entry(&self, node: &str) -> Result<Value> {
        let build = self.cluster.get(&["imgb", "app"])?;
        let nodes = build["status"]["nodes"].as_array().cloned().unwrap_or_default();
        Ok(nodes.into_iter().find(|entry| entry["name"] == node).unwrap_or_default())
    }

    fn until(&self, what: &str, node: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, SOON, || {
            self.builds.check()?;
            let entry = self.entry(node)?;
            Ok(holds(&entry).then_some(entry))
        })
        .with_context(|| format!("entry of {node}: {}", self.entry(node).unwrap_or_default()))
    }

    /// Waits until a node says that it has the image, and sees to it that pods could run it.
    fn ready(&self, node: usize, archive: &OciArchive, pinned: bool) -> Result<Value> {
        let name = self.nodes[node].name();
        let entry = self.until("an image", name, |entry| {
            entry["state"] == "Ready" && entry["digest"] == archive.digest && entry["pinned"] == pinned
        })?;
        let known = self.nodes[node].lab.image("app:1")?.context("the CRI does not know app:1")?;
        ensure!(known.id == archive.id && known.pinned == pinned, "{name}: {known:?}");
        Ok(entry)
    }

    fn gone(&self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        wait_for(&format!("the end of the image on {}", node.name()), SOON, || {
            let listed = image(&node.lab, &["ls"])?;
            Ok((listed.is_empty() && node.lab.image("app:1")?.is_none()).then_some(()))
        })
    }
}

#[test]
fn images_are_where_builds_want_them() {
    with_site(|site| {
        let object = json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "metadata": {"name": "app"},
            "spec": {"source": {"inline": {"dockerfile": "FROM scratch\n"}},
                "output": {"images": ["app:1"], "nodes": {}}}});
        site.cluster.apply(&object.to_string())?;
        let first = app("one")?;
        site.import(&first)?;
        site.attempt(1, Some(&first))?;
        for node in [0, 1] {
            site.ready(node, &first, true)?;
        }
        eprintln!("comes back");
        let (lab, name) = (&site.nodes[1].lab, "docker.io/library/app:1");
        lab.ctr(&["images", "rm", "--sync", name])?;
        wait_for("the image", SOON, || {
            Ok(lab.ctr(&["images", "ls", "-q"])?.lines().any(|listed| listed == name).then_some(()))
        })?;
        site.ready(1, &first, true)?;

        eprintln!("a node that does not answer, and one that is killed");
        let second = OciArchive::new(&[busybox()?, noise(1, 48 << 20)?]);
        site.attempt(2, None)?;
        site.import(&second)?;
        site.nodes[0].lab.stop_node(true)?;
        site.attempt(2, Some(&second))?;
        let failed = site.until("a failure", "two", |entry| entry["state"] == "Failed")?;
        ensure!(failed["message"].as_str().is_some_and(|why| why.starts_with("one: ")), "{failed}");
        site.nodes[0].lab.start_node()?;
        site.until("another try", "two", |entry| entry["state"] != "Failed")?;
        site.builds.drivers[1].stop(true)?;
        site.builds.drivers[1].start(&site.nodes[1].lab.cell)?;
        let ready = site.ready(1, &second, true)?;
        ensure!(ready["message"].is_null() || ready["message"] == "", "{ready}");
        site.ready(0, &second, true)?;

        eprintln!("other wishes");
        site.spec(&json!({"output": {"pin": false}}))?;
        for node in [0, 1] {
            site.ready(node, &second, false)?;
        }
        let only =
            |node: &str| json!({"output": {"nodes": {"matchLabels": {"kubernetes.io/hostname": node}}}});
        site.spec(&only("two"))?;
        site.until("the end of an entry", "one", Value::is_null)?;
        ensure!(site.nodes[0].lab.image("app:1")?.is_some(), "the other node may need it");
        site.spec(&only("one"))?;
        site.until("the end of an entry", "two", Value::is_null)?;
        site.gone(1)?;
        site.ready(0, &second, false)?;

        eprintln!("the end");
        image(&site.nodes[0].lab, &["pin", "default/app"])?;
        site.cluster.kubectl(&["delete", "imgb", "app", "--timeout=60s"])?;
        site.gone(0)
    });
}
