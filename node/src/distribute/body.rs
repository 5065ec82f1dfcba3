//! Bodies of answers: a blob as containerd sends it, or a few bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio_stream::Stream;
use tonic::Streaming;

use crate::api::content::v1::ReadContentResponse;

/// What an answer carries.
pub enum Answer {
    /// Text; `None` when it was sent.
    Text(Option<Bytes>),
    /// The rest of a blob.
    Blob {
        /// Where it comes from.
        from: Box<Streaming<ReadContentResponse>>,
        /// Bytes to come.
        left: u64,
    },
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(match &mut *self {
            Self::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Self::Blob { left: 0, .. } => None,
            Self::Blob { from, left } => match ready!(Pin::new(from).poll_next(cx)) {
                Some(Ok(piece)) if piece.data.len() as u64 <= *left => {
                    *left -= piece.data.len() as u64;
                    Some(Ok(Frame::data(piece.data.into())))
                }
                Some(Ok(_)) => Some(Err(io::Error::other("containerd sent more than the blob"))),
                Some(Err(status)) => Some(Err(io::Error::other(status.message().to_owned()))),
                None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Blob { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Text(text) => text.as_ref().map_or(0, |text| text.len() as u64),
            Self::Blob { left, .. } => *left,
        })
    }
}
