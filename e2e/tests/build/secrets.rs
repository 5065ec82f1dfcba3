//! What a build is trusted with is found nowhere but where it came from.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cloister_e2e::lab;

use crate::site::Site;

/// A real SSH agent with one key; it ends with this value.
struct Agent {
    process: Child,
    socket: PathBuf,
    /// A line of the private key.
    private: String,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let (socket, key) = (folder.join("agent.sock"), folder.join("key"));
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let process =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Self {
            process: process.unwrap(),
            socket,
            private: fs::read_to_string(&key).unwrap().lines().nth(3).unwrap().to_owned(),
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !agent.socket.exists() {
            assert!(std::time::Instant::now() < deadline, "ssh-agent does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let added = Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &agent.socket).status();
        assert!(added.unwrap().success());
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Which of the words are in a file, read raw.
fn found<'a>(path: &Path, words: &[&'a str]) -> Vec<&'a str> {
    const PIECE: usize = 1 << 20;
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    let longest = words.iter().map(|word| word.len()).max().unwrap_or(1);
    let (mut buffer, mut kept, mut hits) = (vec![0; PIECE + longest], 0, Vec::new());
    while let Ok(read @ 1..) = file.read(&mut buffer[kept..]) {
        let seen = &buffer[..kept + read];
        for word in words {
            // A sparse disk is mostly zeros.
            let first = word.as_bytes()[0];
            let hit = seen
                .iter()
                .enumerate()
                .any(|(at, &byte)| byte == first && seen[at..].starts_with(word.as_bytes()));
            if hit && !hits.contains(word) {
                hits.push(*word);
            }
        }
        let keep = seen.len().min(longest);
        let start = seen.len() - keep;
        buffer.copy_within(start..start + keep, 0);
        kept = keep;
    }
    hits
}

/// Every regular file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => all.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
    all
}

/// Processes of this machine with one of the words on their command line or in their environment.
fn processes(words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            for word in found(&entry.path().join(file), words) {
                hits.push(format!("{word} in {}/{file}", entry.path().display()));
            }
        }
    }
    hits
}

#[test]
fn secrets_and_keys_are_in_no_image_cache_progress_process_or_disk() {
    let site = Site::new();
    let trusted = site.contexts.path().join("trusted");
    fs::create_dir(&trusted).unwrap();
    let agent = Agent::start(&trusted);
    let mark = format!("{}-{:?}", std::process::id(), std::time::SystemTime::now());
    let secret = hash(&format!("secret {mark}"));
    let control = hash(&format!("control {mark}"));
    fs::write(trusted.join("token"), &secret).unwrap();

    let context = site.context("app", &[]);
    let ask = context.join("ask");
    fs::create_dir_all(&context).unwrap();
    let source = lab::checkout().join("e2e/tests/build/ask-agent.c");
    assert!(Command::new("cc").arg("-static").arg("-o").args([&ask, &source]).status().unwrap().success());
    // The control is what a careless step leaves: the search must find it.
    let dockerfile = "FROM base\nARG CONTROL\nCOPY ask /bin/ask\n\
        RUN --mount=type=cache,target=/kept --mount=type=secret,id=token --mount=type=ssh \
        sha256sum </run/secrets/token; ask; echo $CONTROL >/control; echo begun; sleep 5\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let options = [
        "-t".to_owned(),
        "app".to_owned(),
        "--secret".to_owned(),
        format!("id=token,src={}", trusted.join("token").display()),
        "--ssh".to_owned(),
        format!("default={}", agent.socket.display()),
        "--build-arg".to_owned(),
        format!("CONTROL={control}"),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let words = [secret.as_str(), agent.private.as_str(), control.as_str()];
    let trusted_words = &words[..2];

    let mut child = site.command(&context, &options).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = Vec::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for line in lines.by_ref() {
        let line = line.unwrap();
        let begun = line.ends_with(" begun");
        progress.push(line);
        if begun {
            break;
        }
    }
    // The step runs, and has its secret and its agent.
    let (in_processes, while_it_runs) = (processes(trusted_words), files(site.lab.root()));
    let while_it_runs: Vec<_> =
        while_it_runs.into_iter().filter(|path| !found(path, trusted_words).is_empty()).collect();
    progress.extend(lines.map(Result::unwrap));
    assert!(child.wait().unwrap().success(), "{}", progress.join("\n"));
    assert_eq!(in_processes, Vec::<String>::new());
    assert_eq!(while_it_runs, Vec::<PathBuf>::new());

    let progress = progress.join("\n");
    let digest = hash(&secret);
    assert!(progress.contains(&digest) && progress.contains("1 keys"), "{progress}");
    assert!(trusted_words.iter().all(|word| !progress.contains(word)), "{progress}");
    let exported = site.contexts.path().join("app.tar");
    site.lab.ok(&["image", "export", "app", "--format", "tar", "-o", &exported.to_string_lossy()]).unwrap();
    assert_eq!(found(&exported, &words), [control.as_str()]);
    // The cache disk among them.
    let mut disks = 0;
    for path in files(site.lab.root()) {
        let hits = found(&path, &words);
        assert!(trusted_words.iter().all(|word| !hits.contains(word)), "in {}", path.display());
        disks += usize::from(path.ends_with("default/0.ext4") && hits == [control.as_str()]);
    }
    assert_eq!(disks, 1, "the search does not find what a step wrote");
}

/// Hex of the SHA-256.
fn hash(text: &str) -> String {
    cloister_e2e::archive::digest(text.as_bytes()).trim_start_matches("sha256:").to_owned()
}
