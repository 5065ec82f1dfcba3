//! `ls`.

use anyhow::{Context, Result};
use cloister_crds::ImageBuild;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::client::{Cluster, answer};
use crate::args::kube::{KubeGlobal, KubeLsArgs, ListFormat};
use crate::output;

/// Builds that are asked for at a time.
const PAGE: u32 = 500;

/// Lists builds.
pub async fn run(global: &KubeGlobal, args: &KubeLsArgs) -> Result<u8> {
    let cluster = Cluster::connect(global).await?;
    let api: Api<ImageBuild> =
        if args.all_namespaces { Api::all(cluster.client.clone()) } else { cluster.builds() };
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector.clone_from(&args.selector);
    let mut builds = Vec::new();
    loop {
        let page = answer(api.list(&params)).await.context("cannot list imagebuilds")?;
        builds.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => break,
        }
    }
    match args.output {
        Some(ListFormat::Json) => {
            output::json(&json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": builds}))?;
        }
        _ if builds.is_empty() && args.all_namespaces => eprintln!("No builds found"),
        _ if builds.is_empty() => eprintln!("No builds found in {} namespace.", cluster.namespace),
        wide => output::print(&table(&builds, args.all_namespaces, wide.is_some(), Timestamp::now()))?,
    }
    Ok(0)
}

fn table(builds: &[ImageBuild], namespaces: bool, wide: bool, now: Timestamp) -> String {
    let mut head = vec!["NAME", "IMAGE", "PHASE", "PROGRESS", "NODE", "AGE"];
    if namespaces {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["DIGEST", "NODES", "ATTEMPT", "REASON"]);
    }
    let rows: Vec<_> = builds.iter().map(|build| row(build, namespaces, wide, now)).collect();
    output::columns(&head, &rows)
}

fn row(build: &ImageBuild, namespaces: bool, wide: bool, now: Timestamp) -> Vec<String> {
    let status = build.status.clone().unwrap_or_default();
    let text =
        |value: Option<String>| value.filter(|text| !text.is_empty()).unwrap_or_else(|| "<none>".to_owned());
    let created = build.metadata.creation_timestamp.as_ref();
    let mut row = vec![
        build.name_any(),
        text(build.spec.output.images.first().cloned()),
        status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}")),
        text(status.progress),
        text(status.node),
        created.map_or_else(|| "<unknown>".to_owned(), |time| age(now.duration_since(time.0).as_secs())),
    ];
    if namespaces {
        row.insert(0, build.namespace().unwrap_or_default());
    }
    if wide {
        let nodes =
            status.nodes_selected.map(|of| format!("{}/{of}", status.nodes_ready.unwrap_or_default()));
        let attempt = status.attempts.last().map(|attempt| attempt.number.to_string());
        let reason = ["Stalled", "Reconciling", "Ready"].iter().find_map(|kind| {
            let found = status.conditions.iter().find(|condition| condition.type_ == *kind)?;
            Some(found.reason.clone())
        });
        row.extend([text(status.digest), text(nodes), text(attempt), text(reason)]);
    }
    row
}

/// An age as kubectl writes it: two units at most.
fn age(seconds: i64) -> String {
    let with = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => with(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => with(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: serde_json::Value) -> ImageBuild {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn ages_are_kubectl_s() {
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3599, "59m"),
            (7200, "120m"),
            (10_860, "3h1m"),
            (86_400, "24h"),
            (176_400, "2d1h"),
            (864_000, "10d"),
            (63_158_400, "2y1d"),
            (315_360_000, "10y"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn builds_are_listed_as_kubectl_lists_objects() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let builds = [
            build(serde_json::json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
                "metadata": {"name": "app", "namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"source": {}, "output": {"images": ["app:1"]}},
                "status": {"phase": "Succeeded", "progress": "3/3", "node": "n1", "digest": "sha256:ab",
                    "nodesReady": 1, "nodesSelected": 2, "attempts": [{"number": 4, "generation": 1, "trigger": "Spec"}]}})),
            build(serde_json::json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
                "metadata": {"name": "new"}, "spec": {"source": {}, "output": {}}})),
        ];
        assert_eq!(
            table(&builds, false, false, now),
            "NAME   IMAGE    PHASE       PROGRESS   NODE     AGE\n\
             app    app:1    Succeeded   3/3        n1       10m\n\
             new    <none>   Pending     <none>     <none>   <unknown>\n"
        );
        let wide = table(&builds, true, true, now);
        assert!(wide.starts_with("NAMESPACE   NAME   IMAGE"), "{wide}");
        assert!(wide.contains("sha256:ab   1/2"), "{wide}");
    }
}
