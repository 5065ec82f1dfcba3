//! One look at all builds: what each means here, done and told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cloister_crds::{NodeImage, NodeState};

use super::build::Build;
use super::decide::{Decision, decide, is_orphan};
use super::memory::Work;
use super::seen::{Builds, Labels};
use super::{Done, PERIOD, Placement, entry, peers};
use crate::containerd::images::Named;
use crate::error::Result;
use crate::import::Request;
use crate::import::check::is_referenced;
use crate::import::record::Record;

/// Images that are brought here at one time.
const PARALLEL: usize = 2;
/// How long one write of an entry may take.
const WRITE: Duration = Duration::from_secs(15);

/// What is here.
struct Here {
    records: BTreeMap<String, Record>,
    references: Vec<Named>,
}

impl Placement {
    /// Looks at every build, and at what is here of builds that are gone.
    pub(super) async fn round(&mut self, builds: &Builds, labels: &Labels) -> Result<()> {
        let records = self.importer.records().await?;
        let records = records.into_iter().map(|record| (record.build.clone(), record)).collect();
        let here = Here { records, references: self.importer.references().await? };
        self.memory.retain(|key, _| builds.contains_key(key));
        for record in here.records.values().filter(|record| is_orphan(record, builds)) {
            self.remove(record).await;
        }
        for (key, build) in builds {
            let record = here.records.get(key);
            let decision = decide(build, &self.here, labels, record);
            let entry = match decision {
                Decision::Leave => continue,
                Decision::Absent | Decision::Source => {
                    self.memory.entry(key.clone()).or_default().work = None;
                    if let (Decision::Absent, Some(record)) = (&decision, record)
                        && record.object.is_some()
                    {
                        self.remove(record).await;
                    }
                    None
                }
                Decision::Otherwise(request) => Some(self.bring(build, request, Means::Rename)),
                Decision::Missing(request) => Some(self.bring(build, request, Means::Fetch)),
                Decision::Present(request) => {
                    let Some(record) = record else { continue };
                    Some(self.present(build, request, record, &here).await)
                }
            };
            self.tell(build, entry).await;
        }
        Ok(())
    }

    /// Takes an image away that no build has here any more; what fails is tried again at the next look.
    async fn remove(&self, record: &Record) {
        let (build, digest) = (&record.build, &record.top.digest);
        match self.importer.remove(build).await {
            Ok(()) => tracing::info!(build, %digest, "image removed: no build has it here any more"),
            Err(error) => tracing::warn!(build, %digest, %error, "image not removed"),
        }
    }

    /// An image on record: whether all of it is here.
    async fn present(&mut self, build: &Build, request: Request, record: &Record, here: &Here) -> NodeImage {
        let now = Instant::now();
        let memory = self.memory.entry(build.key()).or_default();
        if memory.work.is_some() {
            return self.bring(build, request, Means::Fetch);
        }
        let fresh = memory.is_fresh(now, PERIOD);
        let complete = is_referenced(record, &here.references)
            && (fresh || self.importer.is_complete(record).await.is_ok_and(|complete| complete));
        if complete {
            if !fresh {
                memory.complete(now);
            }
            let objection = self.importer.objection().unwrap_or_default();
            return self.entry(NodeState::Ready, &request, &objection);
        }
        match memory.incomplete(now) {
            true => self.bring(build, request, Means::Fetch),
            false => {
                self.entry(NodeState::Importing, &request, "it was removed from the node and comes back")
            }
        }
    }

    /// Sees to it that an image is brought here; what there is to tell about that.
    fn bring(&mut self, build: &Build, request: Request, means: Means) -> NodeImage {
        let now = Instant::now();
        let memory = self.memory.entry(build.key()).or_default();
        if memory.work.as_ref().is_some_and(|work| work.request != request) {
            memory.work = None;
        }
        if memory.work.is_none() {
            if let Some(why) = memory.resting(&request, now).map(str::to_owned) {
                return self.entry(NodeState::Failed, &request, &why);
            }
            if self.work.len() >= PARALLEL {
                // A failure stays in sight until something better is known.
                return match memory.trouble(&request).map(str::to_owned) {
                    Some(why) => self.entry(NodeState::Failed, &request, &why),
                    None => self.entry(NodeState::Pending, &request, "waits for other images"),
                };
            }
            self.started += 1;
            let (number, wanted) = (self.started, request.clone());
            let (client, importer, port) = (self.client.clone(), self.importer.clone(), self.port);
            let from = build.peers(&self.here);
            let task = self.work.spawn(async move {
                let result = match means {
                    Means::Rename => importer.rename(&wanted).await.map_err(|error| error.to_string()),
                    Means::Fetch => peers::fetch(&client, &importer, port, &from, &wanted).await,
                };
                Done { number, request: wanted, result: result.map(drop) }
            });
            memory.work = Some(Work { request: request.clone(), number, task });
        }
        match (memory.trouble(&request).map(str::to_owned), means, &build.own) {
            (Some(why), ..) => self.entry(NodeState::Failed, &request, &why),
            // What pods run goes on to be here.
            (None, Means::Rename, Some(own)) => own.clone(),
            (None, ..) => self.entry(NodeState::Importing, &request, ""),
        }
    }

    fn entry(&self, state: NodeState, request: &Request, why: &str) -> NodeImage {
        entry::entry(&self.here, state, Some(request.digest.to_string()), request.pin, why)
    }

    /// Writes the entry where it says something new.
    async fn tell(&mut self, build: &Build, wanted: Option<NodeImage>) {
        let memory = self.memory.entry(build.key()).or_default();
        if build.deleting || !memory.is_news(wanted.as_ref(), build.own.as_ref(), Instant::now()) {
            return;
        }
        let before = memory.last().or(build.own.as_ref());
        let wanted = wanted.map(|entry| entry::timed(entry, before, jiff::Timestamp::now()));
        let write = entry::write(&self.client, &self.here, build, wanted.as_ref());
        let written = tokio::time::timeout(WRITE, write).await;
        let why = match written {
            Ok(Ok(())) => return memory.told(wanted, Instant::now()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(build = build.key(), why, "entry not written");
        memory.refused(Instant::now());
    }
}

/// How an image is brought here.
#[derive(Clone, Copy)]
enum Means {
    /// From another node.
    Fetch,
    /// It is here and gets other names.
    Rename,
}
