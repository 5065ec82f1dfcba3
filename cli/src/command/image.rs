//! `cloister image …`.

use anyhow::{Context, Result};
use cloister_image::source::archive::{self, Input, Request};
use cloister_image::source::registry;
use cloister_image::{Image, ImageRecord, Platform, Reference, Store, export, import};

use crate::args::image::{ExportArgs, ExportFormat, ImageCommand, ImportArgs, PruneArgs, RegistryArgs};
use crate::args::{Format, Global};
use crate::output;
use crate::paths::Root;
use crate::progress::Shown;

/// Runs one of the image commands.
pub fn run(global: &Global, command: ImageCommand) -> Result<()> {
    let store = Store::open(Root::find(global)?.path())?;
    match command {
        ImageCommand::Import(args) => import(global, &store, args),
        ImageCommand::Pull(args) => {
            let reference = args.reference.parse::<Reference>()?;
            let record = pull(&store, &reference, &args.registry)?;
            report(global, &record)
        }
        ImageCommand::Ls { all } => list(global, &store, all),
        ImageCommand::Inspect { name } => inspect(&store, &name),
        ImageCommand::Rm { names } => names.iter().try_for_each(|name| {
            let record = store.remove(name)?;
            output::print(&format!("{}\n", record.familiar_name()))
        }),
        ImageCommand::Tag { source, destination } => {
            store.tag(&source, &destination.parse()?)?;
            Ok(())
        }
        ImageCommand::Prune(args) => prune(global, &store, &args),
        ImageCommand::Export(args) => export(&store, &args),
    }
}

/// The image of this name in the store, or pulled when there is none.
pub fn local_or_pull(store: &Store, name: &str, registry: &RegistryArgs) -> Result<Image> {
    match store.open_image(name) {
        Err(cloister_image::Error::NoSuchImage(_)) => {}
        found => return Ok(found?),
    }
    let reference = name.parse::<Reference>()?;
    eprintln!("{} is not here; pulling it", reference.familiar());
    let record = pull(store, &reference, registry)
        .with_context(|| format!("no image named {name} here, and pulling it failed"))?;
    Ok(store.open_image(&record.manifest.to_string())?)
}

fn import(global: &Global, store: &Store, args: ImportArgs) -> Result<()> {
    let input = match args.input {
        Some(path) if path.as_os_str() != "-" => Input::Path(path),
        _ => Input::Stdin,
    };
    let request = Request {
        name: Some(args.name.parse()?),
        select: None,
        options: import::Options {
            platform: platform(args.platform.as_deref())?,
            threads: args.jobs,
            ..import::Options::default()
        },
    };
    for record in archive::import(store, input, &request, &Shown::new())? {
        report(global, &record)?;
    }
    Ok(())
}

fn platform(text: Option<&str>) -> Result<Option<Platform>> {
    Ok(text.map(str::parse).transpose()?)
}

/// What came in: its name, or all about it.
fn report(global: &Global, record: &ImageRecord) -> Result<()> {
    match global.output {
        Format::Json => output::json(record),
        Format::Table => output::print(&format!("{}\n", record.familiar_name())),
    }
}

fn list(global: &Global, store: &Store, all: bool) -> Result<()> {
    let mut records = store.list()?;
    records.retain(|record| all || !record.build.contains_key(cloister_builder::HIDDEN));
    output::list(global.output, &records, ["NAME", "IMAGE ID", "CREATED", "LAYERS", "SIZE"], |record| {
        [
            record.familiar_name(),
            record.config.hex().chars().take(12).collect(),
            record.created.map(output::ago).unwrap_or_else(|| "-".to_owned()),
            record.layers.len().to_string(),
            output::bytes(record.unpacked_size),
        ]
    })
}

fn inspect(store: &Store, name: &str) -> Result<()> {
    let image = store.open_image(name)?;
    output::json(&serde_json::json!({ "image": image.record, "config": image.config }))
}

fn prune(global: &Global, store: &Store, args: &PruneArgs) -> Result<()> {
    let report = store.prune(args.all, args.keep_size)?;
    if global.output == Format::Json {
        return output::json(&report);
    }
    let mut text: String = report.names.iter().map(|name| format!("removed {name}\n")).collect();
    text.push_str(&format!(
        "freed {} in {} files; {} remain\n",
        output::bytes(report.freed),
        report.files,
        output::bytes(report.remaining)
    ));
    output::print(&text)
}

/// Pulls an image, although it may be here.
pub fn pull(store: &Store, reference: &Reference, args: &RegistryArgs) -> Result<ImageRecord> {
    Ok(registry::pull(store, reference, None, &pull_options(args)?, &Shown::new())?)
}

/// How to reach registries.
pub fn pull_options(args: &RegistryArgs) -> Result<registry::PullOptions> {
    let mut mirrors = registry::Mirrors::default();
    args.mirrors.iter().try_for_each(|mirror| mirrors.add(mirror))?;
    Ok(registry::PullOptions {
        mirrors,
        plain_http: args.plain_http,
        ca_cert: args.ca_cert.clone(),
        authfile: args.authfile.clone(),
        import: import::Options {
            platform: platform(args.platform.as_deref())?,
            ..import::Options::default()
        },
        ..registry::PullOptions::default()
    })
}

fn export(store: &Store, args: &ExportArgs) -> Result<()> {
    let format = match args.format {
        ExportFormat::Erofs => export::Format::Erofs,
        ExportFormat::Ext4 => export::Format::Ext4,
        ExportFormat::Tar => export::Format::Tar,
        ExportFormat::OciArchive => export::Format::OciArchive,
        ExportFormat::DockerArchive => export::Format::DockerArchive,
    };
    let image = store.open_image(&args.name)?;
    export::export(store, &image, format, export::Output::from_arg(&args.out))?;
    Ok(())
}
