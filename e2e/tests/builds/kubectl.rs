//! `kubectl cloister build` with the rights of its document: a folder goes to the builder's machine, an image to the nodes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use cloister_e2e::lab::target_dir;

use crate::site::with_site;

fn build(kubeconfig: &Path, context: &Path, options: &[&str]) -> Result<Output> {
    let mut command = Command::new(target_dir().join("cloister"));
    command.arg0("kubectl-cloister").arg("--kubeconfig").arg(kubeconfig).arg("build").args(options);
    let output = command.arg(context).output()?;
    eprintln!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    Ok(output)
}

#[test]
fn a_folder_becomes_an_image_of_every_node() {
    with_site(&[], |site| {
        let kubeconfig = site.cluster.developer()?;
        let folder = tempfile::tempdir()?;
        let context = folder.path();
        let dockerfile =
            "FROM lab.test/busybox:1\nCOPY . /files\nRUN cat /files/word >/said\nCMD [\"cat\", \"/said\"]\n";
        fs::write(context.join("Dockerfile"), dockerfile)?;
        fs::write(context.join(".dockerignore"), "big\n")?;
        fs::write(context.join("word"), "first\n")?;
        fs::write(context.join("big"), vec![7; 4 << 20])?;

        let built = build(&kubeconfig, context, &["-t", "folder:1", "--nodes", ""])?;
        let (out, said) = (String::from_utf8(built.stdout)?, String::from_utf8(built.stderr)?);
        ensure!(built.status.success() && out.starts_with("docker.io/library/folder:1@sha256:"), "{out}");
        ensure!(said.contains("RUN cat /files/word"), "no progress: {said}");
        for node in &site.nodes {
            ensure!(site.run("folder:1", node.name(), true)? == "first\n");
        }

        fs::write(context.join("word"), "second\n")?;
        let again = build(&kubeconfig, context, &["-t", "folder:1", "--nodes", ""])?;
        ensure!(again.status.success() && String::from_utf8(again.stdout)? != out);
        ensure!(site.run("folder:1", "two", false)? == "second\n");

        fs::write(context.join("Dockerfile"), "FROM lab.test/busybox:1\nRUN echo so far; exit 3\n")?;
        let failed = build(&kubeconfig, context, &["-t", "folder:1", "--nodes", ""])?;
        let said = String::from_utf8(failed.stderr)?;
        ensure!(failed.status.code() == Some(1) && failed.stdout.is_empty(), "{said}");
        ensure!(said.contains("so far") && said.contains("StepFailed"), "{said}");
        site.clean()
    });
}
