//! What Dockerfiles may say, and images that are the same each time.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::site::{Site, text};

/// Everything at once: a machine takes longer to start than all of it to run. (`life` and `secrets` have the rest: multi-stage
/// builds, ARG, ENV, .dockerignore, secrets, ssh.)
const ALL: &str = r#"# syntax is what the builder has
ARG RELEASE=1
FROM base AS tools
RUN --mount=type=cache,target=/cache,id=c <<EOF
echo kept >>/cache/file
cp /cache/file /tool
EOF
FROM base AS quiet
RUN --network=none test "$(ls /sys/class/net)" = lo && echo alone >/alone
FROM base
ARG RELEASE
ENV RELEASE=$RELEASE
WORKDIR /srv
COPY --from=tools --link /tool tool
COPY --from=quiet --link --chmod=600 /alone alone
COPY --link --chown=7:8 data data
COPY <<end-of-file /greeting
hello from a heredoc, release $RELEASE
end-of-file
RUN --mount=type=bind,source=data,target=/bound --mount=type=tmpfs,target=/t \
    cat /bound >/t/copy && cat /t/copy >/srv/bound
LABEL org.example.release=$RELEASE
"#;

fn build(site: &Site, context: &Path, options: &[&str]) {
    let built = site.build(context, options);
    assert!(built.status.success(), "{}", text(&built));
}

/// The digest of the one image in an OCI archive.
fn digest(archive: &Path) -> String {
    let mut tar = tar::Archive::new(fs::File::open(archive).unwrap());
    let index = tar.entries().unwrap().map(Result::unwrap);
    let index = index.into_iter().find(|entry| entry.path().unwrap() == Path::new("index.json")).unwrap();
    let index: Value = serde_json::from_reader(index).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_dockerfile_may_say_is_done_and_a_source_date_makes_the_same_image_again() {
    let site = Site::new();
    let context = site.context("all", &[("Dockerfile", ALL), ("data", "data")]);
    let out = |name: &str| site.contexts.path().join(name);
    let options = |path: &Path| {
        ["-o".to_owned(), format!("type=oci,dest={}", path.display())].into_iter().chain(
            ["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--build-arg", "RELEASE=2"].map(str::to_owned),
        )
    };
    let (first, second) = (out("first.tar"), out("second.tar"));
    // Another cache, so that every step runs again, at another time.
    for (path, key) in [(&first, "one"), (&second, "two")] {
        let options: Vec<String> = options(path).chain(["--cache-key".to_owned(), key.to_owned()]).collect();
        build(&site, &context, &options.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(digest(&first), digest(&second));

    site.lab.ok(&["image", "import", "all", "-i", &first.to_string_lossy()]).unwrap();
    let said = site.lab.ok(&[
        "run",
        "--rm",
        "all",
        "sh",
        "-c",
        "cat /greeting tool alone bound; echo; stat -c '%a %u:%g %Y' alone data bound; echo $RELEASE $PWD",
    ]);
    let expected = "hello from a heredoc, release 2\nkept\nalone\ndata\n\
        600 0:0 1700000000\n644 7:8 1700000000\n644 0:0 1700000000\n2 /srv\n";
    assert_eq!(said.unwrap(), expected);
}

/// The statement of how an image was made in an OCI archive, if it has one.
fn statement(archive: &Path) -> Option<Value> {
    let mut tar = tar::Archive::new(fs::File::open(archive).unwrap());
    let documents = tar.entries().unwrap().filter_map(|entry| serde_json::from_reader(entry.unwrap()).ok());
    let is_one = |document: &Value| {
        document["predicateType"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("https://slsa.dev/provenance/"))
    };
    documents.into_iter().find(is_one)
}

#[test]
fn a_statement_of_how_an_image_was_made_says_as_much_as_was_asked_for() {
    let site = Site::new();
    let context = site.context("stated", &[("Dockerfile", "FROM base\nARG WORD\nRUN echo $WORD >/word\n")]);
    let stated = |wish: &str| {
        let archive = site.contexts.path().join(format!("{wish}.tar"));
        let out = format!("type=oci,dest={}", archive.display());
        build(&site, &context, &["-o", &out, "--build-arg", "WORD=told", "--provenance", wish]);
        statement(&archive).map(|statement| statement.to_string())
    };
    assert_eq!(stated("none"), None);
    // Steps and arguments are the larger one's.
    let (min, max) = (stated("min").unwrap(), stated("max").unwrap());
    assert!(min.contains("lab.test") || min.contains("base"), "{min}");
    assert!(!min.contains("echo $WORD") && !min.contains("build-arg:WORD"), "{min}");
    assert!(max.contains("build-arg:WORD") && max.contains("told") && max.len() > min.len(), "{max}");
}
