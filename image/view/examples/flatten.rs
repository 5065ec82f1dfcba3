//! Measures: `flatten erofs|ext4|tar OUT LAYER…` writes the merged view of EROFS files, lowest first;
//! `flatten layer OUT BLOB` converts a layer; `flatten scratch OUT BYTES` makes an empty disk. Prints wall time and peak memory.

use std::fs::File;
use std::time::Instant;

use cloister_view::merged::{Limits, Merged};
use cloister_view::{Error, Result, erofs, ext4, reader, scratch, tar};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [format, to, rest @ ..] = arguments.as_slice() else {
        return Err(Error::Invalid("usage: flatten erofs|ext4|tar|layer|scratch OUT LAYER…|BYTES".into()));
    };
    let open = |options: &mut std::fs::OpenOptions, path: &String| {
        options.open(path).map_err(|source| Error::Io { what: format!("open {path}"), source })
    };
    let out = open(File::options().read(true).write(true).create(true).truncate(true), to)?;
    let start = Instant::now();
    if format == "scratch" {
        let size = rest.first().and_then(|size| size.parse().ok()).unwrap_or(10 << 30);
        scratch::create(&out, size)?;
    } else if format == "layer" {
        use cloister_layer::{Expected, convert};
        let blob = open(File::options().read(true), rest.first().unwrap_or(to))?;
        convert(blob, &Expected::default(), &out, &cloister_layer::Limits::default(), &|_| ())?;
    } else {
        let layers = rest
            .iter()
            .map(|path| reader::Image::open(open(File::options().read(true), path)?, path))
            .collect::<Result<Vec<_>>>()?;
        let tree = Merged::new(layers)?;
        match format.as_str() {
            "erofs" => {
                erofs::write(&out, &tree, &erofs::Options::new([1; 16]))?;
            }
            "ext4" => {
                let size = ext4::Size::Slack(64 << 20);
                let options =
                    ext4::Options { size, uuid: [1; 16], label: Vec::new(), limits: Limits::default() };
                ext4::write(&out, &tree, &options)?;
            }
            "tar" => {
                tar::write(&out, &tree, Limits::default())?;
            }
            other => return Err(Error::Invalid(format!("{other}: not erofs, ext4, tar or scratch"))),
        }
    }
    let elapsed = start.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    println!(
        "{format}: {:.1} ms, {}",
        elapsed.as_secs_f64() * 1e3,
        peak.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    Ok(())
}
