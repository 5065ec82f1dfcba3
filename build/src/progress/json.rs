//! One JSON object a line, for programs.

use std::io::{self, Write};

use super::{Event, Show};

/// Writes events as lines of JSON.
pub struct Json<W> {
    out: W,
}

impl<W: Write> Json<W> {
    /// Onto `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write + Send> Show for Json<W> {
    fn show(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::progress::Outcome;

    #[test]
    fn each_event_is_one_flat_object() {
        let mut json = Json::new(Vec::new());
        json.show(&Event::Step { step: 1, name: "[1/2] FROM \"x\"".into() }).unwrap();
        let time = Duration::from_micros(123_456);
        json.show(&Event::Log { step: 1, time, stream: 2, line: "a".into() }).unwrap();
        json.show(&Event::End { step: 1, outcome: Outcome::Done { time } }).unwrap();
        json.show(&Event::End { step: 2, outcome: Outcome::Error { error: "e".into() } }).unwrap();
        let expected = r#"{"event":"step","step":1,"name":"[1/2] FROM \"x\""}
{"event":"log","step":1,"seconds":0.123,"stream":2,"line":"a"}
{"event":"end","step":1,"outcome":"done","seconds":0.123}
{"event":"end","step":2,"outcome":"error","error":"e"}
"#;
        assert_eq!(String::from_utf8(json.out).unwrap(), expected);
    }
}
