//! Credentials of registries, for builds that pull or push by themselves.
//!
//! Only registries that the caller named are answered, whatever the configuration holds: a build must not be able to
//! collect credentials by naming registries. For tokens buildkitd is told that we make none, so it asks for credentials.

use std::collections::BTreeSet;
use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use cloister_image::source::registry::{Credentials, DockerConfig};
use tonic::{Request, Response, Status};

/// Docker Hub by the name of its server, as buildkitd asks for it.
const HUB_SERVER: &str = "registry-1.docker.io";
const HUB: &str = "docker.io";

/// Which registries a build may get credentials for, and where those are.
#[derive(Debug, Clone)]
pub struct Registries {
    config: Arc<DockerConfig>,
    allowed: BTreeSet<String>,
}

impl Registries {
    /// The credentials of `config` for these registries (`host[:port]`), and no other.
    pub fn new<T: Into<String>>(config: DockerConfig, allowed: impl IntoIterator<Item = T>) -> Self {
        Self { config: Arc::new(config), allowed: allowed.into_iter().map(Into::into).collect() }
    }

    fn allowed<'a>(&self, host: &'a str) -> Option<&'a str> {
        let registry = if host == HUB_SERVER { HUB } else { host };
        self.allowed.contains(registry).then_some(registry)
    }
}

#[tonic::async_trait]
impl Auth for Registries {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let Some(registry) = self.allowed(&host) else {
            // Anonymous, as docker answers for what it has nothing for.
            return Ok(Response::new(CredentialsResponse::default()));
        };
        let (config, registry) = (self.config.clone(), registry.to_owned());
        let found = tokio::task::spawn_blocking(move || config.get(&registry, ""))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(match found {
            None => CredentialsResponse::default(),
            Some(Credentials::Password { user, password }) => {
                CredentialsResponse { username: user, secret: password }
            }
            Some(Credentials::IdentityToken(token)) => {
                CredentialsResponse { username: String::new(), secret: token }
            }
            Some(Credentials::RegistryToken(_)) => {
                return Err(Status::unavailable(format!("only a bearer token is known for {host}")));
            }
        }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(no_tokens())
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(no_tokens())
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(no_tokens())
    }
}

/// The code that makes buildkitd ask for credentials.
fn no_tokens() -> Status {
    Status::unimplemented("tokens are not made here")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(registries: &Registries, host: &str) -> (String, String) {
        let request = Request::new(CredentialsRequest { host: host.to_owned() });
        let answer = registries.credentials(request).await.unwrap().into_inner();
        (answer.username, answer.secret)
    }

    #[tokio::test]
    async fn credentials_are_given_for_named_registries_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = r#"{"auths":{"reg:5000":{"auth":"dTpw"},"other:5000":{"auth":"dTpw"},
            "https://index.docker.io/v1/":{"auth":"aHViOmE="}}}"#;
        std::fs::write(file.path(), json).unwrap();
        let config = DockerConfig::load(Some(file.path())).unwrap();
        let registries = Registries::new(config, ["reg:5000", "docker.io"]);
        assert_eq!(ask(&registries, "reg:5000").await, ("u".to_owned(), "p".to_owned()));
        assert_eq!(ask(&registries, "registry-1.docker.io").await, ("hub".to_owned(), "a".to_owned()));
        assert_eq!(ask(&registries, "other:5000").await, (String::new(), String::new()));
    }
}
