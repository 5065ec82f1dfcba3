//! One blob on its way into a [`Layout`]. Nothing is seen of it until it is complete and has its digest.

use std::io::{self, Seek, SeekFrom, Write};

use cloister_image::Digest;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tonic::Status;

use super::api::{WriteAction, WriteContentRequest, WriteContentResponse};
use super::layout::Layout;

/// What a blob takes of the room at least, in bytes: files have no less on a disk, and their number is bounded by it.
const LEAST: u64 = 4096;

/// A write in progress.
pub(super) struct Writer {
    layout: Layout,
    file: NamedTempFile,
    hasher: Sha256,
    offset: u64,
    total: u64,
    expected: Option<Digest>,
    published: bool,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.published {
            self.layout.give(LEAST + self.offset);
        }
    }
}

impl Writer {
    /// Begins a blob.
    pub(super) fn new(layout: Layout) -> Result<Self, Status> {
        let file = NamedTempFile::new_in(layout.ingest()).map_err(|error| layout.failed(error))?;
        if !layout.take(LEAST) {
            return Err(full());
        }
        Ok(Self {
            layout,
            file,
            hasher: Sha256::new(),
            offset: 0,
            total: 0,
            expected: None,
            published: false,
        })
    }

    /// Does what a message asks for and gives the answer, and whether the blob is complete.
    pub(super) fn handle(
        &mut self,
        request: &WriteContentRequest,
    ) -> Result<(WriteContentResponse, bool), Status> {
        self.expect(request)?;
        let action = WriteAction::try_from(request.action)
            .map_err(|_| Status::invalid_argument("not an action of a write"))?;
        let mut answer = WriteContentResponse { action: action.into(), ..Default::default() };
        if action != WriteAction::Stat {
            self.seek(u64::try_from(request.offset).unwrap_or(0))?;
            self.add(&request.data)?;
        }
        let done = action == WriteAction::Commit;
        if done {
            answer.digest = self.commit()?.to_string();
        }
        answer.offset = i64::try_from(self.offset).unwrap_or(i64::MAX);
        answer.total = i64::try_from(self.total).unwrap_or(i64::MAX);
        Ok((answer, done))
    }

    fn expect(&mut self, request: &WriteContentRequest) -> Result<(), Status> {
        if let Ok(total @ 1..) = u64::try_from(request.total) {
            self.total = total;
        }
        if request.expected.is_empty() {
            return Ok(());
        }
        let digest = request.expected.parse().map_err(|_| Status::invalid_argument("not a digest"))?;
        if self.layout.blob(&digest).map_err(|error| failed(&error))?.is_some() {
            self.layout.wrote(digest);
            return Err(Status::already_exists(format!("blob {digest}: already exists")));
        }
        self.expected = Some(digest);
        Ok(())
    }

    /// Writes go on where the last one ended, or begin again.
    fn seek(&mut self, offset: u64) -> Result<(), Status> {
        if offset == self.offset {
            return Ok(());
        }
        if offset > 0 {
            return Err(Status::out_of_range(format!(
                "write at {offset} of a blob of {} bytes",
                self.offset
            )));
        }
        let file = self.file.as_file_mut();
        file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(|error| failed(&error))?;
        self.layout.give(self.offset);
        self.offset = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    fn add(&mut self, data: &[u8]) -> Result<(), Status> {
        let len = data.len() as u64;
        if !self.layout.take(len) {
            return Err(full());
        }
        // Given back as a whole with the writer, whether or not the write succeeds.
        self.offset += len;
        self.file.write_all(data).map_err(|error| self.layout.failed(error))?;
        self.hasher.update(data);
        Ok(())
    }

    fn commit(&mut self) -> Result<Digest, Status> {
        let digest = Digest(self.hasher.clone().finalize().into());
        if self.expected.is_some_and(|expected| expected != digest) {
            return Err(Status::failed_precondition(format!("the blob's digest is {digest}")));
        }
        if self.total > 0 && self.total != self.offset {
            return Err(Status::failed_precondition(format!("the blob has {} bytes", self.offset)));
        }
        self.file.as_file().sync_all().map_err(|error| self.layout.failed(error))?;
        let path = self.layout.path(&digest);
        // The name stays when the temporary one goes.
        match std::fs::hard_link(self.file.path(), &path) {
            Ok(()) => self.published = true,
            // Written by another call meanwhile: this one's bytes go.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&error)),
        }
        self.layout.wrote(digest);
        Ok(digest)
    }
}

fn full() -> Status {
    Status::resource_exhausted("the folder may not grow any more")
}

pub(super) fn failed(error: &io::Error) -> Status {
    Status::internal(format!("content store: {error}"))
}

#[cfg(test)]
mod tests {
    use cloister_image::export::{Blob, Blobs};
    use tonic::Code;

