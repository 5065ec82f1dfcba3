use bollard_buildkit_proto::google::protobuf::Timestamp;

use super::*;

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn vertex(digest: &str, started: i64, completed: i64) -> Vertex {
    Vertex {
        digest: digest.to_owned(),
        name: format!("RUN {digest}"),
        started: at(started).filter(|_| started > 0),
        completed: at(completed).filter(|_| completed > 0),
        ..Default::default()
    }
}

fn steps(vertexes: Vec<Vertex>) -> StatusResponse {
    StatusResponse { vertexes, ..Default::default() }
}

fn log(digest: &str, msg: &str) -> StatusResponse {
    let log = VertexLog { vertex: digest.to_owned(), timestamp: at(12), stream: 1, msg: msg.into() };
    StatusResponse { logs: vec![log], ..Default::default() }
}

fn lines(events: &[Event]) -> Vec<&str> {
    let mut lines = Vec::new();
    for event in events {
        if let Event::Log { line, .. } = event {
            lines.push(line.as_str());
        }
    }
    lines
}

#[test]
fn steps_are_numbered_as_they_begin_and_end_once() {
    let mut tracker = Tracker::default();
    assert!(tracker.update(steps(vec![vertex("a", 0, 0), vertex("b", 0, 0)])).is_empty());
    let began = tracker.update(steps(vec![vertex("b", 10, 0)]));
    assert_eq!(began, [Event::Step { step: 1, name: "RUN b".into() }]);
    let ended = Event::End { step: 1, outcome: Outcome::Done { time: Duration::from_secs(3) } };
    assert_eq!(tracker.update(steps(vec![vertex("b", 10, 13)])), [ended]);
    assert!(tracker.update(steps(vec![vertex("b", 10, 13), vertex("b", 10, 0)])).is_empty());
    let cached = Vertex { cached: true, ..vertex("a", 14, 14) };
    let expected =
        [Event::Step { step: 2, name: "RUN a".into() }, Event::End { step: 2, outcome: Outcome::Cached }];
    assert_eq!(tracker.update(steps(vec![cached])), expected);
}

#[test]
fn a_step_that_begins_again_counts_from_then() {
    let mut tracker = Tracker::default();
    tracker.update(steps(vec![vertex("a", 10, 11)]));
    assert!(tracker.update(steps(vec![vertex("a", 20, 0)])).is_empty());
    let ended = Event::End { step: 1, outcome: Outcome::Done { time: Duration::from_secs(5) } };
    assert_eq!(tracker.update(steps(vec![vertex("a", 20, 25)])), [ended]);
}

#[test]
fn the_failed_step_keeps_its_last_lines() {
    let mut tracker = Tracker::default();
    tracker.update(steps(vec![vertex("a", 10, 0)]));
    for i in 0..30 {
        tracker.update(log("a", &format!("line {i}\n")));
    }
    let mut failed = vertex("a", 10, 15);
    failed.error = "process \"false\" did not complete successfully: exit code: 1".into();
    let mut report = log("a", "unfinished");
    report.vertexes = vec![failed];
    let events = tracker.update(report);
    assert_eq!(lines(&events), ["unfinished"]);
    assert!(matches!(events.last(), Some(Event::End { outcome: Outcome::Error { .. }, .. })));
    let failed = tracker.failed(None).unwrap();
    assert_eq!((failed.step, failed.name.as_str(), failed.tail.len()), (1, "RUN a", TAIL));
    assert_eq!(failed.tail.last().unwrap(), "unfinished");
    assert_eq!(tracker.failed(Some("a")).unwrap(), failed);
}

#[test]
fn floods_are_cut_with_one_note() {
    let mut tracker = Tracker::default();
    let piece = format!("{}\n", "x".repeat(99_999));
    let (mut got, mut notes) = (0, 0);
    for _ in 0..100 {
        for event in tracker.update(log("a", &piece)) {
            match event {
                Event::Log { line, .. } => got += line.len(),
                Event::Note { .. } => notes += 1,
                _ => {}
            }
        }
    }
    assert!(got < 1 << 20 && notes == 1, "{got} bytes, {notes} notes");
    let many = (0..MAX_STEPS + 5).map(|i| vertex(&i.to_string(), 1, 0)).collect();
    let events = tracker.update(steps(many));
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Note { .. })).count(), 1);
    assert_eq!(tracker.steps.len(), MAX_STEPS);
}

#[test]
fn parts_are_told_of_now_and_then() {
    let mut tracker = Tracker::default();
    let mut tell = |current, second, completed| {
        let status = VertexStatus {
            id: "layer".into(),
            vertex: "a".into(),
            current,
            total: 100,
            started: at(10),
            timestamp: at(second),
            completed: at(second).filter(|_| completed),
            ..Default::default()
        };
        let report = StatusResponse { statuses: vec![status], ..Default::default() };
        tracker.update(report).into_iter().filter(|event| matches!(event, Event::Status { .. })).count()
    };
    assert_eq!([tell(0, 10, false), tell(2, 11, false), tell(10, 12, false)], [1, 0, 1]);
    assert_eq!([tell(11, 18, false), tell(100, 19, true), tell(100, 19, true)], [1, 1, 0]);
}

#[test]
fn warnings_are_told_once() {
    let mut tracker = Tracker::default();
    let warning = VertexWarning { short: b"JSON \x1b[1margs".to_vec(), ..Default::default() };
    let report = StatusResponse { warnings: vec![warning.clone(), warning], ..Default::default() };
    let events = tracker.update(report);
    assert!(matches!(events.as_slice(), [Event::Warning { text, step: None, .. }] if text == "JSON args"));
}
