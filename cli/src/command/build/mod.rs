//! `cloister build`.
//!
//! This process owns the builder's microVM, as a supervisor owns that of a `run`: it holds the lock of the machine's folder, and
//! the machine dies with it.

mod bases;
pub(super) mod caches;
mod failure;
pub(super) mod inputs;
mod machine;
mod network;
mod parts;

use std::collections::BTreeMap;
use std::io::stderr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cloister_build::client::{self, Attestation, Layout, NoCache, Offer, Solve, Solved};
use cloister_build::context::Context;
use cloister_build::job::{self, Base, Delivery, Job};
use cloister_build::output::Output;
use cloister_build::progress::{self, Event, Style};
use cloister_builder::{self as builder, Builder, Settings, State};
use cloister_image::source::archive::{self, Input, Request};
use cloister_image::{ImageRecord, Reference, Store, import};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::inputs::{Destination, Inputs};
use self::parts::Parts;
use crate::args::build::{BuildArgs, Network, ProgressMode, Provenance};
use crate::args::{Format, Global};
use crate::paths::Root;
use crate::progress::Shown;
use crate::signals::Signals;
use crate::{disks, kernel, output};

/// What a failed build exits with, as `docker build` does.
const FAILED: u8 = 1;
/// Least memory of a build, in bytes: buildkitd alone needs a part of it.
const LEAST_MEMORY: u64 = 128 << 20;
/// Most bytes of a result.
const RESULT: u64 = 64 << 30;
/// What it is called until it is imported.
const RESULT_NAME: &str = "result";
/// How long buildkitd may take to listen; emulation on a busy machine is slow.
const READY: Duration = Duration::from_secs(60);
/// The argument with the time, in seconds since 1970, that everything in an image is said to be of.
const SOURCE_DATE: &str = "SOURCE_DATE_EPOCH";
/// Events of the progress that may wait to be shown.
const EVENTS: usize = 256;

/// Builds an image; returns what to exit with.
pub async fn run(global: &Global, args: BuildArgs) -> Result<u8> {
    if args.memory < LEAST_MEMORY {
        bail!("--memory is below the least of {}", output::bytes(LEAST_MEMORY));
    }
    let root = Root::find(global)?;
    let inputs = Inputs::read(&args)?;
    let wanted = caches::Wanted::parse(&args)?;
    let (egress, names) = network::find(&args).await?;
    let kernel = kernel::choose(&root, args.kernel.as_deref())?;
    let store = Store::open(root.path())?;
    let mut parts = Parts::default();
    let begun = Instant::now();
    let source = machine::builder_image(&args)?;
    let image = builder::load(&store, &source, &Shown::new())?;
    let bases = bases::open(&store, &inputs, &args)?;
    let disk = disks::of(&root, args.cache_size)?.take(&args.cache_key)?;
    let (disk_bytes, state) = (disk.bytes(), State::Cache(disk));
    parts.add("images", begun.elapsed());

    let mut signals = Signals::listen().context("cannot watch signals")?;
    let place = machine::Place::reserve(&root, &image.record)?;
    let (caches, written) = wanted.open(place.path(), &args.registry)?;
    let config = machine::config(&args, kernel, egress, place.path())?;
    let settings = Settings { machine: config, memory_bytes: args.memory, state, names, deadline: READY };
    let started = tokio::select! {
        started = Builder::start(settings, image) => started,
        code = signals.interrupted() => {
            eprintln!("cloister: build canceled");
            return Ok(code);
        }
    };
    let builder = started?;
    let timings = builder.timings();
    parts.add("boot", timings.boot);
    parts.add("ready", timings.start + timings.ready);

    let cancel = CancellationToken::new();
    let built = {
        let building =
            build(&builder, inputs, (bases, caches), &args, place.path(), cancel.clone(), &mut parts);
        tokio::pin!(building);
        let mut code = None;
        loop {
            tokio::select! {
                built = &mut building => break built.map_err(|error| (code, error)),
                number = signals.interrupted(), if code.is_none() => {
                    code = Some(number);
                    cancel.cancel();
                }
            }
        }
    };
    let finished = match built {
        Ok(result) => {
            let begun = Instant::now();
            // The machine ends while its result is checked and converted.
            let importing = import_result(store, result, &args);
            let (records, ()) = tokio::join!(importing, builder.stop());
            let records = records?;
            parts.add("import", begun.elapsed());
            let registry = args.registry.clone();
            let publishing = tokio::task::spawn_blocking(move || written.publish(&registry));
            tokio::select! {
                done = publishing => done?,
                code = signals.interrupted() => {
                    drop(place);
                    // The runtime would wait for a registry; a cache gets its name last.
                    std::process::exit(code.into());
                }
            }
            for record in &records {
                report(global, record)?;
            }
            0
        }
        Err((Some(code), _)) => {
            builder.stop().await;
            eprintln!("cloister: build canceled");
            code
        }
        Err((None, error)) => {
            let told = failure::tell(&builder, &error, disk_bytes, args.network, begun).await;
            builder.stop().await;
            eprintln!("{told}");
            FAILED
        }
    };
    if args.timings || args.progress == ProgressMode::Plain {
        parts.show(global.output);
    }
    drop(place);
    Ok(finished)
}

/// What came of a build.
struct Built {
    solved: Solved,
    /// The folder to import from, when the image goes into the store.
    result: Option<(PathBuf, Layout)>,
}

