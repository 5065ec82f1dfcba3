//! Archives that mean harm: an error with a name, nothing outside their folder, nothing left.

use std::fs;

use cloister_crds::{BuildReason, BuildSource, UploadSource};
use tar::EntryType;

use crate::site::{Entry, Site, digest, file, gzip, link, tar};

async fn upload(site: &mut Site, bytes: Vec<u8>) -> Result<(), cloister_source::Error> {
    let upload = Some(UploadSource { digest: digest(&bytes) });
    site.inputs.upload = Some(Box::new(std::io::Cursor::new(bytes)));
    site.prepare(&BuildSource { upload, ..BuildSource::default() }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leads_out_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().to_str().unwrap();
    let dockerfile = || file("Dockerfile", b"FROM scratch");
    let hard = |path, link| Entry { kind: EntryType::Link, link, ..file(path, b"") };
    let through = format!("{path}/x");
    for (entries, words) in [
        (vec![file("../x", b"x")], "has .. in it"),
        (vec![file("a/../../x", b"x")], "has .. in it"),
        (vec![link("out", path), file("out/x", b"x")], "through a link"),
        (
            vec![link("out", path), Entry { kind: EntryType::Directory, ..file("out/x/", b"") }],
            "through a link",
        ),
        (vec![link("out", path), link("out/x", "y")], "through a link"),
        (vec![link("a", "b"), link("b", path), file("a/x/y/z", b"x")], "through a link"),
        (vec![link("out", path), hard("mine", "out/secret")], "is not there"),
        (vec![hard("mine", &through)], "is not there"),
        (vec![link("out", "/etc/passwd"), hard("mine", "out")], "is not there"),
        (vec![Entry { kind: EntryType::Char, ..file("null", b"") }], "devices"),
        (vec![Entry { kind: EntryType::Block, ..file("disk", b"") }], "devices"),
        (vec![Entry { kind: EntryType::Fifo, ..file("pipe", b"") }], "pipes"),
    ] {
        fs::write(outside.path().join("secret"), "s").unwrap();
        let mut site = Site::new();
        let all: Vec<_> = [dockerfile()].into_iter().chain(entries).collect();
        let error = upload(&mut site, tar(&all)).await.unwrap_err();
        assert_eq!(error.reason(), BuildReason::SourceInvalid, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{error}");
        assert!(site.left().iter().all(|name| name.starts_with("upload-")), "{:?}", site.left());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_names_and_links_stay_inside() {
    let mut site = Site::new();
    let entries = [
        file("Dockerfile", b"FROM scratch"),
        file("/etc/x", b"x"),
        // A file in the place of a link is that file, and not where the link led.
        link("passwd", "/etc/passwd"),
        file("passwd", b"mine"),
        // The other way round, and a folder that becomes a link.
        file("dir/a", b""),
        link("dir", "/etc"),
    ];
    upload(&mut site, tar(&entries)).await.unwrap();
    let root = site.root();
    assert_eq!(fs::read(root.join("etc/x")).unwrap(), b"x");
    assert_eq!(fs::read(root.join("passwd")).unwrap(), b"mine");
    assert!(fs::read_link(root.join("dir")).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_end_at_the_bounds() {
    let zeros = vec![0; 80 << 20];
    let mut many = Vec::new();
    let names: Vec<_> = (0..100).map(|number| format!("f{number}")).collect();
    many.extend(names.iter().map(|name| file(name, b"")));
    let deep = "d/".repeat(45) + "x";
    let nested = [Entry { kind: EntryType::Directory, ..file(&deep, b"") }];
    let cases = [
        (gzip(&tar(&[file("zeros", &zeros)])), "more than 67108864 bytes"),
        (gzip(&zeros), "SourceInvalid"),
        (tar(&many), "more than 50 files"),
    ];
    for (bytes, words) in cases {
        let mut site = Site::new();
        site.inputs.limits.entries = 50;
        let error = upload(&mut site, bytes).await.unwrap_err();
        assert_eq!(error.reason(), BuildReason::SourceInvalid, "{error}");
        assert!(words == "SourceInvalid" || error.to_string().contains(words), "{error}");
    }
    // Deep, but within the bound: it is the Dockerfile that is missing.
    let error = upload(&mut Site::new(), tar(&nested)).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::DockerfileInvalid, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_archives_are_named() {
    let whole = gzip(&tar(&[file("Dockerfile", &[7; 100_000])]));
    for bytes in
        [whole[..whole.len() / 2].to_vec(), vec![0x1f, 0x8b, 1, 2, 3], vec![0xfd, b'7', b'z', b'X', b'Z', 0]]
    {
        let error = upload(&mut Site::new(), bytes).await.unwrap_err();
        assert_eq!(error.reason(), BuildReason::SourceInvalid, "{error}");
        assert!(error.to_string().starts_with("source.upload"), "{error}");
    }
}
