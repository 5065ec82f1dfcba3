//! Whether containerd would start pods of the handler `cloister` in microVMs, as its own answers tell.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::containerd::{self, Answers, Failure, Plugin, Version};
use super::{Check, first_line, version_in};

/// The handler that a pod's runtime class names.
const HANDLER: &str = "cloister";
/// What containerd finds the shim by.
const RUNTIME: &str = "io.containerd.cloister.v2";
/// The shim's program.
const SHIM: &str = "containerd-shim-cloister-v2";
/// Names of `cloister-node`'s proxies.
const SNAPSHOTTER: &str = "cloister";
const DIFFER: &str = "cloister-diff";
/// What has to follow every change of the configuration.
const RESTART: &str = "in /etc/containerd/config.toml, then: systemctl restart containerd";

/// containerd's CRI configuration as `Status` tells it: 1.7 and 2.1 spell alike what is read here.
#[derive(Debug, Deserialize)]
struct Config {
    containerd: Containerd,
}

#[derive(Debug, Deserialize)]
struct Containerd {
    #[serde(default)]
    runtimes: BTreeMap<String, Runtime>,
}

/// A runtime handler.
#[derive(Debug, Clone, Deserialize)]
pub struct Runtime {
    #[serde(default, rename = "runtimeType", alias = "runtime_type")]
    kind: String,
    /// The shim's program, when it is not to be found by its name.
    #[serde(default, rename = "runtimePath", alias = "runtime_path")]
    path: PathBuf,
    #[serde(default)]
    snapshotter: String,
}

impl Runtime {
    /// Whether `cloister-node` has the layers of its images.
    pub fn uses_layers(&self) -> bool {
        self.snapshotter == SNAPSHOTTER
    }
}

/// Asks the containerd at `socket`; also gives the handler, when there is one.
pub async fn checks(socket: &Path) -> (Vec<Check>, Option<Runtime>) {
    let (mut checks, runtime) = match containerd::ask(socket, &[SNAPSHOTTER, DIFFER]).await {
        Ok(answers) => judge(socket, &answers),
        Err(failure) => (vec![unreachable(socket, failure)], None),
    };
    checks.push(shim(runtime.as_ref()));
    (checks, runtime)
}

fn unreachable(socket: &Path, failure: Failure) -> Check {
    let (detail, fix) = match failure {
        Failure::Unreachable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (error.to_string(), "run this as root")
        }
        Failure::Unreachable(error) => (
            error.to_string(),
            "systemctl start containerd (version 1.7 or 2.x), or say where it listens with --containerd",
        ),
        Failure::NoCri => (
            "does not serve the CRI v1".to_owned(),
            "remove the CRI plugin from disabled_plugins in /etc/containerd/config.toml, then: systemctl restart containerd",
        ),
        Failure::Call(message) => (message, "journalctl -u containerd says why"),
    };
    Check::missing("containerd", format!("{}: {detail}", socket.display()), fix)
}

fn judge(socket: &Path, answers: &Answers) -> (Vec<Check>, Option<Runtime>) {
    let mut checks = vec![version(socket, &answers.version)];
    let config = match serde_json::from_str::<Config>(&answers.config) {
        Ok(config) => config.containerd,
        Err(error) => {
            let detail = format!("containerd's configuration cannot be read: {error}");
            checks.push(Check::warning("handler", detail, "look at `containerd config dump` yourself"));
            return (checks, None);
        }
    };
    let table = match version_in(&answers.version.runtime_version) {
        Some((1, _)) => "plugins.\"io.containerd.grpc.v1.cri\".containerd",
        _ => "plugins.\"io.containerd.cri.v1.runtime\".containerd",
    };
    let runtime = config.runtimes.get(HANDLER);
    checks.push(handler(table, runtime));
    if let Some(runtime) = runtime {
        checks.push(snapshotter(table, runtime, &answers.plugins));
        if runtime.uses_layers() {
            checks.push(proxy("differ", DIFFER, "diff", &answers.plugins));
        }
    }
    (checks, runtime.cloned())
}

