//! The images a build begins from: this machine's, or pulled by it.

use anyhow::{Context, Result};
use cloister_build::client::Offer;
use cloister_build::dockerfile;
use cloister_build::job::Base;
use cloister_image::{Reference, Store};

use super::inputs::Inputs;
use crate::args::build::BuildArgs;
use crate::command::image;

/// Opens every image that the Dockerfile names, and pulls those that are not here.
pub fn open(store: &Store, inputs: &Inputs, args: &BuildArgs) -> Result<Vec<Base>> {
    let mut all = Vec::new();
    for name in dockerfile::images(&inputs.dockerfile_text(), &inputs.args) {
        // What is no reference, BuildKit refuses with the line it stands in.
        let Ok(reference) = name.parse::<Reference>() else { continue };
        if args.pull {
            image::pull(store, &reference, &args.registry)?;
        }
        let found = image::local_or_pull(store, &name, &args.registry)
            .with_context(|| format!("the Dockerfile begins from {}", reference.familiar()))?;
        let (offer, manifest) = Offer::image(store, &found)?;
        all.push(Base { reference, offer, manifest });
    }
    Ok(all)
}
