//! Work that outlasts the call that asked for it.

use tokio::task::JoinHandle;
use tracing::Instrument;

/// Begins work that goes on when nobody waits for it any more.
pub fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(work.in_current_span())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn work_goes_on_when_its_caller_has_given_up() {
        let (done, told) = oneshot::channel();
        let work = to_its_end(async move {
            sleep(Duration::from_millis(50)).await;
            done.send("done")
        });
        assert!(timeout(Duration::from_millis(1), work).await.is_err());
        assert_eq!(told.await, Ok("done"));
    }
}
