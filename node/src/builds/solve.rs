//! What BuildKit is asked for, of a spec.

use std::collections::BTreeMap;

use cloister_build::client::{Attestation, Network, Output, Solve};
use cloister_crds::{BuildOutput, ImageBuildSpec, Network as Wanted, Provenance};

/// Arguments of the Dockerfile: the spec's, and those that stand for proxies, which BuildKit keeps out of the image.
pub fn args(spec: &ImageBuildSpec) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    if let Some(proxy) = &spec.proxy {
        let none = (!proxy.no_proxy.is_empty()).then(|| proxy.no_proxy.join(","));
        let all =
            [("HTTP_PROXY", &proxy.http_proxy), ("HTTPS_PROXY", &proxy.https_proxy), ("NO_PROXY", &none)];
        for (name, value) in all {
            if let Some(value) = value {
                args.insert(name.to_owned(), value.clone());
                args.insert(name.to_lowercase(), value.clone());
            }
        }
    }
    args.extend(spec.args.iter().map(|arg| (arg.name.clone(), arg.value.clone())));
    args
}

/// What to build.
pub fn solve(spec: &ImageBuildSpec) -> Solve {
    let mut attestations = Vec::new();
    if let Some(wanted) = &spec.attestations {
        if wanted.sbom {
            attestations.push(Attestation::Sbom { generator: None });
        }
        match wanted.provenance {
            Provenance::None => {}
            Provenance::Min => attestations.push(Attestation::Provenance { max: false }),
            Provenance::Max => attestations.push(Attestation::Provenance { max: true }),
        }
    }
    Solve {
        target: spec.target.clone(),
        args: args(spec),
        labels: spec.labels.clone(),
        platforms: spec.platforms.clone(),
        source_date_epoch: spec.source_date_epoch.and_then(|seconds| u64::try_from(seconds).ok()),
        attestations,
        network: match spec.network {
            Wanted::None => Network::None,
            Wanted::Egress => Network::Sandbox,
        },
        ..Solve::default()
    }
}

/// Why what the spec asks for can't be had, if so: a frontend has an SBOM's scanner by pulling its image in the machine, whatever is
/// offered over the session.
pub fn refused(spec: &ImageBuildSpec) -> Option<&'static str> {
    let sbom = spec.attestations.as_ref().is_some_and(|wanted| wanted.sbom);
    let offline = spec.network == Wanted::None;
    (sbom && offline).then_some(
        "spec.attestations.sbom: BuildKit pulls the scanner's image itself; that takes network: Egress",
    )
}

/// What to make of the result.
pub fn exporter(spec: &ImageBuildSpec) -> Output {
    let mut output = Output::oci_store();
    if stays(&spec.output) {
        // Nothing is gained by compressing, in the guest, what is unpacked on nodes at once.
        output = output.with("compression", "uncompressed");
    } else {
        // Base images are on nodes as they are unpacked; nobody wants to download them so.
        output = output.with("compression", "gzip").with("force-compression", "true");
    }
    if spec.source_date_epoch.is_some() {
        output = output.rewrite_timestamps();
    }
    spec.annotations.iter().fold(output, |output, (key, value)| output.annotation(key, value))
}

/// Whether nodes are the only ones to get the image.
fn stays(output: &BuildOutput) -> bool {
    output.push.is_none() && output.archive.is_none()
}

/// Whether this node has to have the image: because pods may run it here, or for other nodes to fetch it.
pub fn imported(output: &BuildOutput) -> bool {
    !output.images.is_empty() && (output.nodes.is_some() || stays(output))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(mut more: Value) -> ImageBuildSpec {
        more["source"] = json!({});
        if more.get("output").is_none() {
            more["output"] = json!({"images": ["app"]});
        }
        serde_json::from_value(more).unwrap()
    }

    #[test]
    fn a_spec_says_what_is_built() {
        let solve = solve(&spec(json!({
            "target": "t", "args": [{"name": "A", "value": "1"}, {"name": "https_proxy", "value": "mine"}],
            "proxy": {"httpsProxy": "http://p:1", "noProxy": ["a", "b"]}, "network": "Egress",
            "sourceDateEpoch": 7,
        })));
        assert_eq!((solve.target.as_deref(), solve.network), (Some("t"), Network::Sandbox));
        assert_eq!(solve.args["A"], "1");
        assert_eq!(
            (solve.args["HTTPS_PROXY"].as_str(), solve.args["https_proxy"].as_str()),
            ("http://p:1", "mine")
        );
        assert_eq!((solve.args["no_proxy"].as_str(), solve.args.contains_key("http_proxy")), ("a,b", false));
        assert_eq!(solve.source_date_epoch, Some(7));
        assert_eq!(super::solve(&spec(json!({}))).network, Network::None);
    }

    #[test]
    fn as_much_is_said_of_a_build_as_was_asked_for() {
        for (wish, expected) in [("None", None), ("Min", Some(false)), ("Max", Some(true))] {
            let solve = solve(&spec(json!({"attestations": {"provenance": wish}})));
            let expected: Vec<_> = expected.map(|max| Attestation::Provenance { max }).into_iter().collect();
            assert_eq!(solve.attestations, expected, "{wish}");
        }
    }

    #[test]
    fn a_scanner_takes_a_network() {
        let sbom = |network: &str| spec(json!({"attestations": {"sbom": true}, "network": network}));
        assert!(refused(&sbom("None")).is_some_and(|why| why.contains("network: Egress")));
        assert_eq!(refused(&sbom("Egress")), None);
        assert_eq!(refused(&spec(json!({"attestations": {"provenance": "Max"}}))), None);
    }

    #[test]
    fn results_are_compressed_for_registries_only() {
        let local = spec(json!({"annotations": {"k": "v"}, "sourceDateEpoch": 0}));
        let expected =
            Output::oci_store().with("compression", "uncompressed").rewrite_timestamps().annotation("k", "v");
        assert_eq!(exporter(&local), expected);
        let push = json!({"images": ["r.example/app"], "push": {}});
        let packed = Output::oci_store().with("compression", "gzip").with("force-compression", "true");
        assert_eq!(exporter(&spec(json!({"output": push}))), packed);
    }

    #[test]
    fn this_node_has_what_nodes_may_ask_for() {
        for (output, here) in [
            (json!({"images": ["a"]}), true),
            (json!({"images": ["a"], "nodes": {}, "push": {}}), true),
            (json!({"images": ["a"], "push": {}}), false),
            (json!({"archive": {"claimName": "c"}}), false),
        ] {
            assert_eq!(imported(&spec(json!({"output": output.clone()})).output), here, "{output}");
        }
    }
}
