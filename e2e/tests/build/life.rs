//! Builds that succeed, fail or are given up.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cloister_e2e::Leftovers;
use rustix::process::{Pid, Signal, kill_process};

use crate::site::{Site, cached, text};

#[test]
fn a_dockerfile_becomes_an_image_that_runs_and_a_second_build_takes_its_steps_from_the_cache() {
    let site = Site::new();
    let dockerfile = "ARG BASE=none\nFROM ${BASE} AS make\nARG GREETING=unset\nCOPY . /src\n\
        RUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = hunter2 && ls /src >/list && echo $GREETING >/greeting\n\
        FROM base\nCOPY --from=make /list /greeting /\nENV NAME=built\n\
        CMD [\"sh\", \"-c\", \"cat /greeting /list; echo $NAME\"]\n";
    let files =
        [("Dockerfile", dockerfile), ("kept", "1"), ("dropped.log", "2"), (".dockerignore", "*.log\n")];
    let context = site.context("app", &files);
    let secret = site.contexts.path().join("token");
    fs::write(&secret, "hunter2").unwrap();
    let secret = format!("id=token,src={}", secret.display());
    let options = [
        "-t",
        "app:1",
        "-t",
        "app:two",
        "--build-arg",
        "BASE=base",
        "--build-arg",
        "GREETING=hello",
        "--secret",
        &secret,
    ];
    let before = Leftovers::below(site.lab.root()).unwrap();
    let built = site.build(&context, &options);
    assert!(built.status.success(), "{}", text(&built));
    assert_eq!(String::from_utf8_lossy(&built.stdout), "app:1\napp:two\n");
    assert_eq!(site.left(&before), Vec::<String>::new());

    let said = site.lab.ok(&["run", "--rm", "app:two"]).unwrap();
    assert_eq!(said, "hello\nDockerfile\nkept\nbuilt\n");
    let exported = site.contexts.path().join("app.tar");
    site.lab.ok(&["image", "export", "app:1", "--format", "tar", "-o", &exported.to_string_lossy()]).unwrap();
    let bytes = fs::read(&exported).unwrap();
    assert!(!bytes.windows(7).any(|part| part == b"hunter2"), "the secret is in the image");
    assert!(!site.images().contains("builder"), "{}", site.images());
    assert!(site.lab.ok(&["image", "ls", "--all"]).unwrap().contains("cloister.dev/builder"));

    let again = site.build(&context, &options);
    assert!(again.status.success() && cached(&text(&again)).len() == 3, "{}", text(&again));
    let changed =
        site.build(&context, &["-t", "app:1", "--no-cache", "--build-arg", "BASE=base", "--secret", &secret]);
    assert!(changed.status.success() && cached(&text(&changed)).is_empty(), "{}", text(&changed));
}

#[test]
fn a_failing_step_is_told_with_its_code_and_last_words_and_leaves_nothing() {
    let site = Site::new();
    let images = site.images();
    let context = site.context("bad", &[("Dockerfile", "FROM base\nRUN echo the last words; exit 7\n")]);
    let before = Leftovers::below(site.lab.root()).unwrap();
    let failed = site.build(&context, &["-t", "bad"]);
    let said = text(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("exit code: 7") && said.contains("the last words"), "{said}");
    assert!(said.contains(">>> RUN echo"), "{said}");
    assert_eq!((site.images(), site.left(&before)), (images, Vec::new()));
}

#[test]
fn a_step_that_wants_a_network_fails_at_once_and_is_told_why() {
    let site = Site::new();
    let dockerfile = "FROM base\nRUN ping -c 1 -W 20 198.51.100.1\n";
    let context = site.context("net", &[("Dockerfile", dockerfile)]);
    let begun = Instant::now();
    let failed = site.build(&context, &["-t", "net"]);
    let said = text(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("NoNetwork: steps of a build have no network"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn a_full_disk_has_a_name() {
    let site = Site::new();
    let full = site.context("full", &[("Dockerfile", "FROM base\nRUN dd if=/dev/zero of=/big bs=1M\n")]);
    let failed = site.build(&full, &["-t", "full", "--cache-key", "full"]);
    let said = text(&failed);
    assert!(!failed.status.success() && said.contains("DiskFull: the build's disk of "), "{said}");
}

#[test]
fn an_image_that_nobody_has_is_named_before_a_machine_starts() {
    let site = Site::new();
    let context = site.context("none", &[("Dockerfile", "FROM localhost:1/missing:3\n")]);
    let failed = site.build(&context, &["-t", "x", "--plain-http"]);
    let said = text(&failed);
    assert!(said.contains("begins from localhost:1/missing:3"), "{said}");
    assert_eq!(failed.status.code(), Some(1));
}

#[test]
fn an_interrupted_build_ends_at_once_and_leaves_nothing() {
    let site = Site::new();
    let images = site.images();
    let context = site.context("long", &[("Dockerfile", "FROM base\nRUN echo begun; sleep 1000\n")]);
    let before = Leftovers::below(site.lab.root()).unwrap();
    let mut child = site.command(&context, &["-t", "long"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The step's output, not its name.
    assert!(lines.any(|line| line.unwrap().ends_with(" begun")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let begun = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{}", rest.join().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!((site.images(), site.left(&before)), (images, Vec::new()));
}

#[test]
fn an_image_is_written_as_a_file_or_a_folder() {
    let site = Site::new();
    let context =
        site.context("out", &[("Dockerfile", "FROM scratch\nCOPY file /folder/file\n"), ("file", "content")]);
    let folder = site.contexts.path().join("tree");
    let out = format!("type=local,dest={}", folder.display());
    let built = site.build(&context, &["-o", &out]);
    assert!(built.status.success(), "{}", text(&built));
    assert_eq!(fs::read_to_string(folder.join("folder/file")).unwrap(), "content");
    let archive = site.contexts.path().join("image.tar");
    let out = format!("type=oci,dest={}", archive.display());
    assert!(site.build(&context, &["-o", &out]).status.success());
    site.lab.ok(&["image", "import", "again", "-i", &archive.to_string_lossy()]).unwrap();
}
