//! What steps get from our side.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::{Arc, Mutex};

use cloister_build::client::{Output, Secret, Secrets, Solve, SshAgents};
use cloister_build::output::{FileSendService, Output as Target};

use crate::BUSYBOX;
use crate::lab::{Lab, lines};

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_its_step_and_no_layer() {
    let lab = Lab::start();
    let text = format!("{BUSYBOX}RUN --mount=type=secret,id=token busybox md5sum /run/secrets/token\n");
    let path = lab.dir.path().join("out.tar");
    let (target, receipt) = Target::file(&path, 1 << 30).unwrap();
    let secrets = Secrets::default().with("token", Secret::bytes("hunter2-hunter2").unwrap());
    let session = lab.session(&text, &[]).secrets(secrets).output(FileSendService::new([target]));
    let outputs = vec![Output::oci().with("compression", "uncompressed").with("force-compression", "true")];
    let (solved, events) = lab.build(&Solve { outputs, ..Default::default() }, session).await;
    solved.unwrap();
    receipt.wait().await.unwrap();
    assert!(lines(&events).iter().any(|line| line.contains("/run/secrets/token")), "{events:?}");
    let archive = std::fs::read(path).unwrap();
    assert!(!archive.windows(15).any(|bytes| bytes == b"hunter2-hunter2"));
    assert!(!lab.log().contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_was_not_offered_fails_its_step() {
    let lab = Lab::start();
    let text = format!("{BUSYBOX}RUN --mount=type=secret,id=other,required=true busybox true\n");
    let (solved, _) = lab.build(&Solve::default(), lab.session(&text, &[]).secrets(Secrets::default())).await;
    let error = solved.unwrap_err().to_string();
    assert!(error.contains("secret other: not found"), "{error}");
}

/// Connects to the socket, sends two messages and prints both answers as hex.
const ASK: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, getenv("SSH_AUTH_SOCK"), sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) { perror("connect"); return 1; }
    unsigned char asks[2][5] = {{0, 0, 0, 1, 11}, {0, 0, 0, 1, 19}}, answer[64];
    for (int i = 0; i < 2; i++) {
        if (write(fd, asks[i], 5) != 5) return 2;
        ssize_t n = read(fd, answer, sizeof answer);
        if (n <= 0) return 3;
        for (ssize_t j = 0; j < n; j++) printf("%02x", answer[j]);
        printf("\n");
    }
    return 0;
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_agent_lists_its_keys_and_is_asked_nothing_else() {
    let lab = Lab::start();
    let (source, ask) = (lab.dir.path().join("ask.c"), lab.dir.path().join("ask"));
    std::fs::write(&source, ASK).unwrap();
    assert!(Command::new("cc").arg("-static").arg("-o").args([&ask, &source]).status().unwrap().success());

    let path = lab.dir.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    // Ends with the test's process: nobody else connects.
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut message = [0; 5];
        while stream.read_exact(&mut message).is_ok() {
            seen.lock().unwrap().push(message[4]);
            stream.write_all(&[0, 0, 0, 5, 12, 0, 0, 0, 0]).unwrap();
        }
    });

    let text = format!("{BUSYBOX}COPY ask /bin/ask\nRUN --mount=type=ssh /bin/ask\n");
    let program = std::fs::read(&ask).unwrap();
    // Files made of bytes are not executable.
    let text = text.replace("COPY ask", "COPY --chmod=755 ask");
    let session = lab.session(&text, &[("ask", &program)]).ssh(SshAgents::default().with("", &path));
    let (solved, events) = lab.build(&Solve::default(), session).await;
    solved.unwrap();
    let lines = lines(&events);
    assert!(lines.contains(&"000000050c00000000".to_owned()), "{lines:?}");
    assert!(lines.contains(&"0000000105".to_owned()), "{lines:?}");
    assert_eq!(*asked.lock().unwrap(), [11]);
}