async fn build(
    builder: &Builder,
    inputs: Inputs,
    (bases, caches): (Vec<Base>, job::Caches),
    args: &BuildArgs,
    folder: &Path,
    cancel: CancellationToken,
    parts: &mut Parts,
) -> Result<Built, client::Error> {
    let failed = |why: String| client::Error::Answer(why);
    let solve = Solve {
        target: args.target.clone(),
        args: inputs.args.clone(),
        labels: inputs.labels.clone(),
        platforms: args.registry.platform.clone().into_iter().collect(),
        network: match args.network {
            Network::None => client::Network::None,
            Network::Egress => client::Network::Sandbox,
        },
        no_cache: if args.no_cache { NoCache::All } else { NoCache::Off },
        attestations: match args.provenance {
            Provenance::None => Vec::new(),
            wanted => vec![Attestation::Provenance { max: wanted == Provenance::Max }],
        },
        deadline: args.timeout.map(Duration::from_secs),
        ..Solve::default()
    };
    let key = args.context.canonicalize().unwrap_or_else(|_| args.context.clone());
    let offers: Vec<_> = bases.iter().map(|base| base.offer.clone()).collect();
    let (delivery, result) =
        destination(&inputs.out, folder, offers).map_err(|error| failed(error.to_string()))?;
    let exporter = match &inputs.out {
        // Nothing is gained by compressing, in the guest, what is unpacked here at once.
        Destination::Store => client::Output::oci_store().with("compression", "uncompressed"),
        Destination::Oci(_) => client::Output::oci(),
        Destination::Docker(_) => client::Output::docker(),
        Destination::Tar(_) => client::Output::tar(),
        Destination::Local(_) => client::Output::local(),
    };
    // Who sets a source date wants the same image again: that takes the files' times too.
    let image = !matches!(inputs.out, Destination::Tar(_) | Destination::Local(_));
    let dated = image && inputs.args.contains_key(SOURCE_DATE);
    let exporter = if dated { exporter.rewrite_timestamps() } else { exporter };
    let names: Vec<&str> = args.tags.iter().map(String::as_str).collect();
    let exporter = if names.is_empty() { exporter } else { exporter.named(&names.join(",")) };
    let job = Job {
        solve,
        context: Context::folder(&args.context).map_err(|error| failed(error.to_string()))?,
        dockerfile: inputs.dockerfile,
        shared_key: key.display().to_string(),
        secrets: inputs.secrets,
        agents: inputs.agents,
        registries: None,
        bases,
        caches,
        exporter,
        delivery,
    };

    let (events, shown) = mpsc::channel(EVENTS);
    let showing = std::thread::spawn({
        let style = match args.progress {
            ProgressMode::Auto => Style::Auto,
            ProgressMode::Plain => Style::Plain,
            ProgressMode::Json => Style::Json,
        };
        move || show(style, shown)
    });
    let built = job.run(builder.connect(), builder.ended(), events, cancel).await;
    // Ends with the channel, whose other side is gone by now.
    let _ = showing.join();
    let built = built?;
    parts.add("solve", built.solve);
    parts.add("export", built.export);
    Ok(Built { solved: built.solved, result })
}

fn show(style: Style, mut events: mpsc::Receiver<Event>) {
    let mut shown = progress::show(style, stderr());
    while let Some(event) = events.blocking_recv() {
        // A terminal that is gone shows nothing; the build goes on.
        let _ = shown.show(&event);
    }
    let _ = shown.finish();
}

/// Where the result goes: to a folder in the machine's when it is to be imported, without what was offered.
fn destination(
    out: &Destination,
    folder: &Path,
    offers: Vec<Offer>,
) -> Result<(Delivery, Option<(PathBuf, Layout)>)> {
    let limits = cloister_build::output::Limits { bytes: RESULT, entries: 1 << 21 };
    Ok(match out {
        Destination::Store => {
            let path = folder.join("result");
            let layout = Layout::open(&path, RESULT)?.beside(offers);
            (Delivery::Blobs(layout.clone()), Some((path, layout)))
        }
        Destination::Local(path) => {
            let (output, receipt) = Output::folder(path, limits)?;
            (Delivery::Output(output, receipt), None)
        }
        Destination::Oci(path) | Destination::Docker(path) | Destination::Tar(path) => {
            let (output, receipt) = match path {
                Some(path) => Output::file(path, RESULT)?,
                None => Output::stream(tokio::io::stdout(), RESULT),
            };
            (Delivery::Output(output, receipt), None)
        }
    })
}

/// Brings the result into the store under all its names.
async fn import_result(store: Store, built: Built, args: &BuildArgs) -> Result<Vec<ImageRecord>> {
    let Some((folder, layout)) = built.result else { return Ok(Vec::new()) };
    layout.name(RESULT_NAME, &built.solved.descriptor.context("the builder has made no image")?)?;
    let names = args.tags.iter().map(|tag| Ok(tag.parse()?)).collect::<Result<Vec<Reference>>>()?;
    let mut facts = BTreeMap::from([("builder".to_owned(), "buildkit".to_owned())]);
    facts.insert("context".to_owned(), args.context.display().to_string());
    let digest = built.solved.digest;
    let work = move || {
        let Some((first, more)) = names.split_first() else { return Ok(Vec::new()) };
        let options = import::Options { build: facts, ..import::Options::default() };
        let request = Request { name: Some(first.clone()), select: None, options };
        let mut records = archive::import(&store, Input::Path(folder), &request, &cloister_image::Silent)?;
        if let (Some(said), Some(record)) = (digest, records.first())
            && said != record.manifest
            && Some(said) != record.index
        {
            store.remove(&record.name)?;
            bail!("the builder said that the image is {said}, and sent {}", record.manifest);
        }
        for name in more {
            records.push(store.tag(&first.to_string(), name)?);
        }
        Ok(records)
    };
    tokio::task::spawn_blocking(work).await?
}

fn report(global: &Global, record: &ImageRecord) -> Result<()> {
    match global.output {
        Format::Json => output::json(record),
        Format::Table => output::print(&format!("{}\n", record.familiar_name())),
    }
}
