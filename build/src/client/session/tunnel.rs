//! The byte stream inside `Control.Session`: buildkitd is the gRPC client on it, we are the server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, PollSender, WaitForCancellationFutureOwned};
use tonic::Streaming;
use tonic::transport::server::Connected;

/// Longest piece sent in one message, in bytes; buildkitd's own pieces are as long.
const PIECE: usize = 32 << 10;

/// Both directions of a session's tunnel. It reads as closed once `end` is cancelled, so that a server on it ends.
pub(super) struct Tunnel {
    incoming: Streaming<BytesMessage>,
    piece: Vec<u8>,
    read: usize,
    outgoing: PollSender<BytesMessage>,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Tunnel {
    pub(super) fn new(
        incoming: Streaming<BytesMessage>,
        outgoing: mpsc::Sender<BytesMessage>,
        end: CancellationToken,
    ) -> Self {
        Self {
            incoming,
            piece: Vec::new(),
            read: 0,
            outgoing: PollSender::new(outgoing),
            end: Box::pin(end.cancelled_owned()),
        }
    }

    fn ended(&mut self, cx: &mut Context<'_>) -> bool {
        self.end.as_mut().poll(cx).is_ready()
    }
}

impl Connected for Tunnel {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read == this.piece.len() {
            if this.ended(cx) {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut this.incoming).poll_next(cx)) {
                Some(Ok(message)) => (this.piece, this.read) = (message.data, 0),
                Some(Err(status)) => return Poll::Ready(Err(io::Error::other(status))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let rest = &this.piece[this.read..];
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        this.read += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        if self.ended(cx) {
            return Poll::Ready(Err(closed()));
        }
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| closed())?;
        let data = buf[..buf.len().min(PIECE)].to_vec();
        let n = data.len();
        self.outgoing.send_item(BytesMessage { data }).map_err(|_| closed())?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What a channel took is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