fn version(socket: &Path, version: &Version) -> Check {
    const NAME: &str = "containerd";
    let detail = format!("{} ({} {})", socket.display(), version.runtime_name, version.runtime_version);
    match (version.runtime_name.as_str(), version_in(&version.runtime_version)) {
        ("containerd", Some((1, 7) | (2, _))) => Check::ok(NAME, detail),
        ("containerd", _) => Check::missing(NAME, detail, "install containerd 1.7 or 2.x"),
        _ => Check::missing(NAME, detail, "microVMs need containerd: name its socket with --containerd"),
    }
}

fn handler(table: &str, runtime: Option<&Runtime>) -> Check {
    const NAME: &str = "handler";
    let set = format!("runtime_type = \"{RUNTIME}\"");
    match runtime {
        None => Check::missing(
            NAME,
            format!("containerd has no runtime handler {HANDLER}"),
            format!(
                "add [{table}.runtimes.{HANDLER}] with {set} and snapshotter = \"{SNAPSHOTTER}\" {RESTART}"
            ),
        ),
        Some(runtime) if runtime.kind != RUNTIME && !runtime.kind.ends_with(SHIM) => Check::missing(
            NAME,
            format!("{HANDLER} has the runtime type {:?}", runtime.kind),
            format!("{set} below [{table}.runtimes.{HANDLER}] {RESTART}"),
        ),
        Some(runtime) => Check::ok(NAME, format!("{HANDLER} is {}", runtime.kind)),
    }
}

fn snapshotter(table: &str, runtime: &Runtime, plugins: &[Plugin]) -> Check {
    const NAME: &str = "snapshotter";
    if !runtime.uses_layers() {
        let found =
            if runtime.snapshotter.is_empty() { "containerd's default" } else { &runtime.snapshotter };
        return Check::warning(
            NAME,
            format!("{found}: images are shared with microVMs file by file"),
            format!("snapshotter = \"{SNAPSHOTTER}\" below [{table}.runtimes.{HANDLER}] {RESTART}"),
        );
    }
    proxy(NAME, SNAPSHOTTER, "snapshot", plugins)
}

/// A proxy plugin; whether its daemon answers is asked of the daemon.
fn proxy(name: &'static str, id: &str, kind: &str, plugins: &[Plugin]) -> Check {
    match plugins.iter().find(|plugin| plugin.id == id) {
        None => Check::missing(
            name,
            format!("containerd has no plugin {id}"),
            format!(
                "add [proxy_plugins.{id}] with type = \"{kind}\" and cloister-node's socket as address {RESTART}"
            ),
        ),
        Some(Plugin { failure: Some(failure), .. }) => {
            Check::missing(name, format!("{id}: {}", failure.message), "journalctl -u containerd says more")
        }
        Some(_) => Check::ok(name, format!("{id} is loaded")),
    }
}

