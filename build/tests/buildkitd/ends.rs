//! Builds that don't succeed.

use std::time::{Duration, Instant};

use cloister_build::client::{BuildKit, Error, Solve};
use cloister_build::progress::Event;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BUSYBOX;
use crate::lab::Lab;

/// A command line that nothing else on this machine has, no other test of this process either.
fn sleep(test: u8) -> String {
    format!("busybox sleep 54{test}{}", std::process::id())
}

/// Waits until a step has begun to sleep.
async fn asleep(lab: &Lab, sleep: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while lab.processes(sleep) == 0 {
        assert!(Instant::now() < deadline, "the step does not run:\n{}", lab.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The step is gone within two seconds.
async fn woken(lab: &Lab, sleep: &str) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while lab.processes(sleep) > 0 {
        assert!(Instant::now() < deadline, "the step still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn events() -> mpsc::Sender<Event> {
    mpsc::channel(1).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_step_is_told_with_its_exit_code_last_lines_and_place() {
    let lab = Lab::start();
    let text = format!("{BUSYBOX}RUN busybox echo before; busybox echo why; exit 3\n");
    let (solved, _) = lab.build(&Solve::default(), lab.session(&text, &[])).await;
    let error = solved.unwrap_err();
    let failure = error.failure().unwrap();
    assert_eq!(failure.exit_code, Some(3), "{error}");
    assert!(failure.step.as_ref().unwrap().contains("RUN busybox echo before"), "{error}");
    assert_eq!(failure.log_tail, ["before", "why"], "{}", failure.report());
    assert!(failure.excerpt.iter().any(|line| line.contains("5 | >>> RUN busybox")), "{}", failure.report());
    assert!(!error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_build_is_gone_within_two_seconds() {
    let lab = Lab::start();
    let sleep = sleep(1);
    let session = lab.session(&format!("{BUSYBOX}RUN exec {sleep}\n"), &[]);
    let buildkit = lab.connect().await;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let solve = Solve::default();
    let build = buildkit.solve(&solve, session, events(), cancel);
    let stopper = async {
        asleep(&lab, &sleep).await;
        stop.cancel();
        woken(&lab, &sleep).await;
    };
    let (solved, ()) = tokio::join!(build, stopper);
    assert!(matches!(solved, Err(Error::Canceled)), "{solved:?}");
    assert!(buildkit.info().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_over_its_time_is_gone_too() {
    let lab = Lab::start();
    let sleep = sleep(2);
    let session = lab.session(&format!("{BUSYBOX}RUN exec {sleep}\n"), &[]);
    let buildkit = lab.connect().await;
    let solve = Solve { deadline: Some(Duration::from_secs(8)), ..Default::default() };
    let solved = buildkit.solve(&solve, session, events(), CancellationToken::new()).await;
    assert!(matches!(solved, Err(Error::Timeout(_))), "{solved:?}");
    woken(&lab, &sleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_ends_the_build_with_a_reason() {
    let lab = Lab::start();
    let sleep = sleep(3);
    let session = lab.session(&format!("{BUSYBOX}RUN exec {sleep}\n"), &[]);
    let mut far = UnixStream::connect(lab.socket()).await.unwrap();
    let (near, mut end) = tokio::io::duplex(1 << 16);
    let relay = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut end, &mut far).await });
    let buildkit = BuildKit::connect(near).await.unwrap();
    let solve = Solve::default();
    let build = buildkit.solve(&solve, session, events(), CancellationToken::new());
    let cut = async {
        asleep(&lab, &sleep).await;
        relay.abort();
        Instant::now()
    };
    let (solved, since) = tokio::join!(build, cut);
    let error = solved.unwrap_err();
    assert!(matches!(error, Error::Lost(_)) && error.is_retryable(), "{error}");
    assert!(since.elapsed() < Duration::from_secs(2));
    woken(&lab, &sleep).await;
    let late = buildkit.info().await.unwrap_err().to_string();
    assert!(late.starts_with("connection to buildkitd lost"), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_and_endless_lines_are_cut() {
    let lab = Lab::start();
    let text = format!("{BUSYBOX}RUN busybox yes | busybox tr -d '\\n' | busybox head -c 300000\n");
    let (solved, events) = lab.build(&Solve::default(), lab.session(&text, &[])).await;
    solved.unwrap();
    let lines = crate::lab::lines(&events);
    assert!(lines.iter().all(|line| line.len() < 4200), "{}", lines.len());
    assert!(lines.iter().any(|line| line.contains("more bytes in this line")), "{lines:?}");
}
