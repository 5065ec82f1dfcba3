//! `crds/yaml` in a real API server. It is of 1.20 and does not know CEL: those rules have tests in `crds`.

use std::fs;

use cloister_e2e::Cluster;
use cloister_e2e::lab::checkout;

/// A cluster that knows ImageBuild.
fn cluster() -> Cluster {
    let cluster = Cluster::control_plane().unwrap();
    cluster.install_definition().unwrap();
    let state = cluster.get(&["crd", "imagebuilds.cloister.dev"]).unwrap();
    for condition in state["status"]["conditions"].as_array().unwrap() {
        assert_eq!(condition["status"], "True", "{condition}");
    }
    cluster
}

fn examples() -> Vec<String> {
    let folder = fs::read_dir(checkout().join("crds/examples")).unwrap();
    folder.map(|entry| entry.unwrap().path().to_string_lossy().into_owned()).collect()
}

#[test]
fn the_api_server_takes_the_definition_and_its_examples() {
    let cluster = cluster();
    for example in examples() {
        cluster.kubectl(&["apply", "-f", &example]).unwrap_or_else(|error| panic!("{example}: {error:#}"));
    }
    eprintln!("memory: {:?}", cluster.memory());
}
