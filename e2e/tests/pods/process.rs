//! Commands in running containers: exec, attach, terminals, signals.

use std::time::{Duration, Instant};

use anyhow::Result;
use cloister_e2e::cri::api;
use cloister_e2e::cri::stream::Wants;
use cloister_e2e::{Pod, Rig};

cases!(
    exec_gives_both_outputs_and_the_exit_code,
    exec_of_something_missing_fails_within_a_second,
    exec_that_takes_too_long_is_ended,
    many_execs_at_once,
    a_streamed_exec_sees_its_input_end,
    a_terminal_echoes_and_is_resized,
    a_signal_ends_a_streamed_exec_with_its_code,
    large_input_comes_back_unchanged,
    attach_reads_and_writes_the_first_process,
    attach_to_a_terminal,
    stop_signals_and_grace_periods_are_kept,
    exec_sees_the_containers_environment_user_and_folder,
    an_idle_exec_stays,
    exec_in_an_ended_container_is_refused,
);

const SOON: Duration = Duration::from_secs(30);

pub fn exec_gives_both_outputs_and_the_exit_code(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let output = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 42"])?;
    assert_eq!(
        (output.text().as_str(), output.stderr.as_slice(), output.code),
        ("out\n", b"err\n".as_slice(), 42)
    );
    assert_eq!(container.exec(&["sh", "-c", "kill -9 $$"])?.code, 137);
    let large = container.exec(&["sh", "-c", "seq 1 200000"])?;
    assert_eq!(large.text().lines().count(), 200_000);
    let session = container.session(&["sh", "-c", "echo out; echo err >&2; exit 3"], Wants::default())?;
    let output = session.wait(SOON)?;
    assert_eq!(
        (output.text().as_str(), output.stderr.as_slice(), output.code),
        ("out\n", b"err\n".as_slice(), 3)
    );
    Ok(())
}

pub fn exec_of_something_missing_fails_within_a_second(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    container.sh("true")?;
    for program in ["no-such-program", "/no/such/program", "/etc/passwd"] {
        let begun = Instant::now();
        let answer = container.exec(&[program]);
        let took = begun.elapsed();
        let failed = answer.as_ref().map_or(true, |output| output.code == 126 || output.code == 127);
        assert!(failed, "{program}: {answer:?}");
        assert!(took < Duration::from_secs(1), "{program} took {took:?}");
    }
    assert_eq!(container.sh("echo fine")?, "fine");
    Ok(())
}

pub fn exec_that_takes_too_long_is_ended(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let request = api::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: ["sleep", "4321"].map(str::to_owned).into(),
        timeout: 1,
    };
    let begun = Instant::now();
    let status = rig.lab.cri.exec_sync(request).unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(!container.sh("ps")?.contains("sleep 4321"));
    Ok(())
}

pub fn many_execs_at_once(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = &pod.idle()?;
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..16)
            .map(|number| {
                scope.spawn(move || {
                    (number, container.exec(&["sh", "-c", &format!("echo {number}; exit {number}")]))
                })
            })
            .collect();
        for run in runs {
            let (number, output) = run.join().unwrap();
            let output = output?;
            assert_eq!((output.code, output.text()), (number, format!("{number}\n")));
        }
        Ok(())
    })
}

pub fn a_streamed_exec_sees_its_input_end(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let wants = Wants { stdin: true, tty: false };
    let session = container.session(&["sh", "-c", "sort; echo end; exit 5"], wants)?;
    session.write(b"pear\napple\n")?;
    session.close_stdin()?;
    let output = session.wait(SOON)?;
    assert_eq!((output.text().as_str(), output.code), ("apple\npear\nend\n", 5));
    Ok(())
}

pub fn a_terminal_echoes_and_is_resized(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let wants = Wants { stdin: true, tty: true };
    let mut session = container.session(&["sh"], wants)?;
    session.resize(101, 33)?;
    session.write(b"tty; echo ter''minal\n")?;
    assert!(session.read_until("terminal\r\n", SOON)?.contains("/dev/pts/"));
    let deadline = Instant::now() + SOON;
    loop {
        session.write(b"stty size\n")?;
        session.write(b"echo ask''ed\n")?;
        let text = session.read_until("asked\r\n", SOON)?;
        if text.contains("33 101") {
            break;
        }
        assert!(Instant::now() < deadline, "the size never arrived: {text}");
    }
    session.write(b"exit 9\n")?;
    assert_eq!(session.wait(SOON)?.code, 9);
    Ok(())
}

