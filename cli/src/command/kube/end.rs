//! `cancel` and `retry`.

use anyhow::Result;
use kube::ResourceExt;

use super::client::Cluster;
use super::submit;
use crate::args::kube::{KubeGlobal, Names};
use crate::output;

/// Ends builds.
pub async fn cancel(global: &KubeGlobal, args: &Names) -> Result<u8> {
    let cluster = Cluster::connect(global).await?;
    for name in &args.names {
        let build = cluster.build(name).await?;
        submit::cancel(&cluster.builds(), &build).await?;
        output::print(&format!("imagebuild/{} canceled\n", build.name_any()))?;
    }
    Ok(0)
}

/// Starts builds again.
pub async fn retry(global: &KubeGlobal, args: &Names) -> Result<u8> {
    let cluster = Cluster::connect(global).await?;
    for name in &args.names {
        let build = cluster.build(name).await?;
        if build.spec.source.upload.is_some() {
            eprintln!(
                "cloister: the folder of {name} is sent only by `kubectl cloister build`: without it the attempt works \
                 only where a node has kept the folder"
            );
        }
        submit::rebuild(&cluster.builds(), &build).await?;
        output::print(&format!("imagebuild/{} retried\n", build.name_any()))?;
    }
    Ok(0)
}
