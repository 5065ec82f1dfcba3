//! Outputs of one stream, over a real connection, and which output a builder gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::fs;
use std::path::Path;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient as TreeClient;
use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_client::FileSendClient as StreamClient;
use cloister_build::output::{FileSendService, Limits, Output, OutputError, Received};
use support::channel;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

async fn stream(output: Output, messages: Vec<Vec<u8>>) -> Result<(), Status> {
    let channel = channel(FileSendService::new([output]).server()).await;
    let request = tokio_stream::iter(messages.into_iter().map(|data| BytesMessage { data }));
    let mut answer = StreamClient::new(channel).diff_copy(request).await?.into_inner();
    assert!(answer.message().await?.is_none());
    Ok(())
}

const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn abc() -> Received {
    Received { bytes: 3, digest: Some(ABC.into()) }
}

#[tokio::test]
async fn a_stream_is_counted_and_hashed() {
    let (writer, mut reader) = tokio::io::duplex(2);
    let (output, receipt) = Output::stream(writer, 3);
    let read = tokio::spawn(async move {
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        text
    });
    stream(output, vec![b"a".to_vec(), vec![], b"bc".to_vec()]).await.unwrap();
    assert_eq!(receipt.wait().await.unwrap(), abc());
    assert_eq!(read.await.unwrap(), "abc");
}

#[tokio::test]
async fn a_stream_over_its_limit_or_into_nothing_fails() {
    let (output, receipt) = Output::stream(tokio::io::sink(), 2);
    let heard = stream(output, vec![b"abc".to_vec()]).await.unwrap_err();
    assert_eq!(heard.message(), "the output has more than 2 bytes");
    assert!(matches!(receipt.wait().await, Err(OutputError::TooLarge(2))));
    let (writer, reader) = tokio::io::duplex(2);
    drop(reader);
    let (output, receipt) = Output::stream(writer, 10);
    assert!(stream(output, vec![b"abc".to_vec()]).await.is_err());
    assert!(matches!(receipt.wait().await, Err(OutputError::Write(..))));
    let (output, receipt) = Output::stream(tokio::io::sink(), 2);
    drop(FileSendService::new([output]).server());
    assert!(matches!(receipt.wait().await, Err(OutputError::Missing)));
}

#[tokio::test]
async fn a_file_appears_when_it_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image.tar");
    fs::write(&path, "old").unwrap();
    let (output, receipt) = Output::file(&path, 2).unwrap();
    stream(output, vec![b"ab".to_vec(), b"c".to_vec()]).await.unwrap_err();
    assert!(receipt.wait().await.is_err());
    assert_eq!((fs::read_to_string(&path).unwrap(), count(place.path())), ("old".into(), 1));
    let (output, receipt) = Output::file(&path, 3).unwrap();
    stream(output, vec![b"ab".to_vec(), b"c".to_vec()]).await.unwrap();
    assert_eq!(receipt.wait().await.unwrap(), abc());
    assert_eq!((fs::read_to_string(&path).unwrap(), count(place.path())), ("abc".into(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_exporter_has_its_output_once() {
    let place = tempfile::tempdir().unwrap();
    let (tree, tree_there) = Output::folder(place.path().join("out"), LIMITS).unwrap();
    let (first, first_there) = Output::stream(tokio::io::sink(), 10);
    let server = FileSendService::new([first, tree]).server();
    let one = channel(server.clone()).await;
    let send = |id: &'static str| {
        let mut request = Request::new(tokio_stream::iter([BytesMessage { data: b"abc".to_vec() }]));
        request.metadata_mut().insert("buildkit-attachable-exporter-id", id.parse().unwrap());
        let mut client = StreamClient::new(one.clone());
        async move { client.diff_copy(request).await.map(drop).map_err(|status| status.message().to_owned()) }
    };
    send("0").await.unwrap();
    assert_eq!(first_there.wait().await.unwrap(), abc());
    assert_eq!(send("0").await.unwrap_err(), "this output was sent before");
    for id in ["2", "-1", "x", "4294967296"] {
        assert_eq!(send(id).await.unwrap_err(), format!("this build has no output {id:?}"));
    }
    let (to, stream) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(stream));
    request.metadata_mut().insert("buildkit-attachable-exporter-id", "1".parse().unwrap());
    to.send(Packet::default()).await.unwrap();
    let mut from = TreeClient::new(one.clone()).diff_copy(request).await.unwrap().into_inner();
    let end = from.message().await.unwrap().unwrap();
    assert_eq!(end.r#type, i32::from(PacketType::PacketFin));
    to.send(end).await.unwrap();
    assert_eq!(tree_there.wait().await.unwrap().bytes, 0);
    assert!(place.path().join("out").is_dir());
}
