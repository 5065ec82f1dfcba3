//! A build's log: to the pod, where `kubectl logs` reads it, to this node's disk, and its end to the status.

use std::collections::VecDeque;
use std::time::Duration;

use cloister_build::progress::{Event, Plain, Show};
use cloister_builder::pod::Control;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::archive::Kept;

/// Bytes of the log's end that the status shows.
const TAIL: usize = 8 << 10;
/// Pieces that may wait for the pod's log.
const QUEUE: usize = 64;
/// How long the pod's log may hold the build up; what comes later is left out there.
const STALL: Duration = Duration::from_secs(5);

/// Where lines go.
#[derive(Debug)]
pub struct Log {
    pod: mpsc::Sender<Vec<u8>>,
    pump: JoinHandle<Option<Control>>,
    /// Bytes that the pod's log did not take.
    missing: usize,
    kept: Option<Kept>,
    tail: Tail,
}

impl Log {
    /// Through this line to the shim, and into this file.
    pub fn new(control: Control, kept: Option<Kept>) -> Self {
        let (pod, pieces) = mpsc::channel(QUEUE);
        Self { pod, pump: tokio::spawn(pump(control, pieces)), missing: 0, kept, tail: Tail::default() }
    }

    /// Adds text, whole lines of it.
    pub async fn write(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        self.tail.push(text);
        if let Some(Err(error)) = self.kept.as_mut().map(|kept| kept.write(text)) {
            tracing::warn!("a build's log is not kept any further: {error}");
            self.kept = None;
        }
        let mut piece = Vec::new();
        if self.missing > 0 {
            piece.extend(format!("[{} bytes left out: nobody read]\n", self.missing).into_bytes());
        }
        piece.extend_from_slice(text);
        // Once it has held the build up for long enough, it is only asked.
        let sent = match self.missing {
            0 => self.pod.send_timeout(piece, STALL).await.is_ok(),
            _ => self.pod.try_send(piece).is_ok(),
        };
        self.missing = if sent { 0 } else { self.missing + text.len() };
    }

    /// Writes all that is left, and gives the log's end and the line to the shim, if it still takes anything.
    pub async fn finish(mut self) -> (String, Option<Control>) {
        if let Some(kept) = self.kept.take()
            && let Err(error) = kept.finish()
        {
            tracing::warn!("a build's log is not complete: {error}");
        }
        drop(self.pod);
        let mut pump = self.pump;
        let control = tokio::time::timeout(STALL, &mut pump).await;
        pump.abort();
        (self.tail.text(), control.ok().and_then(Result::ok).flatten())
    }
}

async fn pump(mut control: Control, mut pieces: mpsc::Receiver<Vec<u8>>) -> Option<Control> {
    while let Some(piece) = pieces.recv().await {
        // A shim that is gone has a log no more; the channel closes with us.
        control.log(&piece).await.ok()?;
    }
    Some(control)
}

/// Turns events into the lines that `docker build --progress=plain` writes.
pub struct Lines(Plain<Vec<u8>>);

impl Default for Lines {
    fn default() -> Self {
        Self(Plain::new(Vec::new()))
    }
}

impl Lines {
    /// The lines of an event.
    pub fn of(&mut self, event: &Event) -> Vec<u8> {
        // A vector takes everything.
        let _ = self.0.show(event);
        std::mem::take(self.0.get_mut())
    }
}

/// The last bytes of a text.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, text: &[u8]) {
        let new = text.get(text.len().saturating_sub(TAIL)..).unwrap_or_default();
        let excess = (self.0.len() + new.len()).saturating_sub(TAIL);
        self.0.drain(..excess);
        self.0.extend(new);
    }

    /// Whole lines, in at most [`TAIL`] bytes of UTF-8.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let from = match bytes.len() < TAIL {
            true => 0,
            false => bytes.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1),
        };
        // Replacing a byte makes it three.
        let mut text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
        if text.len() > TAIL {
            text = text.split_off(text.ceil_char_boundary(text.len() - TAIL));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use cloister_builder::pod::{Client, Message, socket};
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn the_tail_has_whole_lines_of_bounded_length() {
        let mut tail = Tail::default();
        tail.push(b"one\ntwo\n");
        assert_eq!(tail.text(), "one\ntwo\n");
        for number in 0..5000 {
            tail.push(format!("line {number} \u{e9}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.starts_with("line ") && text.ends_with("line 4999 \u{e9}\n"), "{text}");
        tail.push(&[0xff; 3 * TAIL]);
        assert!(tail.text().len() <= TAIL);
    }

    #[tokio::test]
    async fn lines_arrive_at_the_shim_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(folder.path())).unwrap();
        let mut log = Log::new(Control::connect(folder.path()).await.unwrap(), None);
        let Client::Control(mut messages) = Client::greet(listener.accept().await.unwrap().0).await.unwrap()
        else {
            panic!("not the driver's line")
        };
        log.write(b"one\n").await;
        log.write(b"two\n").await;
        let (tail, control) = log.finish().await;
        assert_eq!(tail, "one\ntwo\n");
        control.unwrap().end(0).await.unwrap();
        let mut all = Vec::new();
        while let Some(message) = messages.next().await.unwrap() {
            all.push(message);
        }
        let log = |text: &str| Message::Log(text.as_bytes().to_vec());
        assert_eq!(all, [log("one\n"), log("two\n"), Message::End(0)]);
    }
}
