//! containerd's image references (`services/images/v1/images.proto`).

use std::collections::HashMap;

use cloister_image::BlobRef;
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::failed;
use super::scope::{Scope, found, made};
use crate::api::images::v1 as api;
use crate::api::types::Descriptor;
use crate::error::Result;

/// A name, and the image that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name, canonical or not.
    pub name: String,
    /// Digest of its index or manifest, as containerd has it.
    pub digest: String,
    /// The reference's own labels.
    pub labels: HashMap<String, String>,
}

impl Scope {
    fn images(&self) -> api::images_client::ImagesClient<Channel> {
        api::images_client::ImagesClient::new(self.channel())
    }

    /// What a name stands for.
    pub async fn image(&self, name: &str) -> Result<Option<Named>> {
        let get = api::GetImageRequest { name: name.to_owned() };
        let reply = self.images().get(self.request(get)?).await;
        Ok(found("look up an image", reply)?.and_then(|reply| reply.into_inner().image).map(named))
    }

    /// The references with this label of this value.
    pub async fn images_labelled(&self, label: &str, value: &str) -> Result<Vec<Named>> {
        self.list_images(format!("labels.{label:?}=={value:?}")).await
    }

    /// The references with this label, whatever its value.
    pub async fn images_with(&self, label: &str) -> Result<Vec<Named>> {
        self.list_images(format!("labels.{label:?}")).await
    }

    /// The references that stand for an image.
    pub async fn images_of(&self, digest: &str) -> Result<Vec<Named>> {
        self.list_images(format!("target.digest=={digest:?}")).await
    }

    async fn list_images(&self, filter: String) -> Result<Vec<Named>> {
        let filters = vec![filter];
        let list = self.request(api::ListImagesRequest { filters })?;
        let reply = self.images().list(list).await.map_err(|status| failed("list images", &status))?;
        Ok(reply.into_inner().images.into_iter().map(named).collect())
    }

    /// Makes a reference; whether it is new.
    pub async fn create_image(
        &self,
        name: &str,
        target: &BlobRef,
        labels: HashMap<String, String>,
    ) -> Result<bool> {
        let create =
            api::CreateImageRequest { image: Some(image(name, target, labels)), source_date_epoch: None };
        let reply = self.images().create(self.request(create)?).await;
        Ok(made(&format!("create image {name}"), reply)?.is_some())
    }

    /// Changes what a reference stands for, and those of its labels that are named.
    pub async fn update_image(
        &self,
        name: &str,
        target: &BlobRef,
        labels: HashMap<String, String>,
    ) -> Result<()> {
        let mut paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        paths.push("target".to_owned());
        let update = api::UpdateImageRequest {
            image: Some(image(name, target, labels)),
            update_mask: Some(FieldMask { paths }),
            source_date_epoch: None,
        };
        let reply = self.images().update(self.request(update)?).await;
        reply.map(drop).map_err(|status| failed(&format!("update image {name}"), &status))
    }

    /// Removes a reference; with `sync`, what nothing else needs goes with it.
    pub async fn delete_image(&self, name: &str, sync: bool) -> Result<()> {
        let delete = api::DeleteImageRequest { name: name.to_owned(), sync, target: None };
        let reply = self.images().delete(self.request(delete)?).await;
        found(&format!("remove image {name}"), reply).map(drop)
    }
}

fn image(name: &str, target: &BlobRef, labels: HashMap<String, String>) -> api::Image {
    let target = Some(descriptor(target));
    api::Image { name: name.to_owned(), target, labels, ..api::Image::default() }
}

/// A blob as containerd's API names it.
pub fn descriptor(blob: &BlobRef) -> Descriptor {
    Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.to_string(),
        size: blob.size.cast_signed(),
        annotations: HashMap::new(),
    }
}

fn named(mut image: api::Image) -> Named {
    let digest = image.target.map(|target| target.digest).unwrap_or_default();
    // An empty label is how one is taken away.
    image.labels.retain(|_, value| !value.is_empty());
    Named { name: image.name, digest, labels: image.labels }
}