    use super::super::Offer;
    use super::*;
    use crate::output::OutputError;

    fn request(action: WriteAction, offset: i64, data: &[u8]) -> WriteContentRequest {
        WriteContentRequest { action: action.into(), offset, data: data.to_vec(), ..Default::default() }
    }

    fn write(layout: &Layout, expected: &str, data: &[u8]) -> Result<(), Status> {
        let mut writer = Writer::new(layout.clone())?;
        let stat =
            WriteContentRequest { expected: expected.to_owned(), ..request(WriteAction::Stat, 0, b"") };
        assert_eq!(writer.handle(&stat)?.0.offset, 0);
        let (half, rest) = data.split_at(data.len() / 2);
        let answer = writer.handle(&request(WriteAction::Write, 0, half))?.0;
        let (answer, done) = writer.handle(&request(WriteAction::Commit, answer.offset, rest))?;
        assert!(done && answer.offset == data.len() as i64 && answer.digest == Digest::of(data).to_string());
        Ok(())
    }

    #[test]
    fn a_blob_appears_when_it_has_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), 2 * LEAST + 100).unwrap();
        let digest = Digest::of(b"hello");
        let lie = write(&layout, &digest.to_string(), b"hullo").unwrap_err();
        assert_eq!(lie.code(), Code::FailedPrecondition);
        assert!(layout.blob(&digest).unwrap().is_none());
        write(&layout, &digest.to_string(), b"hello").unwrap();
        assert_eq!(layout.blob(&digest).unwrap().unwrap().size(), 5);
        let again = write(&layout, &digest.to_string(), b"hello").unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
        assert_eq!(std::fs::read_dir(layout.ingest()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_grows_to_its_bound_and_failed_writes_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), 2 * LEAST + 10).unwrap();
        write(&layout, &Digest::of(b"x").to_string(), b"123456").unwrap_err();
        write(&layout, "", b"123456").unwrap();
        assert_eq!(write(&layout, "", b"12345").unwrap_err().code(), Code::ResourceExhausted);
        write(&layout, "", b"1234").unwrap();
        // Nor by blobs of nothing.
        assert_eq!(write(&layout, "", b"").unwrap_err().code(), Code::ResourceExhausted);
    }

    #[test]
    fn what_was_offered_is_there_and_what_is_refused_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"base");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"base").unwrap();
        let blobs = vec![(digest, Blob::part(file, 0, 4))];
        let (offer, _) = Offer::blobs(Blobs { manifest: digest, blobs });
        let layout = Layout::open(dir.path(), LEAST).unwrap().beside([offer]);
        let again = write(&layout, &digest.to_string(), b"base").unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
        assert!(layout.refused().is_none());
        write(&layout, "", b"more").unwrap_err();
        assert!(matches!(layout.refused(), Some(OutputError::TooLarge(LEAST))));
        assert!(layout.refused().is_none());
    }

    #[test]
    fn writes_go_on_or_begin_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Layout::open(dir.path(), LEAST + 100).unwrap()).unwrap();
        writer.handle(&request(WriteAction::Write, 0, b"abc")).unwrap();
        let jump = writer.handle(&request(WriteAction::Write, 7, b"x")).unwrap_err();
        assert_eq!(jump.code(), Code::OutOfRange);
        writer.handle(&request(WriteAction::Write, 0, b"xy")).unwrap();
        let answer = writer.handle(&request(WriteAction::Commit, 2, b"")).unwrap().0;
        assert_eq!(answer.digest, Digest::of(b"xy").to_string());
    }
}
