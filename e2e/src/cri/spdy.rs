//! The client's half of SPDY/3.1 as Kubernetes' streaming servers speak it: what `kubectl exec` and `crictl attach` use.
//!
//! Only what streaming needs: streams opened by us, data both ways with half-close, answers to pings. Flow control is
//! not used by the servers. Header blocks are compressed without the protocol's dictionary, which zlib marks in the
//! stream itself. Format: the SPDY/3.1 draft, sections 2.2 and 2.6.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression, FlushCompress};

const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const FIN: u8 = 1;
/// Larger frames are not sent, so that one stream cannot keep another waiting long.
const MAX_DATA: usize = 32 << 10;

/// A connection that was upgraded to SPDY.
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    writer: Mutex<Writer>,
    /// Where data of each stream goes; the sender is dropped at the stream's end.
    streams: Mutex<HashMap<u32, Sender<Vec<u8>>>>,
}

struct Writer {
    socket: TcpStream,
    compressor: Compress,
    next: u32,
}

/// One stream of a connection.
pub struct Stream {
    shared: Arc<Shared>,
    id: u32,
    /// What the server sends; the channel closes when the server does.
    pub incoming: Receiver<Vec<u8>>,
}

impl Connection {
    /// Speaks SPDY on a socket whose HTTP upgrade is done; a thread reads it until it closes.
    pub fn new(socket: TcpStream) -> io::Result<Connection> {
        let reader = socket.try_clone()?;
        let writer = Writer { socket, compressor: Compress::new(Compression::fast(), true), next: 1 };
        let shared = Arc::new(Shared { writer: Mutex::new(writer), streams: Mutex::default() });
        let for_reader = Arc::clone(&shared);
        std::thread::spawn(move || {
            let _ = read_frames(reader, &for_reader);
            lock(&for_reader.streams).clear();
        });
        Ok(Connection { shared })
    }

    /// Opens a stream with these headers; the names must be in lower case.
    pub fn open(&self, headers: &[(&str, &str)]) -> io::Result<Stream> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        let (sender, incoming) = channel();
        let mut writer = lock(&self.shared.writer);
        let id = writer.next;
        writer.next += 2;
        lock(&self.shared.streams).insert(id, sender);
        let mut body = [id.to_be_bytes(), [0; 4]].concat();
        body.extend([0, 0]);
        compress(&mut writer.compressor, &block, &mut body)?;
        writer.control(SYN_STREAM, 0, &body)?;
        drop(writer);
        Ok(Stream { shared: Arc::clone(&self.shared), id, incoming })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = lock(&self.shared.writer).socket.shutdown(Shutdown::Both);
    }
}

impl Stream {
    /// Sends bytes.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(MAX_DATA).try_for_each(|chunk| lock(&self.shared.writer).data(self.id, 0, chunk))
    }

    /// Says that no more bytes follow.
    pub fn finish(&self) -> io::Result<()> {
        lock(&self.shared.writer).data(self.id, FIN, &[])
    }
}

impl Writer {
    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend(kind.to_be_bytes());
        frame.extend(((u32::from(flags) << 24) | body.len() as u32).to_be_bytes());
        frame.extend(body);
        self.socket.write_all(&frame)
    }

    fn data(&mut self, id: u32, flags: u8, bytes: &[u8]) -> io::Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend(((u32::from(flags) << 24) | bytes.len() as u32).to_be_bytes());
        frame.extend(bytes);
        self.socket.write_all(&frame)
    }
}

/// Appends `input`, compressed up to a point where the server can read all of it.
fn compress(compressor: &mut Compress, input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut room = Vec::with_capacity(input.len() * 2 + 64);
    compressor.compress_vec(input, &mut room, FlushCompress::Sync).map_err(io::Error::other)?;
    out.extend(room);
    Ok(())
}

fn read_frames(mut socket: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut head = [0; 8];
    loop {
        socket.read_exact(&mut head)?;
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut body = vec![0; length];
        socket.read_exact(&mut body)?;
        if first >> 31 == 0 {
            let mut streams = lock(&shared.streams);
            if let Some(sender) = streams.get(&first).filter(|_| !body.is_empty()) {
                let _ = sender.send(body);
            }
            if flags & FIN != 0 {
                streams.remove(&first);
            }
            continue;
        }
        match first as u16 {
            PING => lock(&shared.writer).control(PING, 0, &body)?,
            RST_STREAM if length >= 4 => {
                lock(&shared.streams).remove(&u32::from_be_bytes([body[0], body[1], body[2], body[3]]));
            }
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
