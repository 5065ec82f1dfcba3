//! From a gzip layer to a published EROFS file, beside `igzip -dc` and `gzip -dc | mkfs.erofs --tar`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{Report, Verdict, seconds};
use crate::lab::{self, Lab};
use crate::stats::Series;

/// Runs per figure; the commands take turns, so a slow moment of the machine hits all alike.
const RUNS: usize = 5;

/// One large layer: ours against its peers.
pub fn one_layer(report: &mut Report) -> Result<()> {
    let archive = lab::debian_image("large")?;
    let scratch = tempfile::tempdir()?;
    let blob = scratch.path().join("layer.tar.gz");
    let bytes = largest_layer(&archive, &blob)?;
    let mkfs = lab::tool("erofs-utils-trixie", "mkfs.erofs")?;
    let out = scratch.path().join("peer.erofs");
    let tar_bytes: f64 = {
        let counted = std::process::Command::new("bash")
            .args(["-c", &format!("igzip -dc {} | wc -c", blob.display())])
            .output()?;
        String::from_utf8_lossy(&counted.stdout).trim().parse()?
    };
    println!("a gzip layer of {:.0} MB, {:.0} MB of tar", bytes as f64 / 1e6, tar_bytes / 1e6);

    let mut ours = Series::new("cloister image import, both digests, published", "s");
    let mut igzip = Series::new("igzip -dc alone", "s");
    let mut peer = Series::new("gzip -dc | mkfs.erofs --tar", "s");
    seconds(&format!("igzip -dc {} >/dev/null", blob.display()))?;
    for _ in 0..RUNS {
        igzip.runs.push(seconds(&format!("igzip -dc {} >/dev/null", blob.display()))?);
        ours.runs.push(import(&archive)?);
        peer.runs.push(seconds(&format!(
            "gzip -dc {} | {} --quiet --tar=f {}",
            blob.display(),
            mkfs.display(),
            out.display()
        ))?);
        std::fs::remove_file(&out)?;
    }
    let (a, b, c) = (ours.median(), igzip.median(), peer.median());
    report.add(igzip);
    report.add(peer);
    report.add(ours);
    report.judge(Verdict::at_most("conversion: time over igzip -dc alone", a / b, "×", 1.5));
    report.judge(Verdict::at_least("conversion: speed over gzip -dc | mkfs.erofs --tar", c / a, "×", 4.0));
    Ok(())
}

/// Four layers of about equal size: in parallel against one after the other.
pub fn four_layers(report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let archive = four_layer_archive(scratch.path())?;
    let mut together = Series::new("import of four layers in parallel", "s");
    let mut alone = Series::new("import of the same four, one after the other", "s");
    for _ in 0..RUNS {
        alone.runs.push(import_with(&archive, &["--jobs", "1"])?);
        together.runs.push(import(&archive)?);
    }
    let gain = alone.median() / together.median();
    report.add(alone);
    report.add(together);
    report.judge(Verdict::at_least("four layers in parallel over one after the other", gain, "×", 1.7));
    Ok(())
}

fn import(archive: &Path) -> Result<f64> {
    import_with(archive, &[])
}

/// Seconds of one import into an empty store.
fn import_with(archive: &Path, options: &[&str]) -> Result<f64> {
    let lab = Lab::new()?;
    let path = archive.to_string_lossy();
    let mut args = vec!["image", "import", "bench", "-i", &path];
    args.extend(options);
    let start = Instant::now();
    lab.ok(&args)?;
    Ok(start.elapsed().as_secs_f64())
}

/// A docker-archive of four layers: the Debian base of the demo image four times, each with one more file, so that
/// no two have the same digest.
fn four_layer_archive(folder: &Path) -> Result<PathBuf> {
    let blob = folder.join("base.tar.gz");
    largest_layer(&lab::debian_image("demo")?, &blob)?;
    let base = folder.join("base.tar");
    seconds(&format!("gzip -dc {} > {}", blob.display(), base.display()))?;
    let mut names = Vec::new();
    let mut diff_ids = Vec::new();
    for index in 0..4 {
        let extra = folder.join(format!("layer-{index}"));
        std::fs::write(&extra, format!("layer {index}\n"))?;
        let layer = folder.join(format!("{index}.tar"));
        std::fs::copy(&base, &layer)?;
        seconds(&format!(
            "tar -rf {} -C {} layer-{index} && sha256sum <{0} >{0}.sum && gzip -6 -n {0}",
            layer.display(),
            folder.display()
        ))?;
        let sum = std::fs::read_to_string(format!("{}.sum", layer.display()))?;
        diff_ids.push(format!("\"sha256:{}\"", sum.split_whitespace().next().context("no sum")?));
        names.push(format!("{index}.tar.gz"));
    }
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config_name =
        format!("{}.json", Sha256::digest(&config).iter().map(|b| format!("{b:02x}")).collect::<String>());
    let layers = names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(",");
    let manifest =
        format!(r#"[{{"Config":"{config_name}","RepoTags":["four:latest"],"Layers":[{layers}]}}]"#);
    std::fs::write(folder.join(&config_name), config)?;
    File::create(folder.join("manifest.json"))?.write_all(manifest.as_bytes())?;
    let archive = folder.join("four.tar");
    seconds(&format!(
        "tar -C {} -cf {} manifest.json {config_name} {}",
        folder.display(),
        archive.display(),
        names.join(" ")
    ))?;
    Ok(archive)
}

/// Copies the largest gzip layer of a docker-archive to `to`; returns its size in bytes.
fn largest_layer(archive: &Path, to: &Path) -> Result<u64> {
    let mut largest = (0, PathBuf::new());
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let entry = entry?;
        if entry.path()?.extension().is_some_and(|e| e == "gz") && entry.size() > largest.0 {
            largest = (entry.size(), entry.path()?.into_owned());
        }
    }
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        if *entry.path()? == *largest.1 {
            return Ok(io::copy(&mut entry, &mut File::create(to)?)?);
        }
    }
    anyhow::bail!("{} holds no gzip layer", archive.display())
}
