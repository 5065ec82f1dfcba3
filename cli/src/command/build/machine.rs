//! The machine of a build: its image, its folder, its parts.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cloister_builder::ImageSource;
use cloister_image::ImageRecord;
use cloister_image::source::registry::PullOptions;
use cloister_sandbox::{Kernel, MachineConfig, OVERHEAD, memory_for};
use cloister_vmm::Egress;
use jiff::Timestamp;

use crate::args::build::BuildArgs;
use crate::paths::{self, Root};
use crate::vm::record::{Defaults, process_start};
use crate::vm::{Folder, Record, Status, Vms};
use crate::{command, host, name};

/// Where packages put the builder image.
const INSTALLED: [&str; 2] = ["/usr/local/share/cloister/builder.tar", "/usr/share/cloister/builder.tar"];
/// How long a guest may take to boot; emulation on a busy machine is slow.
const BOOT: Duration = Duration::from_secs(60);
/// Names tried before a free one must have been found.
const ATTEMPTS: u32 = 20;

/// The builder image that was asked for, or the one of this machine.
pub fn builder_image(args: &BuildArgs) -> Result<ImageSource> {
    if let Some(asked) = &args.builder {
        let path = Path::new(asked);
        if path.exists() {
            return Ok(ImageSource::Archive(path.to_owned()));
        }
        let reference = asked.parse().with_context(|| format!("{asked} is neither a file nor an image"))?;
        let options: PullOptions = command::image::pull_options(&args.registry)?;
        return Ok(ImageSource::Registry(reference, Box::new(options)));
    }
    let built = paths::cache().map(|cache| cache.join("builder/default.tar"));
    match INSTALLED.iter().map(PathBuf::from).chain(built).find(|path| path.is_file()) {
        Some(path) => Ok(ImageSource::Archive(path)),
        None => bail!(
            "no builder image found: make one (`make builder`), or name a moby/buildkit image with --builder"
        ),
    }
}

/// The parts of the machine.
pub fn config(
    args: &BuildArgs,
    kernel: Kernel,
    egress: Option<Egress>,
    folder: &Path,
) -> Result<MachineConfig> {
    let memory_bytes = memory_for(args.memory, OVERHEAD);
    Ok(MachineConfig {
        host: host::find(false)?,
        folder: folder.to_owned(),
        kernel,
        memory_bytes,
        max_memory_bytes: memory_bytes,
        cpus: args.cpus,
        max_cpus: args.cpus,
        privileged: true,
        netns: None,
        egress,
        accel: args.accel,
        boot_deadline: BOOT,
    })
}

/// The machine's folder among those of all machines: listed by `ps` while it runs, swept by the next command should
/// this process be killed, and gone with this value.
pub struct Place {
    vms: Vms,
    folder: Folder,
    _lock: File,
}

impl Place {
    /// Takes a free name.
    pub fn reserve(root: &Root, image: &ImageRecord) -> Result<Self> {
        let vms = Vms::new(root.run());
        let me = std::process::id();
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let record = Record {
                name: format!("build-{}", name::generate(attempt)),
                image: image.familiar_name(),
                command: vec!["buildkitd".to_owned()],
                created: Timestamp::now(),
                started: None,
                finished: None,
                status: Status::Starting,
                pid: Some(me),
                pid_started: process_start(me),
                exit_code: None,
                reason: None,
                remove: true,
                dialer: None,
                defaults: Defaults::default(),
            };
            match vms.create(&record) {
                Ok((folder, lock)) => return Ok(Self { vms, folder, _lock: lock }),
                Err(error) if vms.find(&record.name).is_ok() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no free name")))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.vms.remove(&self.folder) {
            tracing::warn!("cannot tidy up: {error:#}");
        }
    }
}
