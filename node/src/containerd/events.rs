//! containerd's events (`services/events/v1/events.proto`).

use super::scope::Scope;
use super::{CRI, STREAM, failed};
use crate::api::events::v1 as api;
use crate::error::Result;

impl Scope {
    /// Waits until an image reference is removed or changed. containerd answers with the first event, not before.
    pub async fn image_event(&self) -> Result<()> {
        let topics = ["/images/delete", "/images/update"];
        let filters = topics.map(|topic| format!("namespace=={CRI:?},topic=={topic:?}")).to_vec();
        let mut subscribe = self.request(api::SubscribeRequest { filters })?;
        subscribe.set_timeout(STREAM);
        let mut client = api::events_client::EventsClient::new(self.channel());
        let event = async { client.subscribe(subscribe).await?.into_inner().message().await };
        event.await.map(drop).map_err(|status| failed("wait for events", &status))
    }
}
