//! What builds leave on disk: bounded, listed, removable.

use std::fs;

use crate::site::{Site, cached, text};

#[test]
fn the_oldest_records_go_before_the_disk_is_full() {
    let site = Site::new();
    // Of a disk of 400 MiB records may take 300; each of these leaves 85.
    let reused = |name: &str, last: &str| {
        let dockerfile = format!(
            "FROM base AS big\nRUN echo {name} >/name && dd if=/dev/zero of=/big bs=1M count=85\n{last}\n"
        );
        let context = site.context(name, &[("Dockerfile", &dockerfile)]);
        let out = site.contexts.path().join(format!("{name}.out"));
        let built = site.build(&context, &["-o", &format!("type=local,dest={}", out.display())]);
        assert!(built.status.success(), "{name}: {}", text(&built));
        assert_eq!(fs::read_to_string(out.join("name")).unwrap().trim(), name);
        fs::remove_dir_all(out).unwrap();
        cached(&text(&built)).iter().any(|step| step.contains("RUN echo"))
    };
    for name in ["one", "two", "three", "four"] {
        assert!(!reused(name, "FROM scratch\nCOPY --from=big /name /"), "{name}");
    }
    let kept = |name| reused(name, "RUN test -s /big\nFROM scratch\nCOPY --from=big /name /");
    assert!(kept("four"), "the newest is gone");
    // Which goes first is BuildKit's choice, of age and use.
    assert!(!["three", "two", "one"].into_iter().all(kept), "none is gone");

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
    assert!(site.lab.root().join("caches/default/0.ext4").exists());
    site.lab.ok(&["builder", "prune", "--force"]).unwrap();
    assert!(!site.lab.root().join("caches/default/0.ext4").exists());
}

#[test]
fn the_least_recently_used_cache_makes_room_for_another() {
    let site = Site::new();
    let context = site.context("small", &[("Dockerfile", "FROM base\nRUN true\n")]);
    let bounds = site.contexts.path().join("config.toml");
    let build = |key: &str, config: &str| {
        fs::write(&bounds, format!("[caches]\n{config}\n")).unwrap();
        let mut command = site.command(&context, &["-t", "small", "--cache-key", key]);
        command.env("CLOISTER_CONFIG", &bounds).output().unwrap()
    };
    // The disks of these builds have 400 MiB.
    let refused = build("four", "size = 300");
    assert!(!refused.status.success() && text(&refused).contains("[caches]"), "{}", text(&refused));
    for key in ["one", "two", "three"] {
        let built = build(key, "disks = 2\nsize = 900");
        assert!(built.status.success(), "{key}: {}", text(&built));
    }
    let mut du = site.lab.cloister();
    let du = du.args(["builder", "du"]).env("CLOISTER_CONFIG", &bounds).output().unwrap();
    let du = String::from_utf8_lossy(&du.stdout).into_owned();
    assert!(du.contains("two") && du.contains("three") && !du.contains("one "), "{du}");
    assert!(du.contains("2 of 2 disks") && du.contains("of 900 MiB"), "{du}");
}

#[test]
fn a_cache_in_a_folder_or_a_registry_spares_steps_elsewhere() {
    let site = Site::new();
    let registry = site.registry();
    let dockerfile = "FROM base AS made\nRUN echo made >/made\nFROM base\nCOPY --from=made /made /made\n";
    let context = site.context("cached", &[("Dockerfile", dockerfile)]);
    let folder = site.contexts.path().join("cache");
    let reference = format!("{}/team/app:cache", registry.address);
    let build = |key: &str, more: &[&str]| {
        let options = [&["-t", "cached", "--plain-http", "--cache-key", key][..], more].concat();
        let built = site.build(&context, &options);
        assert!(built.status.success(), "{key}: {}", text(&built));
        text(&built)
    };
    let (to_folder, to_registry) = (
        format!("type=local,dest={},mode=max", folder.display()),
        format!("type=registry,ref={reference},mode=max"),
    );
    let first = build("first", &["--cache-to", &to_folder, "--cache-to", &to_registry]);
    assert!(cached(&first).is_empty(), "{first}");
    for (key, from) in [
        ("second", format!("type=local,src={}", folder.display())),
        ("third", format!("type=registry,ref={reference}")),
    ] {
        let said = build(key, &["--cache-from", &from]);
        assert!(!cached(&said).is_empty() && !said.contains("no cache"), "{said}");
    }
    // What is not there is said, and the image built all the same.
    let said = build("fourth", &["--cache-from", &format!("{}/no/such", registry.address)]);
    assert!(said.contains("no cache") && cached(&said).is_empty(), "{said}");
}
