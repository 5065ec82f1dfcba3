//! One build from request to result: the call, its progress beside it, and everything that may end both.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{SolveResponse, StatusRequest, StatusResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::connection::BuildKit;
use super::error::{Error, Result};
use super::failure::failure;
use super::id::random_id;
use super::options::{Network, Solve};
use super::session::Session;
use super::solved::Solved;
use crate::network;
use crate::progress::{Event, Tracker};

/// How long progress may still come after the result; it ends by itself, as a rule at once.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// What is said once, at the first line of a step that misses it: many programs try again for long before they fail.
const NO_NETWORK: &str = "steps of this build have no network";

impl BuildKit {
    /// Builds, with `services` at the build's disposal. What happens meanwhile goes to `events`; a slow reader slows the
    /// reports, not the build.
    ///
    /// The build ends in buildkitd too when `cancel` is cancelled, the deadline passes or the returned future is dropped.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_retryable`] says whether trying again makes sense.
    pub async fn solve(
        &self,
        request: &Solve,
        services: Session,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> Result<Solved> {
        let patience = request.deadline.unwrap_or(Duration::MAX);
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Canceled),
            solved = self.run(request, services, events) => solved,
            () = tokio::time::sleep(patience) => Err(Error::Timeout(patience)),
        }
    }

    async fn run(&self, request: &Solve, services: Session, events: mpsc::Sender<Event>) -> Result<Solved> {
        let id = random_id()?;
        let session = services.open(self).await?;
        let mut control = self.control.clone();
        let watched = request.network == Network::None;
        let request = request.request(&id, &session.id)?;
        let answer = async {
            let call = control.solve(request);
            tokio::select! {
                biased;
                answer = call => answer.map(tonic::Response::into_inner),
                reason = self.link.lost() => Err(Status::unavailable(reason)),
                reason = self.link.silent() => Err(Status::unavailable(reason)),
            }
        };
        let mut progress = Progress { tracker: Tracker::default(), events, watched };
        let answer = self.follow(&id, answer, &mut progress).await;
        progress.finish().await;
        match answer {
            Ok(answer) => Solved::new(&answer.exporter_response),
            Err(status) if self.link.is_lost() => {
                tracing::debug!(%status, "build ended with the connection");
                Err(Error::Lost(self.link.reason()))
            }
            Err(status) if status.code() == Code::Unavailable => Err(Error::refused("solve", &status)),
            Err(status) => Err(failure(&status, &progress.tracker)),
        }
    }

    /// Waits for the answer and passes on what is reported until then, and shortly after.
    async fn follow(
        &self,
        id: &str,
        answer: impl Future<Output = Result<SolveResponse, Status>>,
        progress: &mut Progress,
    ) -> Result<SolveResponse, Status> {
        let reports = async {
            let mut control = self.control.clone();
            let mut stream = control.status(StatusRequest { r#ref: id.to_owned() }).await?.into_inner();
            while let Some(report) = stream.message().await? {
                progress.tell(report).await;
            }
            Ok::<(), Status>(())
        };
        tokio::pin!(answer, reports);
        let mut reporting = true;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                ended = &mut reports, if reporting => {
                    reporting = false;
                    if let Err(status) = ended {
                        tracing::debug!(%status, "no more progress");
                    }
                }
            }
        };
        if reporting {
            let last = Instant::now() + LAST_WORDS;
            // Without its last words a build is as good or as bad.
            let _ = tokio::time::timeout_at(last, reports).await;
        }
        answer
    }
}

struct Progress {
    tracker: Tracker,
    events: mpsc::Sender<Event>,
    /// Whether a step that tries the network is told of.
    watched: bool,
}

impl Progress {
    async fn tell(&mut self, report: StatusResponse) {
        for event in self.tracker.update(report) {
            let hint = self.hint(&event);
            for event in [Some(event), hint].into_iter().flatten() {
                // Nobody has to listen.
                let _ = self.events.send(event).await;
            }
        }
    }

    fn hint(&mut self, event: &Event) -> Option<Event> {
        let Event::Log { step, line, .. } = event else { return None };
        let tried = self.watched && network::tried(line);
        self.watched &= !tried;
        tried.then(|| Event::Note { step: Some(*step), text: NO_NETWORK.to_owned() })
    }

    async fn finish(&mut self) {
        for event in self.tracker.finish() {
            let sent = tokio::time::timeout(LAST_WORDS, self.events.send(event)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }
}
