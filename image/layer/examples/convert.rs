//! Converts one layer blob and prints how long it took: `convert BLOB OUT [--fsync] [DIFF-ID]`.

use std::fs::{self, File};
use std::time::Instant;

use cloister_layer::{Error, Expected, Limits, convert};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [blob, out, rest @ ..] = &args[..] else {
        return Err("usage: convert BLOB OUT [--fsync] [DIFF-ID]".into());
    };
    let diff_id = rest.iter().find(|arg| !arg.starts_with("--")).map(|arg| arg.parse()).transpose()?;
    let expected = Expected { diff_id, ..Expected::default() };
    let started = Instant::now();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(out)?;
    let result = convert(File::open(blob)?, &expected, &file, &Limits::default(), &|_| {});
    let done = match result {
        Ok(done) => done,
        Err(error) => {
            return fs::remove_file(out)
                .map_err(Error::io("removing the output"))
                .and(Err(error))
                .map_err(Into::into);
        }
    };
    let took = started.elapsed();
    println!("{done:#?}");
    println!(
        "{:.3} s, {:.0} MB/s of tar",
        took.as_secs_f64(),
        done.tar_size as f64 / took.as_secs_f64() / 1e6
    );
    if rest.iter().any(|arg| arg == "--fsync") {
        let started = Instant::now();
        file.sync_all()?;
        println!("fsync {:.3} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}
