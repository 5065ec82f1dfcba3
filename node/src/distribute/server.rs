//! Serves the images of builds to other nodes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloister_image::Digest;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_RANGES, CONTENT_RANGE, RANGE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::Descriptor;
use super::body::Answer;
use super::shared::Shared;
use super::tls::Tls;
use crate::containerd::Containerd;
use crate::error::{Error, Result};

/// Connections of nodes served at a time; further ones wait. Each holds a few pieces of 1 MiB.
const PARALLEL: usize = 8;
/// Connections at a time, those included that have not shown a certificate.
const OPEN: usize = 128;
/// How long a handshake, and the head of a request, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may take altogether; who has not got everything asks for the rest.
const CONNECTION: Duration = Duration::from_secs(3600);
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until dropped.
///
/// # Errors
/// When the address cannot be listened on, or the certificates cannot be used.
pub async fn serve(address: SocketAddr, tls: Tls, containerd: Containerd) -> Result<()> {
    tls.server()?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Error::Invalid(format!("cannot listen on {address}: {error}")))?;
    tracing::info!(%address, "images of builds for other nodes");
    let shared = Arc::new(Shared::new(containerd));
    let (doors, places) = (Arc::new(Semaphore::new(OPEN)), Arc::new(Semaphore::new(PARALLEL)));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let door = doors.clone().acquire_owned().await.map_err(|_| Error::Died)?;
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (tls, shared, places) = (tls.clone(), shared.clone(), places.clone());
        connections.spawn(async move {
            match tokio::time::timeout(CONNECTION, connection(stream, &tls, shared, &places)).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::debug!(%peer, why, "connection of another node ended"),
                Err(_) => tracing::debug!(%peer, "connection of another node took too long"),
            }
            drop(door);
        });
    }
}

async fn connection(
    stream: TcpStream,
    tls: &Tls,
    shared: Arc<Shared>,
    places: &Semaphore,
) -> Result<(), String> {
    let config = tls.server().map_err(|error| error.to_string())?;
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE, handshake)
        .await
        .map_err(|_| "no handshake".to_owned())?
        .map_err(|error| error.to_string())?;
    let _place = places.acquire().await.map_err(|error| error.to_string())?;
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&request, &shared).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(16 << 10);
    http.serve_connection(TokioIo::new(stream), service).await.map_err(|error| error.to_string())
}

async fn answer(request: &Request<Incoming>, shared: &Shared) -> Response<Answer> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
    match found(request.uri().path(), range, shared).await {
        Ok(response) => response,
        Err(Error::NotFound(what)) => text(StatusCode::NOT_FOUND, format!("{what}: not found\n")),
        Err(Error::Invalid(why)) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn found(path: &str, range: Option<&str>, shared: &Shared) -> Result<Response<Answer>> {
    let unknown = || Error::NotFound(path.chars().take(200).collect());
    let digest = |text: &str| text.parse::<Digest>().map_err(|_| unknown());
    let rest = path.strip_prefix("/v1/images/").ok_or_else(unknown)?;
    let Some((image, blob)) = rest.split_once("/blobs/") else {
        let descriptor = Descriptor::from(shared.image(&digest(rest)?).await?);
        let json = serde_json::to_string(&descriptor).map_err(|error| Error::Invalid(error.to_string()))?;
        return Ok(text(StatusCode::OK, json));
    };
    let blob = digest(blob)?;
    let size = shared.size(&digest(image)?, &blob).await?;
    let start = range.and_then(from).unwrap_or_default();
    if start > 0 && start >= size {
        return Ok(text(StatusCode::RANGE_NOT_SATISFIABLE, format!("{blob} has {size} bytes\n")));
    }
    let stream = shared.read(&blob, start).await?;
    let mut response = Response::new(Answer::Blob { from: Box::new(stream), left: size - start });
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, hyper::header::HeaderValue::from_static("bytes"));
    if start > 0 {
        let value = format!("bytes {start}-{}/{size}", size - 1);
        headers.extend(value.parse().ok().map(|value| (CONTENT_RANGE, value)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Where an open range begins (RFC 9110, 14.1.2); of others the whole is sent, as that allows.
fn from(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn text(status: StatusCode, text: String) -> Response<Answer> {
    let mut response = Response::new(Answer::Text(Some(Bytes::from(text))));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_ranges_are_understood() {
        assert_eq!(from("bytes=7-"), Some(7));
        for other in ["bytes=-7", "bytes=1-2", "bytes=1-,3-", "items=1-", "bytes=x-"] {
            assert_eq!(from(other), None, "{other}");
        }
    }
}
