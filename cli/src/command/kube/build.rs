//! `build`: a folder goes to the cluster, an image comes of it.

mod attend;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cloister_crds::{BuildReason, ImageBuild};
use kube::ResourceExt;

use self::attend::{Attendance, Sent};
use super::client::Cluster;
use super::pack::{self, Packed};
use super::stand::{Stand, Wanted, stand};
use super::submit::{self, How};
use super::watch::{Seen, Watched};
use super::{name, object, secret};
use crate::args::kube::{KubeBuildArgs, KubeGlobal, ObjectFormat};
use crate::output;
use crate::signals::Signals;

/// What a failed build exits with, as `docker build` does.
const FAILED: u8 = 1;
/// How often a folder whose sending broke is sent again, to another attempt.
const RESENDS: u32 = 2;
/// Longest time without a change beyond what an attempt may take: the operator has given it up long before.
const SILENCE: Duration = Duration::from_secs(900);
/// How long a canceled build may take to end.
const CANCEL: Duration = Duration::from_secs(120);

/// Builds; returns what to exit with.
pub async fn run(global: &KubeGlobal, args: KubeBuildArgs) -> Result<u8> {
    let given = secret::read(&args)?;
    let first = args.tags.first().map(String::as_str).unwrap_or_default();
    let name = args.name.clone().map_or_else(|| name::of_image(first), Ok)?;
    let (folder, file) = (args.context.clone(), args.file.clone());
    let packed = tokio::task::spawn_blocking(move || pack::pack(&folder, file.as_deref())).await??;
    if args.dry_run {
        anyhow::ensure!(
            !given.any_here(),
            "--dry-run shows no values: name Secrets of the cluster by secret=NAME/KEY"
        );
        let build = object::object(&name, global.namespace.as_deref(), &args, &packed, given.there)?;
        return print(&build, args.output).map(|()| 0);
    }
    let cluster = Cluster::connect(global).await?;
    let build = object::object(&name, Some(&cluster.namespace), &args, &packed, given.there.clone())?;
    let mut signals = Signals::listen().context("cannot watch signals")?;
    say(&format!(
        "{}: {} files, {}, {}",
        args.context.display(),
        packed.archived.entries,
        output::bytes(packed.size),
        packed.digest
    ));
    let submitted = submit::submit(&cluster, build, &given, args.force_conflicts).await?;
    say(&format!("imagebuild/{name} {} in namespace {}", submitted.how.word(), cluster.namespace));
    let mut wanted =
        Wanted { generation: submitted.build.metadata.generation.unwrap_or_default(), rebuild: None };
    let mut build = submitted.build;
    // Another command has started this attempt, and sends the folder.
    let mut theirs = None;
    if submitted.how == How::Unchanged {
        match stand(&build, &wanted) {
            Stand::Runs { attempt, .. } => theirs = Some(attempt),
            Stand::Done if !args.no_cache => say("nothing has changed since it was built"),
            Stand::Done | Stand::Failed { .. } => {
                let (changed, value) = submit::rebuild(&cluster.builds(), &build).await?;
                (build, wanted.rebuild) = (changed, Some(value));
            }
            Stand::Waits(_) => {}
        }
    }
    let following = Following {
        cluster,
        name,
        wanted,
        packed: Arc::new(packed),
        detach: args.detach,
        theirs,
        resends: 0,
        said: String::new(),
    };
    following.run(build, &mut signals).await
}

/// A build that is followed to its end.
struct Following {
    cluster: Cluster,
    name: String,
    wanted: Wanted,
    packed: Arc<Packed>,
    detach: bool,
    theirs: Option<i64>,
    resends: u32,
    /// What was said last.
    said: String,
}