/// containerd's own PATH cannot be asked for.
fn shim(runtime: Option<&Runtime>) -> Check {
    const NAME: &str = "shim";
    let install = format!("install {SHIM} in /usr/local/bin, or name it with runtime_path {RESTART}");
    let named = runtime.and_then(|runtime| {
        [runtime.path.as_path(), Path::new(&runtime.kind)].into_iter().find(|path| path.is_absolute())
    });
    let found = match named {
        Some(path) => path.is_file().then(|| path.to_path_buf()),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path)
                .chain(["/usr/local/bin", "/usr/bin"].map(PathBuf::from))
                .map(|folder| folder.join(SHIM))
                .find(|path| path.is_file())
        }
    };
    let Some(path) = found else {
        let place = named.map_or("PATH, /usr/local/bin, /usr/bin".into(), |path| path.display().to_string());
        return Check::missing(NAME, format!("{SHIM} not found in {place}"), install);
    };
    match first_line(&path, "-v") {
        None => Check::missing(NAME, format!("{} -v says nothing", path.display()), install),
        Some(version) if named.is_some() => Check::ok(NAME, format!("{} ({version})", path.display())),
        Some(version) => {
            Check::ok(NAME, format!("{} ({version}); containerd looks in a PATH of its own", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;

    /// What 1.7.24 and 2.1.9 print, less what is not about runtimes.
    const V1_7: &str = r#"{"containerd":{"snapshotter":"overlayfs","defaultRuntimeName":"runc","runtimes":{"cloister":
        {"runtimeType":"io.containerd.cloister.v2","runtimePath":"","runtimeEngine":"","PodAnnotations":["cloister.dev/*"],
        "ContainerAnnotations":null,"runtimeRoot":"","options":null,"privileged_without_host_devices":true,
        "baseRuntimeSpec":"","cniConfDir":"","cniMaxConfNum":0,"snapshotter":"cloister","sandboxMode":"podsandbox"}},
        "noPivot":false,"disableSnapshotAnnotations":true,"discardUnpackedLayers":false},"cni":{"binDir":"/usr/lib/cni"}}"#;
    const V2_1: &str = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"cloister":
        {"runtimeType":"io.containerd.cloister.v2","runtimePath":"","PodAnnotations":["cloister.dev/*"],
        "ContainerAnnotations":null,"options":null,"privileged_without_host_devices":true,"cgroupWritable":false,
        "baseRuntimeSpec":"","cniConfDir":"","cniMaxConfNum":0,"snapshotter":"cloister","sandboxer":"podsandbox",
        "io_type":""}},"ignoreBlockIONotEnabledErrors":false},"cni":{"binDir":"","binDirs":["/usr/lib/cni"]}}"#;

    fn judged(version: &str, config: &str, plugins: &[&str]) -> Vec<(Verdict, String)> {
        let answers = Answers {
            version: Version { runtime_name: "containerd".into(), runtime_version: version.into() },
            config: config.into(),
            plugins: plugins.iter().map(|id| Plugin { id: (*id).into(), failure: None }).collect(),
        };
        let (checks, _) = judge(Path::new("/c.sock"), &answers);
        checks.into_iter().map(|check| (check.verdict, check.fix.unwrap_or_default())).collect()
    }

    fn verdicts(version: &str, config: &str, plugins: &[&str]) -> Vec<Verdict> {
        judged(version, config, plugins).into_iter().map(|(verdict, _)| verdict).collect()
    }

    const BOTH: [&str; 2] = [SNAPSHOTTER, DIFFER];

    #[test]
    fn what_both_versions_print_is_understood() {
        use Verdict::{Missing, Ok, Warning};
        assert_eq!(verdicts("2.1.9+unknown", V2_1, &BOTH), [Ok, Ok, Ok, Ok]);
        assert_eq!(verdicts("1.7.24~ds1", V1_7, &BOTH), [Ok, Ok, Ok, Ok]);
        assert_eq!(verdicts("2.1.9", V2_1, &[]), [Ok, Ok, Missing, Missing]);
        let overlayfs = V2_1.replace("\"snapshotter\":\"cloister\"", "\"snapshotter\":\"overlayfs\"");
        assert_eq!(verdicts("2.1.9", &overlayfs, &[]), [Ok, Ok, Warning]);
        assert_eq!(verdicts("1.6.20", V1_7, &BOTH)[0], Missing);
        assert_eq!(verdicts("2.1.9", "{}", &BOTH), [Ok, Warning]);
    }

    #[test]
    fn advice_names_the_table_of_the_version() {
        for (version, config, table) in [
            ("1.7.24~ds1", V1_7, "io.containerd.grpc.v1.cri"),
            ("2.1.9", V2_1, "io.containerd.cri.v1.runtime"),
        ] {
            for other in
                [config.replace("\"cloister\":", "\"other\":"), config.replace("cloister.v2", "runc.v2")]
            {
                let (verdict, fix) = judged(version, &other, &BOTH).remove(1);
                assert_eq!(verdict, Verdict::Missing);
                assert!(fix.contains(table) && fix.contains(RUNTIME), "{fix}");
            }
        }
    }
}
