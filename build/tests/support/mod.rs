//! A builder's side of a session: a channel to services, and fsutil's receiver (`receive.go`, `validator.go`,
//! `hardlinks.go`, `diff_containerd.go`) as far as what it demands and asks for.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use cloister_build::context::{Context, FileSyncService, MAX_METADATA};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{StreamExt, once, pending};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status, Streaming};

pub const FOLDER: u32 = 1 << 31;
pub const LINK: u32 = 1 << 27;
const KIND: u32 = FOLDER | LINK | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19;

/// Everything of the context.
pub const ALL: Ask<'_> = Ask { name: "", include: &[], exclude: &[], follow: &[] };

/// A folder with these files.
pub fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

/// What a request shows.
pub async fn paths(root: &tempfile::TempDir, ask: Ask<'_>) -> Vec<String> {
    let mut builder = Builder::default();
    builder.sync(&serve(Context::folder(root).unwrap()).await, ask).await.unwrap();
    builder.paths()
}

/// Why a transfer did not come to its end.
pub async fn refused(root: &tempfile::TempDir, ask: Ask<'_>) -> String {
    let channel = serve(Context::folder(root).unwrap()).await;
    Builder::default().sync(&channel, ask).await.unwrap_err().message().to_owned()
}

/// A connection to one service, over a pipe in memory.
pub async fn channel<S>(service: S) -> Channel
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let (here, there) = tokio::io::duplex(64 << 10);
    let server = Server::builder()
        .initial_connection_window_size(4 << 20)
        .http2_max_header_list_size(MAX_METADATA)
        .add_service(service);
    tokio::spawn(server.serve_with_incoming(once(Ok::<_, std::io::Error>(there)).chain(pending())));
    let mut here = Some(TokioIo::new(here));
    Endpoint::from_static("http://session")
        .http2_max_header_list_size(MAX_METADATA)
        .connect_with_connector(tower::service_fn(move |_| {
            let here = here.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
            async { here }
        }))
        .await
        .unwrap()
}

/// What a builder keeps of a context from build to build.
#[derive(Default)]
pub struct Builder {
    pub files: BTreeMap<Path, (Stat, Vec<u8>)>,
}

/// A path ordered part by part.
pub type Path = Vec<String>;

/// One transfer that was begun: entries are there, files are not asked for yet.
pub struct Transfer {
    pub stats: Vec<Stat>,
    requests: mpsc::Sender<Packet>,
    packets: Streaming<Packet>,
}

/// What a request says.
#[derive(Clone, Copy, Default)]
pub struct Ask<'a> {
    pub name: &'a str,
    pub include: &'a [&'a str],
    pub exclude: &'a [&'a str],
    pub follow: &'a [&'a str],
}

