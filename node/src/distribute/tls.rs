//! Who is a node: whoever has a certificate that the nodes' own authority signed, for the name `cloister-node`.
//!
//! A folder as a Secret of type `kubernetes.io/tls` mounts it, with `tls.crt`, `tls.key` and `ca.crt`; the authority
//! signs nothing else. Read again for each connection, so that a renewed certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::error::{Error, Result};

/// The name that certificates of nodes have.
const NAME: &str = "cloister-node";

/// The folder.
#[derive(Debug, Clone)]
pub struct Tls(PathBuf);

struct Files {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Tls {
    /// Uses the certificates in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// For who accepts connections: only other nodes get further than the handshake.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let Files { chain, key, roots, provider } = self.read()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        let verifier = verifier.map_err(|error| self.wrong(&error))?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| self.wrong(&error))?.with_client_cert_verifier(verifier);
        builder.with_single_cert(chain, key).map(Arc::new).map_err(|error| self.wrong(&error))
    }

    /// For who connects.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let Files { chain, key, roots, provider } = self.read()?;
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| self.wrong(&error))?.with_root_certificates(roots);
        builder.with_client_auth_cert(chain, key).map(Arc::new).map_err(|error| self.wrong(&error))
    }

    fn read(&self) -> Result<Files> {
        let fail = |path: &Path, error: &dyn std::fmt::Display| {
            Error::Invalid(format!("certificate {}: {error}", path.display()))
        };
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
            let path = self.0.join(name);
            let all = CertificateDer::pem_file_iter(&path).map_err(|error| fail(&path, &error))?;
            all.collect::<Result<_, _>>().map_err(|error| fail(&path, &error))
        };
        let key = self.0.join("tls.key");
        let mut roots = RootCertStore::empty();
        for root in certificates("ca.crt")? {
            roots.add(root).map_err(|error| self.wrong(&error))?;
        }
        Ok(Files {
            chain: certificates("tls.crt")?,
            key: PrivateKeyDer::from_pem_file(&key).map_err(|error| fail(&key, &error))?,
            roots: Arc::new(roots),
            provider: Arc::new(ring::default_provider()),
        })
    }

    fn wrong(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Invalid(format!("certificates in {}: {error}", self.0.display()))
    }
}

/// The name that a node expects of another.
pub fn name() -> ServerName<'static> {
    // Not an error that can happen: the name is a constant.
    ServerName::try_from(NAME).unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()))
}
