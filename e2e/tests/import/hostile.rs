//! Archives from guests that lie.

use anyhow::{Result, ensure};
use cloister_e2e::archive::{Layer, config, digest, raw_entry};
use cloister_e2e::oci_archive::{OciArchive, blob_path};

use crate::bench::{Bench, app, file, noise};

cases!(archives_that_lie_are_refused_with_a_reason_and_leave_nothing);

fn archives_that_lie_are_refused_with_a_reason_and_leave_nothing(bench: &Bench) -> Result<()> {
    // Somebody else's image, with a layer that others would like to read.
    let secret = file("secret", b"only for lab/app", 0o600)?;
    let own = OciArchive::new(std::slice::from_ref(&secret));
    bench.import(&own, &["own:1"])?;
    let before = bench.holdings()?;
    let stored = bench.stored()?;

    let good = app("one")?;
    let with = |change: &dyn Fn(&mut OciArchive)| {
        let mut image = good.clone();
        change(&mut image);
        image
    };
    let add = |name: &str, content: &[u8]| {
        let (name, content) = (name.to_owned(), content.to_vec());
        with(&move |image| image.files.insert(1, (name.clone(), content.clone())))
    };
    // Names the layer without having it: garbage under its digest, or nothing.
    let theft = |bytes: Option<&[u8]>| {
        let mut image = OciArchive::new(std::slice::from_ref(&secret));
        let at = image.files.iter().position(|(name, _)| *name == blob_path(&digest(&secret.blob)));
        match bytes {
            Some(bytes) => image.files[at.unwrap()].1 = bytes.to_vec(),
            None => drop(image.files.remove(at.unwrap())),
        }
        image
    };
    let lying_layer = Layer { diff_id: digest(b"another"), ..noise(1, 1000)? };
    let foreign = config(&[file("a", b"a", 0o644)?]).replace("amd64", "s390x");
    let first = good.files[0].0.clone();
    let garbage = vec![7; secret.blob.len()];
    let cases: Vec<(OciArchive, &str)> = vec![
        (with(&|image| image.digest = digest(b"claimed")), "but the build said"),
        (with(&|image| image.file(&first)[600] ^= 1), "its content has digest"),
        (theft(Some(&garbage)), "its content has digest"),
        (theft(Some(b"short")), "its content has digest"),
        (theft(None), "is missing"),
        (add(&blob_path(&digest(b"extra")), b"extra"), "belongs to no image"),
        (with(&|image| image.files.insert(0, image.files[0].clone())), "there twice"),
        (add("index.json", &vec![b' '; 5 << 20]), "more than 4194304"),
        (add("blobs/sha256/../../etc/passwd", b"x"), "unexpected entry"),
        (add("../escape", b"x"), "unexpected entry"),
        (add("/absolute", b"x"), "unexpected entry"),
        (add("blobs/sha512/00", b"x"), "unexpected entry"),
        (with(&|image| *image.file("oci-layout") = b"{}".to_vec()), "oci-layout"),
        (with(&|image| *image.file("index.json") = b"{\"manifests\":[]}".to_vec()), "no image"),
        (with(&|image| image.files.truncate(2)), "no oci-layout"),
        (OciArchive::new(&[lying_layer]), "the config says"),
        (OciArchive::with_config(&[file("a", b"a", 0o644)?], &foreign), "no image for linux/"),
        (OciArchive::with_config(&[file("a", b"a", 0o644)?], &config(&[])), "0 diff IDs"),
    ];
    for (image, reason) in &cases {
        let refused = bench.import(image, &["app:1"]);
        let error = refused.map_or_else(|error| error.to_string(), |out| format!("taken: {out}"));
        ensure!(error.contains(reason) && error.lines().count() == 1, "{reason}: {error}");
        let left = bench.holdings()?;
        ensure!(left == before, "{reason}: {left:?} instead of {before:?}");
    }

    let path = bench.lab.root().join("odd.tar");
    let bytes = good.bytes()?;
    let mut link = tar::Builder::new(Vec::new());
    raw_entry(&mut link, tar::EntryType::Symlink, b"blobs/sha256/link", b"/etc/passwd", b"")?;
    let odd: [(&[u8], &str); 4] = [
        (&bytes[..bytes.len() / 2], "truncated"),
        (b"not a tar", "truncated"),
        (&[b'x'; 2048], "not a tar archive"),
        (&link.into_inner()?, "unexpected entry"),
    ];
    for (bytes, reason) in odd {
        std::fs::write(&path, bytes)?;
        let error = bench.import_file(&path, &good.digest, &["app:1"]).unwrap_err().to_string();
        ensure!(error.contains(reason), "{reason}: {error}");
        ensure!(bench.holdings()? == before);
    }
    let error = bench.import(&good, &["--limit", "10000", "app:1"]).unwrap_err().to_string();
    ensure!(error.contains("limit of 10000 bytes"), "{error}");
    ensure!(bench.holdings()? == before);

    // The same containerd, the same daemon: nothing is broken.
    bench.import(&good, &["app:1"])?;
    bench.image(&["rm", "lab/app"])?;
    bench.import(&own, &["own:1"])?;
    ensure!(bench.stored()? == stored, "{} instead of {stored}", bench.stored()?);
    Ok(())
}
