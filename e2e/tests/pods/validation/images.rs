//! The image service: pulled from a registry of the lab.

use anyhow::{Context, Result, ensure};
use cloister_e2e::Rig;
use cloister_e2e::containerd::registry::Registry;
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::container;
use cloister_e2e::pod_images::{BUSYBOX, CONFIGURED};

fn spec(name: &str) -> Option<api::ImageSpec> {
    Some(api::ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..Default::default()
    })
}

fn pull(rig: &Rig, name: &str) -> Result<String> {
    let request = api::PullImageRequest { image: spec(name), ..Default::default() };
    Ok(rig.lab.cri.pull_image(request).with_context(|| format!("PullImage {name}"))?.image_ref)
}

fn remove(rig: &Rig, name: &str) -> Result<()> {
    rig.lab.cri.remove_image(api::RemoveImageRequest { image: spec(name) })?;
    Ok(())
}

fn list(rig: &Rig) -> Result<Vec<api::Image>> {
    Ok(rig.lab.cri.list_images(api::ListImagesRequest::default())?.images)
}

/// A registry with these names of one image.
fn registry<'a>(rig: &'a Rig, image: &str, names: &[&str]) -> Result<Registry<'a>> {
    let _ = std::fs::remove_dir_all(rig.lab.root().join("registry"));
    let registry = Registry::start(&rig.lab)?;
    registry.push(image, names)?;
    Ok(registry)
}

/// Pulls, finds and removes what is in the registry as `lab/pulled:latest`.
fn comes_and_goes(rig: &Rig, name: &str) -> Result<()> {
    let _registry = registry(rig, CONFIGURED, &["lab/pulled:latest"])?;
    rig.lab.ctr(&["images", "rm", "--sync", CONFIGURED])?;
    let outcome = (|| {
        let id = pull(rig, name)?;
        let image = rig.lab.image(name)?.context("the pulled image is not known")?;
        ensure!(image.id == id && image.size > 0);
        remove(rig, name)?;
        ensure!(rig.lab.image(name)?.is_none(), "a removed image is known");
        Ok(())
    })();
    restore(rig)?;
    outcome
}

/// Imports again what the other cases need.
fn restore(rig: &Rig) -> Result<()> {
    for archive in cloister_e2e::pod_images::archives(&[BUSYBOX, CONFIGURED])? {
        rig.lab.ctr(&["images", "import", &archive.to_string_lossy()])?;
    }
    Ok(())
}

pub fn by_tag(rig: &Rig) -> Result<()> {
    comes_and_goes(rig, "registry.test/lab/pulled:latest")
}

pub fn without_tag(rig: &Rig) -> Result<()> {
    comes_and_goes(rig, "registry.test/lab/pulled")
}

pub fn by_digest(rig: &Rig) -> Result<()> {
    let registry = registry(rig, CONFIGURED, &["lab/pulled:latest"])?;
    pull(rig, "registry.test/lab/pulled:latest")?;
    let image = rig.lab.image("registry.test/lab/pulled:latest")?.context("not known")?;
    let digest = image.repo_digests.first().context("an image without digest")?.clone();
    remove(rig, "registry.test/lab/pulled:latest")?;
    drop(registry);
    comes_and_goes(rig, &digest)
}

pub fn all_references(rig: &Rig) -> Result<()> {
    let _registry = registry(rig, BUSYBOX, &["lab/referred:latest"])?;
    let id = pull(rig, "registry.test/lab/referred:latest")?;
    let image = rig.lab.image(&id)?.context("not known by its ID")?;
    for name in image.repo_tags.iter().chain(&image.repo_digests) {
        ensure!(rig.lab.image(name)?.is_some_and(|found| found.id == id), "not known as {name}");
    }
    ensure!(rig.lab.image("registry.test/lab/referred")?.is_some(), "not known without tag");
    rig.lab.ctr(&["images", "rm", "--sync", "registry.test/lab/referred:latest"])?;
    Ok(())
}

pub fn user_of_an_image(rig: &Rig) -> Result<()> {
    let image = rig.lab.image(CONFIGURED)?.context("not known")?;
    ensure!(image.username == "worker", "{:?}", image.username);
    ensure!(rig.lab.image(BUSYBOX)?.context("not known")?.username.is_empty());
    Ok(())
}

pub fn three_images(rig: &Rig) -> Result<()> {
    ensure!(list(rig)?.len() >= 3, "{:?}", list(rig)?);
    Ok(())
}

pub fn three_tags(rig: &Rig) -> Result<()> {
    let names = ["lab/tags:1", "lab/tags:2", "lab/tags:3"];
    let _registry = registry(rig, BUSYBOX, &names)?;
    let mut id = String::new();
    for name in names {
        id = pull(rig, &format!("registry.test/{name}"))?;
    }
    let tags = rig.lab.image(&id)?.context("not known")?.repo_tags;
    ensure!(tags.iter().filter(|tag| tag.starts_with("registry.test/lab/tags:")).count() == 3, "{tags:?}");
    for name in names {
        rig.lab.ctr(&["images", "rm", "--sync", &format!("registry.test/{name}")])?;
    }
    Ok(())
}

pub fn usage(rig: &Rig) -> Result<()> {
    let info = rig.lab.cri.image_fs_info(api::ImageFsInfoRequest::default())?;
    let usage = info.image_filesystems.first().context("no file system")?;
    ensure!(usage.fs_id.as_ref().is_some_and(|id| !id.mountpoint.is_empty()));
    Ok(())
}

pub fn removing_a_missing_image(rig: &Rig) -> Result<()> {
    remove(rig, "registry.test/never/was:1")
}

pub fn an_image_is_mounted(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("cat /image/data/seed; touch /image/x 2>/dev/null || echo refused");
    config.mounts.push(api::Mount {
        container_path: "/image".to_owned(),
        image: spec(CONFIGURED),
        readonly: true,
        ..Default::default()
    });
    let outcome = pod.once_in(config)?;
    ensure!(outcome == (0, "from the image\nrefused\n".to_owned()), "{outcome:?}");
    Ok(())
}

/// Also when the image came after another one with the same layers, and only by name.
pub fn volumes_keep_their_content(rig: &Rig) -> Result<()> {
    rig.lab.ctr(&["images", "rm", "--sync", CONFIGURED])?;
    restore(rig)?;
    let mut config = container("volumes", CONFIGURED, &[]);
    config.args = vec!["cat /data/seed".to_owned()];
    let outcome = rig.pod()?.once_in(config)?;
    ensure!(outcome == (0, "from the image\n".to_owned()), "{outcome:?}");
    Ok(())
}