pub fn packet(kind: PacketType, id: u32) -> Packet {
    Packet { r#type: kind.into(), id, ..Packet::default() }
}

pub async fn serve(context: Context) -> Channel {
    channel(FileSyncService::new([("context".to_owned(), context)]).server()).await
}

impl Transfer {
    /// Reads all entries, with the demands that fsutil has on them.
    pub async fn begin(channel: &Channel, ask: Ask<'_>) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(1024);
        let mut request = Request::new(ReceiverStream::new(stream));
        let metadata = request.metadata_mut();
        let name = if ask.name.is_empty() { "context" } else { ask.name };
        metadata.insert("dir-name", name.parse().unwrap());
        for (key, values) in [
            ("include-patterns", ask.include),
            ("exclude-patterns", ask.exclude),
            ("followpaths", ask.follow),
        ] {
            for value in values {
                metadata.append(key, value.parse().unwrap());
            }
        }
        let mut packets = FileSyncClient::new(channel.clone()).diff_copy(request).await?.into_inner();
        let mut stats: Vec<Stat> = Vec::new();
        let mut seen = HashSet::new();
        let mut order = Order::default();
        loop {
            let packet = packets.message().await?.expect("the walk ends with an empty stat");
            match PacketType::try_from(packet.r#type).unwrap() {
                PacketType::PacketErr => {
                    return Err(Status::aborted(String::from_utf8(packet.data).unwrap()));
                }
                PacketType::PacketStat => {}
                other => panic!("{other:?} in a walk"),
            }
            let Some(stat) = packet.stat else { break };
            order.check(&stat.path, stat.mode & FOLDER != 0);
            if stat.mode & (FOLDER | LINK) == 0 {
                assert!(stat.linkname.is_empty() || seen.contains(&stat.linkname), "{stat:?}");
                if stat.linkname.is_empty() {
                    seen.insert(stat.path.clone());
                }
            }
            stats.push(stat);
        }
        Ok(Self { stats, requests, packets })
    }

    pub async fn request(&self, kind: PacketType, id: u32) {
        self.say(packet(kind, id)).await;
    }

    pub async fn say(&self, packet: Packet) {
        // The other side may have given up already; its answer says so.
        let _ = self.requests.send(packet).await;
    }

    pub fn id(&self, path: &str) -> u32 {
        u32::try_from(self.stats.iter().position(|stat| stat.path == path).unwrap()).unwrap()
    }

    /// The next packet; an error when the other side gave up.
    pub async fn next(&mut self) -> Result<Packet, Status> {
        let packet = self.packets.message().await?.ok_or_else(|| Status::aborted("ended"))?;
        if packet.r#type == i32::from(PacketType::PacketErr) {
            return Err(Status::aborted(String::from_utf8(packet.data).unwrap()));
        }
        Ok(packet)
    }

    /// One file's bytes.
    pub async fn file(&mut self, id: u32) -> Result<Vec<u8>, Status> {
        self.request(PacketType::PacketReq, id).await;
        let mut bytes = Vec::new();
        loop {
            let packet = self.next().await?;
            assert_eq!((packet.r#type, packet.id), (i32::from(PacketType::PacketData), id));
            if packet.data.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(packet.data);
        }
    }

    /// Says that everything is there, and waits for the other side's agreement.
    pub async fn finish(mut self) -> Result<(), Status> {
        self.request(PacketType::PacketFin, 0).await;
        assert_eq!(self.next().await?.r#type, i32::from(PacketType::PacketFin));
        assert!(self.packets.message().await?.is_none());
        Ok(())
    }
}

impl Builder {
    /// Takes over a context; the paths of the files that had to be sent.
    pub async fn sync(&mut self, channel: &Channel, ask: Ask<'_>) -> Result<Vec<String>, Status> {
        let mut transfer = Transfer::begin(channel, ask).await?;
        let mut old = std::mem::take(&mut self.files);
        let mut sent = Vec::new();
        for id in 0..transfer.stats.len() {
            let stat = transfer.stats[id].clone();
            let path: Path = stat.path.split('/').map(str::to_owned).collect();
            let kept = old
                .remove(&path)
                .filter(|(kept, _)| *kept == Stat { xattrs: kept.xattrs.clone(), ..stat.clone() });
            let bytes = match kept {
                Some((_, bytes)) => bytes,
                None if stat.mode & KIND == 0 && stat.linkname.is_empty() => {
                    sent.push(stat.path.clone());
                    transfer.file(u32::try_from(id).unwrap()).await?
                }
                None => Vec::new(),
            };
            self.files.insert(path, (stat, bytes));
        }
        transfer.finish().await?;
        Ok(sent)
    }

    pub fn paths(&self) -> Vec<String> {
        self.files.keys().map(|path| path.join("/")).collect()
    }

    pub fn at(&self, path: &str) -> &(Stat, Vec<u8>) {
        &self.files[&path.split('/').map(str::to_owned).collect::<Path>()]
    }
}

/// fsutil's `Validator`: a name comes after those before it in its folder, and after its folder.
#[derive(Default)]
struct Order {
    /// Folders on the way down, each with its last name.
    folders: Vec<(String, String)>,
}

impl Order {
    fn check(&mut self, path: &str, is_folder: bool) {
        if self.folders.is_empty() {
            self.folders.push(Default::default());
        }
        assert_eq!(cloister_build::context::clean(path), path);
        assert!(!path.starts_with('/') && path != ".." && !path.starts_with("../"), "{path}");
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        while self.folders.last().unwrap().0 != folder {
            self.folders.pop();
            assert!(!self.folders.is_empty(), "{path} comes without its folder");
        }
        let last = &mut self.folders.last_mut().unwrap().1;
        assert!(last.as_str() < name, "{path} comes after {last}");
        *last = name.to_owned();
        if is_folder {
            self.folders.push((path.to_owned(), String::new()));
        }
    }
}
