//! `source.upload`.

use cloister_crds::{BuildReason, BuildSource, UploadSource};

use crate::site::{Site, digest, file, gzip, tar};

fn of(bytes: &[u8]) -> BuildSource {
    let upload = Some(UploadSource { digest: digest(bytes) });
    BuildSource { upload, ..BuildSource::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_kept_for_the_next_attempt() {
    let bytes = gzip(&tar(&[file("Dockerfile", b"FROM scratch")]));
    let mut site = Site::new();
    site.inputs.upload = Some(Box::new(std::io::Cursor::new(bytes.clone())));
    for _ in 0..2 {
        let prepared = site.prepare(&of(&bytes)).await.unwrap();
        assert_eq!(prepared.context.read("Dockerfile", 99).unwrap(), b"FROM scratch");
        assert_eq!(prepared.facts.digest, Some(digest(&bytes)));
        assert!(site.inputs.upload.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_promised_is_refused() {
    let bytes = tar(&[file("Dockerfile", b"FROM scratch")]);
    let mut site = Site::new();
    let error = site.prepare(&of(&bytes)).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceNotFound, "{error}");
    for (arrives, reason) in [
        (Vec::new(), BuildReason::SourceNotFound),
        (bytes[..700].to_vec(), BuildReason::SourceMismatch),
        (vec![0; 65 << 20], BuildReason::SourceInvalid),
    ] {
        site.inputs.upload = Some(Box::new(std::io::Cursor::new(arrives)));
        let error = site.prepare(&of(&bytes)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
    assert_eq!(site.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stops_ends_with_the_time() {
    let mut site = Site::new();
    let (ours, _theirs) = tokio::io::duplex(64);
    site.inputs.upload = Some(Box::new(ours));
    site.inputs.limits.time = std::time::Duration::from_millis(200);
    let error = site.prepare(&of(b"x")).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceUnavailable, "{error}");
}
