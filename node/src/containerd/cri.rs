//! What the CRI, and with it the kubelet, knows of an image.

use tonic::transport::Channel;

use super::failed;
use super::scope::Scope;
use crate::api::cri as api;
use crate::error::Result;

pub use api::Image;

impl Scope {
    /// The image of this name, as the kubelet would get it.
    pub async fn cri_image(&self, name: &str) -> Result<Option<Image>> {
        let channel: Channel = self.channel();
        let mut client = api::image_service_client::ImageServiceClient::new(channel);
        let image = Some(api::ImageSpec { image: name.to_owned() });
        let reply = client.image_status(self.request(api::ImageStatusRequest { image })?).await;
        let reply = reply.map_err(|status| failed(&format!("ask the CRI for image {name}"), &status))?;
        Ok(reply.into_inner().image)
    }
}
