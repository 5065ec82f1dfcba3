//! The agent in a VM, exercised from the host as the `sandbox` room does.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod lab;
mod machine;
mod network;
mod pod;
mod root;

use std::time::{Duration, Instant};

use lab::{Lab, Sink, input, outcome, wishes};

#[tokio::test]
async fn a_container_is_a_container() {
    let mut lab = Lab::boot(false).await;
    let guest = lab.sandbox.guest().clone();
    println!("kernel to PID 1 {:?}, to listening {:?}", guest.agent_started, guest.agent_listening);
    assert!(!guest.privileged && guest.agent_listening > guest.agent_started);

    let script = "echo out; echo err >&2; hostname; id -u; echo $HOME $$; cat /proc/1/comm; exit 7";
    let end = lab.run("one", "", &["sh", "-c", script]).await.unwrap();
    assert_eq!(
        (end.code, end.stdout.as_str(), end.stderr.as_str()),
        (7, "out\nbox\n0\n/root 1\nsh\n", "err\n")
    );

    let status = lab.run("two", "", &["cat", "/proc/self/status"]).await.unwrap().stdout;
    let line =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    assert_eq!(line("CapEff:"), "00000000a80425fb");
    assert_eq!(line("CapBnd:"), "00000000a80425fb");
    assert_eq!(line("CapAmb:"), "0000000000000000");
    assert_eq!(line("Seccomp:"), "2");

    let end = lab
        .run("three", "daemon", &["sh", "-c", "id -un; echo $HOME; echo x >/dev/stdout; kill -KILL $$"])
        .await;
    let end = end.unwrap();
    assert_eq!(
        (end.stdout.as_str(), end.code),
        ("daemon\n/usr/sbin\nx\n", 0),
        "PID 1 of a namespace ignores its own signals"
    );

    let end = lab
        .run(
            "four",
            "",
            &["sh", "-c", "cat /proc/kcore | wc -c; echo 1 >/proc/sys/kernel/panic; mount -t tmpfs x /mnt"],
        )
        .await;
    let end = end.unwrap();
    assert!(end.code != 0 && end.stdout == "0\n", "{end:?}");
    assert!(end.stderr.contains("Read-only file system") && end.stderr.contains("mount"), "{end:?}");

    assert!(lab.run("five", "", &["missing"]).await.unwrap_err().is_not_found());
    assert!(lab.run("six", "", &["/usr/bin/lost"]).await.unwrap_err().is_not_found());
    assert!(lab.run("seven", "", &["text"]).await.unwrap_err().is_not_executable());
    assert!(lab.run("eight", "nobody-there", &["true"]).await.is_err());
    // A name can be used again, and nothing of the failed ones is left.
    assert_eq!(lab.run("five", "", &["true"]).await.unwrap().code, 0);
    for id in ["one", "two", "three", "four", "five"] {
        lab.sandbox.agent().delete_container(id).await.unwrap();
    }
    lab.sandbox.agent().health(Duration::from_secs(5)).await.unwrap();
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn processes_join_a_running_container() {
    let mut lab = Lab::boot(false).await;
    let (init, out, err) = lab.start("c", "", wishes(&["sleep", "1000"]), None).await.unwrap();
    let mut times = Vec::new();
    for n in 0..5 {
        let start = Instant::now();
        let end = lab.exec("c", &format!("t{n}"), "", &["true"]).await.unwrap();
        times.push(start.elapsed());
        assert_eq!(end.code, 0);
    }
    println!("exec of true, to its end: {times:?}");

    let end = lab
        .exec("c", "a", "", &["sh", "-c", "cat /proc/1/comm; hostname; cat /proc/self/cgroup; exit 3"])
        .await
        .unwrap();
    assert_eq!((end.code, end.stdout.as_str()), (3, "sleep\nbox\n0::/\n"), "{end:?}");
    let status = lab.exec("c", "b", "daemon", &["cat", "/proc/self/status"]).await.unwrap().stdout;
    let line =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    assert_eq!(
        (line("Uid:"), line("CapEff:"), line("CapBnd:"), line("Seccomp:")),
        ("1\t1\t1\t1".into(), "0000000000000000".into(), "00000000a80425fb".into(), "2".into())
    );

    assert!(lab.exec("c", "d", "", &["missing"]).await.unwrap_err().is_not_found());
    assert!(lab.exec("c", "e", "", &["/usr/bin/lost"]).await.unwrap_err().is_not_found());
    assert!(lab.exec("c", "f", "", &["text"]).await.unwrap_err().is_not_executable());
    assert!(lab.exec("c", "g", "", &["/etc"]).await.unwrap_err().is_not_executable());
    let end = lab.exec("c", "h", "", &["sh", "-c", "kill -TERM $$"]).await.unwrap();
    assert_eq!(end.code, 143);

    // What a process leaves behind does not hold its output open for ever.
    let start = Instant::now();
    let end = lab.exec("c", "i", "", &["sh", "-c", "sleep 1000 & echo gone"]).await.unwrap();
    assert_eq!((end.code, end.stdout.as_str()), (0, "gone\n"));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());

    init.remote().signal(libc::SIGKILL).await.unwrap();
    let end = outcome(init, &out, &err).await;
    assert_eq!((end.code, end.oom_killed), (137, false));
    assert!(lab.exec("c", "j", "", &["true"]).await.unwrap_err().is_invalid());
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn streams_carry_everything_while_calls_are_answered() {
    let mut lab = Lab::boot(false).await;
    let bytes: Vec<u8> = (0..32u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let start = Instant::now();
    let (process, out, err) = lab.start("c", "", wishes(&["cat"]), Some(input(bytes.clone()))).await.unwrap();
    let agent = lab.sandbox.agent().clone();
    let calls = tokio::spawn(async move {
        let mut worst = Duration::ZERO;
        for _ in 0..20 {
            let start = Instant::now();
            agent.health(Duration::from_secs(30)).await.unwrap();
            worst = worst.max(start.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        worst
    });
    assert_eq!(process.wait().await.unwrap().code, 0);
    process.drain().await;
    println!(
        "{} MiB each way in {:?}; slowest health call {:?}",
        bytes.len() >> 20,
        start.elapsed(),
        calls.await.unwrap()
    );
    assert!(*out.0.lock().unwrap() == bytes, "{} bytes came back", out.0.lock().unwrap().len());
    assert_eq!(err.text(), "");
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn terminals_have_a_size_and_signals() {
    let mut lab = Lab::boot(false).await;
    let mut wishes = wishes(&["sh", "-c", "tty; stty size; read x; stty size; echo got $x"]);
    wishes.terminal = true;
    let (host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
    let (process, out, err) = lab.start("c", "", wishes, Some(guest.into())).await.unwrap();
    until(&out, "24 80").await;
    process.remote().resize(50, 132).await.unwrap();
    std::io::Write::write_all(&mut &host, b"hello\n").unwrap();
    let end = outcome(process, &out, &err).await;
    assert_eq!(end.code, 0);
    assert!(
        end.stdout.contains("/dev/pts/0")
            && end.stdout.contains("50 132")
            && end.stdout.contains("got hello"),
        "{end:?}"
    );
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    let mut lab = Lab::boot(false).await;
    let mut wishes = wishes(&["sh", "-c", "head -c 100M /dev/zero | tail -c 90M | wc -c"]);
    wishes.memory_bytes = Some(32 << 20);
    let (process, out, err) = lab.start("c", "", wishes, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    assert!(end.oom_killed, "{end:?}");
    let stats = lab.sandbox.agent().stats("c").await.unwrap();
    assert!(stats.oom_kills >= 1 && stats.memory_limit_bytes == 32 << 20, "{stats:?}");
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn privileged_needs_a_privileged_vm() {
    let mut lab = Lab::boot(false).await;
    let mut everything = wishes(&["mount", "-t", "tmpfs", "x", "/mnt"]);
    everything.privileged = true;
    let refused = lab.start("c", "", everything.clone(), None).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("cloister.privileged=1"), "{refused}");
    lab.sandbox.stop().await;

    let mut lab = Lab::boot(true).await;
    let (process, out, err) = lab.start("c", "", everything, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    assert_eq!(end.code, 0, "{end:?}");
    lab.sandbox.stop().await;
}

async fn until(sink: &Sink, text: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !sink.text().contains(text) {
        assert!(Instant::now() < end, "{:?} does not contain {text:?}", sink.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