impl Following {
    async fn run(mut self, build: ImageBuild, signals: &mut Signals) -> Result<u8> {
        let timeout = Duration::from(build.spec.timeout) + SILENCE;
        let mut watched = Watched::new(self.cluster.builds(), build.clone());
        let mut attendance = Attendance::none();
        let mut newest = build;
        let mut changed = Instant::now();
        loop {
            let seen = tokio::select! {
                seen = watched.next() => Some(seen),
                sent = attendance.next() => match sent {
                    Sent::Folder if self.detach => {
                        say(&format!("follow it with: kubectl cloister logs -f {}", self.name));
                        return Ok(0);
                    }
                    Sent::Folder => None,
                    Sent::Cut(why) => {
                        say(&format!("the folder was not taken: {why}"));
                        None
                    }
                },
                number = signals.interrupted() => return self.cancel(number, &newest, watched, attendance, signals).await,
                () = tokio::time::sleep_until((changed + timeout).into()) => {
                    bail!("imagebuild {} has not changed for {} s; it goes on without this command", self.name, timeout.as_secs())
                }
            };
            match seen {
                Some(Seen::Build(build)) => (newest, changed) = (*build, Instant::now()),
                Some(Seen::Gone) => bail!("imagebuild {} was deleted", self.name),
                Some(Seen::Lost(why)) => {
                    bail!("imagebuild {} is out of sight: {why}; it goes on without this command", self.name)
                }
                None => {}
            }
            match stand(&newest, &self.wanted) {
                Stand::Waits(message) => self.say(message),
                Stand::Runs { attempt, pod, message } => {
                    self.say(message);
                    if !attendance.is_of(attempt) {
                        let file = (self.theirs != Some(attempt)).then(|| self.packed.clone());
                        attendance = Attendance::of(attempt, self.cluster.pods(), pod, file);
                    }
                }
                Stand::Done => {
                    attendance.finish().await;
                    return done(&newest).map(|()| 0);
                }
                Stand::Failed { reason, message } => {
                    let cut = attendance.finish().await;
                    if cut.is_some() && self.resends < RESENDS && is_of_source(&reason) {
                        self.resends += 1;
                        say(&format!("{reason}: {message}; sending the folder again"));
                        let (build, value) = submit::rebuild(&self.cluster.builds(), &newest).await?;
                        (newest, self.wanted.rebuild) = (build, Some(value));
                        continue;
                    }
                    eprintln!("cloister: {reason}: {message}");
                    return Ok(FAILED);
                }
            }
        }
    }

    /// Says what goes on, when it is something else than before.
    fn say(&mut self, message: String) {
        if self.said != message && !message.is_empty() {
            say(&message);
            self.said = message;
        }
    }

    /// Cancels the build; another signal leaves at once.
    async fn cancel(
        self,
        number: u8,
        build: &ImageBuild,
        mut watched: Watched,
        attendance: Attendance,
        signals: &mut Signals,
    ) -> Result<u8> {
        say("canceling the build; once more to leave at once");
        let ending = async {
            submit::cancel(&self.cluster.builds(), build).await?;
            let ended = async {
                while let Seen::Build(build) = watched.next().await {
                    let wanted =
                        Wanted { generation: build.metadata.generation.unwrap_or_default(), rebuild: None };
                    if build.spec.cancel
                        && matches!(stand(&build, &wanted), Stand::Done | Stand::Failed { .. })
                    {
                        break;
                    }
                }
            };
            match tokio::time::timeout(CANCEL, ended).await {
                Ok(()) => anyhow::Ok(()),
                Err(_) => bail!("imagebuild {} has not ended after {} s", self.name, CANCEL.as_secs()),
            }
        };
        tokio::select! {
            ended = ending => {
                ended?;
                drop(attendance);
                say(&format!("imagebuild/{} canceled", self.name));
            }
            _ = signals.interrupted() => say(&format!("imagebuild/{} is left to itself", self.name)),
        }
        Ok(number)
    }
}

/// Whether an attempt can have ended so because it did not get the whole folder.
fn is_of_source(reason: &str) -> bool {
    [BuildReason::SourceMismatch, BuildReason::SourceInvalid, BuildReason::SourceUnavailable]
        .iter()
        .any(|one| one.as_str() == reason)
}

/// Name and digest of the image, as a pod may name it.
fn done(build: &ImageBuild) -> Result<()> {
    let status = build.status.as_ref();
    let digest = status.and_then(|status| status.digest.as_deref()).unwrap_or_default();
    let image = status.and_then(|status| status.image.as_deref()).unwrap_or_default();
    say(&format!("imagebuild/{} is ready", build.name_any()));
    output::print(&format!("{image}@{digest}\n"))
}

fn print(build: &ImageBuild, format: ObjectFormat) -> Result<()> {
    match format {
        ObjectFormat::Json => output::json(build),
        ObjectFormat::Yaml => output::print(&serde_saphyr::to_string(build)?),
    }
}

/// One line on standard error, which may be closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "cloister: {line}");
}
