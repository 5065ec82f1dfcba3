//! `GET /metrics`, over TCP or a unix socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use cloister_pages::Pages;
use tokio::net::TcpListener;

use super::Page;
use crate::error::{Error, Result};
use crate::listen;

/// Where the page is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `IP:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err("the path after unix: must be absolute".to_owned()),
            None => text.parse().map(Self::Tcp).map_err(|_| "not IP:PORT and not unix:PATH".to_owned()),
        }
    }
}

/// Serves until dropped.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve<P: Pages>(address: &Address, page: Arc<P>) -> Result<()> {
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| Error::Invalid(format!("cannot listen on {address}: {error}")))?;
            cloister_pages::serve_tcp(listener, page).await;
        }
        Address::Unix(path) => cloister_pages::serve_unix(listen::unix(path)?, page).await,
    }
    Ok(())
}

impl Pages for Page {
    async fn page(&self, path: &str) -> Option<cloister_pages::Page> {
        let page = match path {
            "/metrics" => self.render().await,
            _ => return None,
        };
        Some(match page {
            Ok(body) => cloister_pages::Page::ok(body),
            Err(error) => cloister_pages::Page::failed(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_tcp_or_an_absolute_path() {
        assert_eq!("127.0.0.1:9".parse(), Ok(Address::Tcp(([127, 0, 0, 1], 9).into())));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        assert!("unix:x".parse::<Address>().is_err());
        assert!("localhost".parse::<Address>().is_err());
    }
}