pub fn a_signal_ends_a_streamed_exec_with_its_code(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let mut session = container.session(&["sh", "-c", "echo $$; exec sleep 1000"], Wants::default())?;
    let pid = session.read_until("\n", SOON)?;
    container.sh(&format!("kill -15 {}", pid.trim()))?;
    assert_eq!(session.wait(SOON)?.code, 128 + 15);
    let mut typed =
        container.session(&["sh", "-c", "echo up; sleep 1000"], Wants { stdin: true, tty: true })?;
    typed.read_until("up", SOON)?;
    typed.write(b"\x03")?;
    assert_eq!(typed.wait(SOON)?.code, 128 + 2);
    Ok(())
}

pub fn large_input_comes_back_unchanged(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let session = container.session(&["cat"], Wants { stdin: true, tty: false })?;
    let bytes: Vec<u8> = (0..8_000_000_u32).flat_map(|n| [(n >> 7) as u8]).collect();
    session.write(&bytes)?;
    session.close_stdin()?;
    let output = session.wait(Duration::from_secs(120))?;
    assert!(output.stdout == bytes, "{} bytes came back", output.stdout.len());
    Ok(())
}

pub fn attach_reads_and_writes_the_first_process(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("echo up; while read line; do echo got $line; done; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    let mut session = container.attach(Wants { stdin: true, tty: false })?;
    session.write(b"one\n")?;
    session.read_until("got one\n", SOON)?;
    session.write(b"two\n")?;
    session.read_until("got two\n", SOON)?;
    session.close_stdin()?;
    assert_eq!(container.wait()?.exit_code, 0);
    assert_eq!(container.output_at_end()?, b"up\ngot one\ngot two\nend\n");
    Ok(())
}

pub fn attach_to_a_terminal(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("exec sh");
    (config.stdin, config.tty) = (true, true);
    let container = pod.start(config)?;
    let mut session = container.attach(Wants { stdin: true, tty: true })?;
    session.resize(77, 22)?;
    session.write(b"tty && echo att''ached\n")?;
    assert!(session.read_until("attached\r\n", SOON)?.contains("/dev/"));
    session.write(b"exit 6\n")?;
    assert_eq!(container.wait()?.exit_code, 6);
    Ok(())
}

/// A container that says which signal it got, with a stop signal and a grace period.
fn stopped_with(pod: &Pod<'_>, script: &str, seconds: i64) -> Result<(i32, String, Duration)> {
    let container = pod.start_shell(script, "up\n")?;
    let begun = Instant::now();
    container.stop(seconds)?;
    let took = begun.elapsed();
    let code = container.wait()?.exit_code;
    Ok((code, String::from_utf8(container.output_at_end()?)?, took))
}

pub fn stop_signals_and_grace_periods_are_kept(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let kind = "trap 'echo TERM; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let (code, output, took) = stopped_with(&pod, kind, 10)?;
    assert_eq!((code, output.as_str()), (3, "up\nTERM\n"));
    assert!(took < Duration::from_secs(5), "took {took:?}");
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let (code, _, took) = stopped_with(&pod, stubborn, 2)?;
    assert_eq!(code, 137);
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(8), "took {took:?}");
    let (code, ..) = stopped_with(&pod, stubborn, 0)?;
    assert_eq!(code, 137);
    Ok(())
}

pub fn exec_sees_the_containers_environment_user_and_folder(rig: &Rig) -> Result<()> {
    use cloister_e2e::cri::spec::ContainerConfigExt;
    let pod = rig.pod()?;
    let mut config =
        pod.shell("echo up; exec sleep 1000").with_env("COLOUR", "dark blue").with_env("EMPTY", "");
    config.working_dir = "/srv/work".to_owned();
    config.security().run_as_user = Some(api::Int64Value { value: 1000 });
    config.security().run_as_group = Some(api::Int64Value { value: 1000 });
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    assert_eq!(
        container.sh("echo $COLOUR/${EMPTY-unset}/$(pwd)/$(id -u):$(id -g)")?,
        "dark blue///srv/work/1000:1000"
    );
    Ok(())
}

pub fn an_idle_exec_stays(rig: &Rig) -> Result<()> {
    // Longer than any time limit that a connection without traffic was seen to have in such runtimes would take half
    // an hour; the full run waits for that.
    let idle = std::env::var("CLOISTER_E2E_IDLE_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let mut session = container.session(&["cat"], Wants { stdin: true, tty: false })?;
    session.write(b"before\n")?;
    session.read_until("before\n", SOON)?;
    std::thread::sleep(Duration::from_secs(idle));
    session.write(b"after\n")?;
    session.read_until("after\n", SOON)?;
    session.close_stdin()?;
    assert_eq!(session.wait(SOON)?.code, 0);
    Ok(())
}

pub fn exec_in_an_ended_container_is_refused(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start(pod.shell("exit 0"))?;
    container.wait()?;
    assert!(container.exec(&["true"]).is_err());
    Ok(())
}
