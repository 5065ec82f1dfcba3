//! What builds leave on disk: bounded, listed, removable.

use std::fs;

use crate::site::{Site, text};

#[test]
fn the_oldest_records_go_before_the_disk_is_full() {
    let site = Site::new();
    // Of a disk of 400 MiB records may take 300; each of these leaves 110.
    let build = |name: &str| {
        let dockerfile = format!(
            "FROM base AS big\nRUN echo {name} >/name && dd if=/dev/zero of=/big bs=1M count=110\n\
             FROM scratch\nCOPY --from=big /name /\n"
        );
        let context = site.context(name, &[("Dockerfile", &dockerfile)]);
        let out = site.contexts.path().join(format!("{name}.out"));
        let built = site.build(&context, &["-o", &format!("type=local,dest={}", out.display())]);
        assert!(built.status.success(), "{name}: {}", text(&built));
        assert_eq!(fs::read_to_string(out.join("name")).unwrap().trim(), name);
        fs::remove_dir_all(out).unwrap();
        text(&built).contains("CACHED")
    };
    for name in ["one", "two", "three", "four"] {
        assert!(!build(name), "{name}");
    }
    assert!(build("four"), "the newest is gone");
    assert!(!build("one"), "the oldest is still there");

    let rows: serde_json::Value =
        serde_json::from_str(&site.lab.ok(&["--output", "json", "builder", "du"]).unwrap()).unwrap();
    assert_eq!(
        (rows[0]["key"].as_str(), rows[0]["busy"].as_bool()),
        (Some("default"), Some(false)),
        "{rows}"
    );
    assert!(rows[0]["used_bytes"].as_u64().unwrap() > 100 << 20, "{rows}");

    let unasked = site.lab.run(&["builder", "prune"]).unwrap();
    assert!(!unasked.status.success() && text(&unasked).contains("--force"), "{}", text(&unasked));
    site.lab.ok(&["builder", "prune", "--force", "--key", "other"]).unwrap();
    assert!(site.lab.root().join("cache/default/0.ext4").exists());
    site.lab.ok(&["builder", "prune", "--force"]).unwrap();
    assert!(!site.lab.root().join("cache/default/0.ext4").exists());
}
