//! containerd's leases (`services/leases/v1/leases.proto`): what they name is not collected.

use std::collections::HashMap;

use cloister_image::Digest;
use tonic::transport::Channel;

use super::failed;
use super::scope::{Scope, found, made};
use crate::api::leases::v1 as api;
use crate::error::Result;

pub use api::Lease;

impl Scope {
    fn leases(&self) -> api::leases_client::LeasesClient<Channel> {
        api::leases_client::LeasesClient::new(self.channel())
    }

    /// Makes a lease; whether it is new.
    pub async fn create_lease(&self, id: &str, labels: HashMap<String, String>) -> Result<bool> {
        let create = self.request(api::CreateRequest { id: id.to_owned(), labels })?;
        Ok(made(&format!("create lease {id}"), self.leases().create(create).await)?.is_some())
    }

    /// Adds a blob to a lease, and with it everything that its labels refer to.
    pub async fn keep(&self, lease: &str, blob: &Digest) -> Result<()> {
        let resource = api::Resource { id: blob.to_string(), r#type: "content".to_owned() };
        let add = api::AddResourceRequest { id: lease.to_owned(), resource: Some(resource) };
        let reply = self.leases().add_resource(self.request(add)?).await;
        made(&format!("keep blob {blob}"), reply).map(drop)
    }

    /// Whether nothing at all was added to a lease.
    pub async fn keeps_nothing(&self, lease: &str) -> Result<bool> {
        let list = self.request(api::ListResourcesRequest { id: lease.to_owned() })?;
        let reply = self.leases().list_resources(list).await;
        let reply = reply.map_err(|status| failed("list what a lease keeps", &status))?;
        Ok(reply.into_inner().resources.is_empty())
    }

    /// The leases that have this label.
    pub async fn leases_labelled(&self, label: &str) -> Result<Vec<Lease>> {
        let list = self.request(api::ListRequest { filters: vec![format!("labels.{label:?}")] })?;
        let reply = self.leases().list(list).await.map_err(|status| failed("list leases", &status))?;
        Ok(reply.into_inner().leases)
    }

    /// Ends a lease; with `sync`, what only it kept is gone when this returns.
    pub async fn delete_lease(&self, id: &str, sync: bool) -> Result<()> {
        let delete = self.request(api::DeleteRequest { id: id.to_owned(), sync })?;
        found(&format!("remove lease {id}"), self.leases().delete(delete).await).map(drop)
    }
}
