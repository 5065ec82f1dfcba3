//! Secrets of a build: `RUN --mount=type=secret,id=…`. They are sent when a step asks, and are in nobody's log.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets as Service;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use tonic::{Request, Response, Status};

use crate::client::error::{Error, Result, reason};

/// Longest secret, in bytes: BuildKit's own limit.
pub const MAX_SECRET: u64 = 500 << 10;

/// What a secret is. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Secret {
    /// These bytes.
    ///
    /// # Errors
    /// When there are more than [`MAX_SECRET`].
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.len() as u64 > MAX_SECRET {
            return Err(Error::invalid("secret", format!("longer than {MAX_SECRET} bytes")));
        }
        Ok(Self(bytes))
    }

    /// What a file holds now.
    pub fn file(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_SECRET + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::io(format!("read the secret {}", path.display()), error))?;
        Self::bytes(bytes)
    }

    /// The value of an environment variable.
    pub fn env(name: &str) -> Result<Self> {
        let value = std::env::var_os(name).ok_or_else(|| {
            Error::io(format!("read the secret in ${name}"), io::Error::from(io::ErrorKind::NotFound))
        })?;
        Self::bytes(std::os::unix::ffi::OsStringExt::into_vec(value))
    }
}

/// The secrets of one build by id.
#[derive(Debug, Clone, Default)]
pub struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    /// Adds one, in place of one with the same id.
    #[must_use]
    pub fn with(mut self, id: impl Into<String>, secret: Secret) -> Self {
        self.0.insert(id.into(), secret);
        self
    }
}

#[tonic::async_trait]
impl Service for Secrets {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = &request.get_ref().id;
        let secret =
            self.0.get(id).ok_or_else(|| Status::not_found(format!("secret {}: not found", reason(id))))?;
        Ok(Response::new(GetSecretResponse { data: secret.0.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    async fn ask(secrets: &Secrets, id: &str) -> Result<Vec<u8>, Status> {
        let request = GetSecretRequest { id: id.to_owned(), ..Default::default() };
        secrets.get_secret(Request::new(request)).await.map(|answer| answer.into_inner().data)
    }

    #[tokio::test]
    async fn only_what_was_offered_is_given() {
        let secrets = Secrets::default().with("token", Secret::bytes("hunter2").unwrap());
        assert_eq!(ask(&secrets, "token").await.unwrap(), b"hunter2");
        assert_eq!(ask(&secrets, "other").await.unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_secret_is_bounded_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'x'; 500 << 10]).unwrap();
        let secret = Secret::file(file.path()).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(512000 bytes)");
        std::fs::write(file.path(), vec![b'x'; (500 << 10) + 1]).unwrap();
        assert!(Secret::file(file.path()).unwrap_err().to_string().contains("longer than 512000"));
        assert!(Secret::env("CLOISTER_NO_SUCH_VARIABLE").is_err());
        assert!(
            !format!("{:?}", Secrets::default().with("a", Secret::bytes("hunter2").unwrap()))
                .contains("hunter2")
        );
    }
}
