//! Logs are complete and in order.

use std::time::{Duration, Instant};

use anyhow::Result;
use cloister_e2e::Rig;

cases!(
    large_output_is_complete_and_in_order,
    output_of_a_process_that_ends_at_once_is_complete,
    both_outputs_are_told_apart,
    lines_without_an_end_and_binary_bytes_survive,
    a_log_goes_on_after_it_was_rotated,
    a_slow_reader_does_not_stop_control_calls,
);

pub fn large_output_is_complete_and_in_order(rig: &Rig) -> Result<()> {
    const MIB: usize = 64;
    let pod = rig.pod()?;
    // Each mebibyte begins with its number and is then filled up.
    let script = format!(
        "yes fillingfillingfillingfillingfillingfillingfillingfillingfilling | head -c {} >/tmp/filling
         i=0; while [ $i -lt {MIB} ]; do printf '%063d\\n' $i; cat /tmp/filling; i=$((i+1)); done",
        (1 << 20) - 64
    );
    let container = pod.start(pod.shell(&script))?;
    let status = container.wait_at_most(Duration::from_secs(240))?;
    assert_eq!(status.exit_code, 0);
    let output = container.output_at_end()?;
    assert_eq!(output.len(), MIB << 20);
    let first = output[64..1 << 20].to_vec();
    for (index, block) in output.chunks(1 << 20).enumerate() {
        let number: usize = std::str::from_utf8(&block[..63])?.parse()?;
        assert_eq!(number, index);
        assert!(block[64..] == first, "block {index} differs");
    }
    Ok(())
}

pub fn output_of_a_process_that_ends_at_once_is_complete(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    for round in 0..5 {
        let (code, output) = pod.once(&format!("seq 1 20000; exit {round}"))?;
        assert_eq!(code, round);
        assert_eq!(output.lines().count(), 20000);
        assert!(output.ends_with("\n20000\n"));
    }
    let mut config = pod.shell("");
    config.command = ["echo", "gone at once"].map(str::to_owned).into();
    assert_eq!(pod.once_in(config)?, (0, "gone at once\n".to_owned()));
    Ok(())
}

pub fn both_outputs_are_told_apart(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start(pod.shell("for i in 1 2 3; do echo out $i; echo err $i >&2; done"))?;
    container.wait()?;
    container.output_at_end()?;
    for (stream, word) in [("stdout", "out"), ("stderr", "err")] {
        let lines = container.lines()?.into_iter().filter(|line| line.stream == stream);
        let text: Vec<u8> = lines.flat_map(|line| line.bytes).collect();
        assert_eq!(String::from_utf8(text)?, format!("{word} 1\n{word} 2\n{word} 3\n"));
    }
    Ok(())
}

pub fn lines_without_an_end_and_binary_bytes_survive(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let script = "printf 'a\\0b\\377c\\n'; head -c 100000 /dev/zero | tr '\\0' x; printf 'no end'";
    let container = pod.start(pod.shell(script))?;
    container.wait()?;
    let mut wanted = b"a\0b\xffc\n".to_vec();
    wanted.extend([b'x'; 100_000]);
    wanted.extend(b"no end");
    let mut output = container.output_at_end()?;
    // The format cannot say that the very last line had no end.
    if output.last() == Some(&b'\n') {
        output.pop();
    }
    assert!(output == wanted, "{} bytes instead of {}", output.len(), wanted.len());
    Ok(())
}

pub fn a_log_goes_on_after_it_was_rotated(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start_shell(
        "echo before; read -t 2 _; trap 'echo after; exit' TERM; sleep 1000 & wait",
        "before\n",
    )?;
    let old = container.log.with_extension("old");
    std::fs::rename(&container.log, &old)?;
    let request = cloister_e2e::cri::api::ReopenContainerLogRequest { container_id: container.id.clone() };
    rig.lab.cri.reopen_container_log(request)?;
    std::thread::sleep(Duration::from_millis(300));
    container.stop(10)?;
    assert_eq!(container.output_at_end()?, b"after\n");
    assert!(std::fs::read_to_string(&old)?.ends_with("before\n"));
    Ok(())
}

pub fn a_slow_reader_does_not_stop_control_calls(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let flood = container.session(&["sh", "-c", "yes | head -c 30000000"], Default::default())?;
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(container.sh("echo quick")?, "quick");
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    }
    assert_eq!(flood.wait(Duration::from_secs(120))?.stdout.len(), 30_000_000);
    Ok(())
}
