//! A real Prometheus in a cluster's cell.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::cell::wait_for;
use crate::cluster::{Cluster, Daemon};
use crate::http;
use crate::lab::cache;

/// Where it listens, in the cell.
const ADDRESS: &str = "127.0.0.1:9090";
/// How long it may take to start, and to answer.
const START: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(20);
/// The job that the chart's PodMonitor makes.
const JOB: &str = "cloister-system/cloister";

/// Whom it asks.
#[derive(Debug, Clone)]
pub struct Target {
    /// `IP:PORT`, which becomes the label `instance`.
    pub address: String,
    /// What else is known of it.
    pub labels: Vec<(&'static str, String)>,
}

/// One series of an answer.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its labels.
    pub labels: Map<String, Value>,
    /// Seconds since 1970, and the values that are numbers.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// The value of a label; empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// A running Prometheus; ends when dropped.
pub struct Prometheus<'c> {
    cluster: &'c Cluster,
    daemon: Daemon,
}

impl<'c> Prometheus<'c> {
    /// Starts one that asks these targets every second, and evaluates a file of rules.
    pub fn start(cluster: &'c Cluster, targets: &[Target], rules: &Path) -> Result<Self> {
        let program = cache()?.join("tools/prometheus/usr/bin/prometheus");
        ensure!(program.exists(), "{} is missing: run make setup", program.display());
        let folder = cluster.root().join("prometheus");
        fs::create_dir(&folder)?;
        let targets: Vec<Value> = targets
            .iter()
            .map(|target| {
                let labels: Map<String, Value> =
                    target.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
                json!({"targets": [target.address], "labels": labels})
            })
            .collect();
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": targets}],
        });
        let file = folder.join("prometheus.yml");
        fs::write(&file, config.to_string())?;
        let daemon = Daemon::new("prometheus", &program, &folder)
            .path("--config.file", &file)
            .path("--storage.tsdb.path", &folder.join("data"))
            .option("--web.listen-address", ADDRESS);
        let prometheus = Self { cluster, daemon };
        prometheus.daemon.start(cluster.cell())?;
        wait_for("Prometheus", START, || {
            prometheus.daemon.check()?;
            Ok(prometheus.get(ADDRESS, "/-/ready").ok().map(drop))
        })
        .with_context(|| prometheus.daemon.log_tail(20))?;
        Ok(prometheus)
    }

    /// A page that something in reach of Prometheus serves.
    pub fn get(&self, address: &str, path: &str) -> Result<String> {
        let get = || -> Result<String> {
            let stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
            stream.set_read_timeout(Some(ANSWER))?;
            http::get(stream, path)
        };
        self.cluster.cell().inside(get)?
    }

    /// The `data` of an answer of its API.
    pub fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let query: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let answer = self.get(ADDRESS, &format!("/api/v1/{what}?{}", query.join("&")))?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer["status"] == "success", "{what} {parameters:?}: {answer}");
        // Such as a rate of what is no counter.
        for doubt in ["warnings", "infos"] {
            ensure!(answer[doubt].is_null(), "{what} {parameters:?}: {}", answer[doubt]);
        }
        Ok(answer["data"].take())
    }

    /// What a query gives now.
    pub fn now(&self, query: &str) -> Result<Vec<Series>> {
        series(&self.ask("query", &[("query", query)])?)
    }

    /// What a query gives from one time to another, in seconds since 1970, at every `step` seconds.
    pub fn over(&self, query: &str, (from, to): (f64, f64), step: u32) -> Result<Vec<Series>> {
        let (from, to, step) = (from.to_string(), to.to_string(), step.to_string());
        let parameters = [("query", query), ("start", &from), ("end", &to), ("step", &step)];
        series(&self.ask("query_range", &parameters)?)
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.daemon.log_tail(40)
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.stop(true) {
            eprintln!("prometheus: {error:#}");
        }
    }
}

/// Seconds since 1970.
pub fn time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The series of a vector or a matrix, without points that are no numbers.
fn series(data: &Value) -> Result<Vec<Series>> {
    let all = data["result"].as_array().with_context(|| format!("no result: {data}"))?;
    let one = |result: &Value| {
        let points = result["values"].as_array().cloned().unwrap_or_else(|| vec![result["value"].clone()]);
        let number = |point: &Value| Some((point[0].as_f64()?, point[1].as_str()?.parse::<f64>().ok()?));
        Series {
            labels: result["metric"].as_object().cloned().unwrap_or_default(),
            points: points.iter().filter_map(number).filter(|(_, value)| value.is_finite()).collect(),
        }
    };
    Ok(all.iter().map(one).filter(|series| !series.points.is_empty()).collect())
}

/// As a part of a URL.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
