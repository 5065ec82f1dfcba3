//! Steps of a build without a network fail soon when they try it, and are told why.

use std::time::Duration;

use crate::site::{Site, text};

/// Longest a lookup or a connection may take in a step, by the step's own clock.
const SOON: Duration = Duration::from_secs(2);

/// Every way to try that busybox has, each with its time; then one that ends the step.
const TRY: &str = r#"FROM base
RUN took() { read from _ </proc/uptime; "$@"; read to _ </proc/uptime; \
        echo "took $((${to%.*}${to#*.}0 - ${from%.*}${from#*.}0)) ms: $*"; }; \
    took wget http://a.example/; took nslookup a.example; took wget http://192.0.2.1/; took nc a.example 80; \
    cat /etc/resolv.conf; wget http://b.example/
"#;

#[test]
fn a_step_that_tries_the_network_fails_at_once_and_is_told_how_to_get_one() {
    let site = Site::new();
    let refused = site.refuses(&site.context("try", &[("Dockerfile", TRY)]), &["-t", "try"]);
    let reason = refused.reason();
    assert!(reason.starts_with("cloister: NoNetwork: ") && reason.contains("--network egress"), "{reason}");
    let mut tries = 0;
    for (_, took) in refused.said.lines().filter_map(|line| line.split_once(" took ")) {
        // The command itself is shown too.
        let Some(Ok(took)) = took.split_once(" ms: ").map(|(number, _)| number.parse()) else { continue };
        assert!(Duration::from_millis(took) <= SOON, "{}", refused.said);
        tries += 1;
    }
    assert!(tries >= 4, "{}", refused.said);
    assert_eq!(refused.said.matches("[steps of this build have no network]").count(), 1, "{}", refused.said);
    assert!(refused.said.contains("options timeout:1 attempts:1"), "{}", refused.said);
}

#[test]
fn a_step_that_can_do_without_the_network_does_and_its_real_failure_is_told() {
    let site = Site::new();
    let careful = "FROM base\nRUN wget http://a.example/x || echo without\n";
    let built = site.build(&site.context("careful", &[("Dockerfile", careful)]), &["-t", "careful"]);
    assert!(built.status.success() && text(&built).contains(" without"), "{}", text(&built));
    let broken = "FROM base\nRUN wget http://a.example/x; seq 20; exit 3\n";
    let refused = site.refuses(&site.context("broken", &[("Dockerfile", broken)]), &["-t", "broken"]);
    assert!(refused.reason().ends_with("exit code 3"), "{}", refused.said);
    assert!(!refused.reason().contains("NoNetwork"), "{}", refused.said);
}
