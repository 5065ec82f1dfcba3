//! The images a build begins from: this machine's, or pulled by it. The builder has no network and gets no credentials.

use anyhow::{Context, Result};
use cloister_build::client::{self, Offer, Session, Solve};
use cloister_build::dockerfile;
use cloister_image::{Image, Reference, Store};

use super::inputs::Inputs;
use crate::args::build::BuildArgs;
use crate::command::image;

/// Images by the name the Dockerfile uses, held in the store.
pub struct Bases(Vec<(Reference, Image)>);

/// Opens every image that the Dockerfile names, and pulls those that are not here.
pub fn open(store: &Store, inputs: &Inputs, args: &BuildArgs) -> Result<Bases> {
    let mut all = Vec::new();
    for name in dockerfile::images(&inputs.dockerfile_text(), &inputs.args) {
        // What is no reference, BuildKit refuses with the line it stands in.
        let Ok(reference) = name.parse::<Reference>() else { continue };
        if args.pull {
            image::pull(store, &reference, &args.registry)?;
        }
        let found = image::local_or_pull(store, &name, &args.registry)
            .with_context(|| format!("the Dockerfile begins from {}", reference.familiar()))?;
        all.push((reference, found));
    }
    Ok(Bases(all))
}

impl Bases {
    /// Offers the images to the build under their names.
    pub fn offer(
        &self,
        store: &Store,
        mut session: Session,
        solve: &mut Solve,
    ) -> Result<Session, client::Error> {
        for (number, (reference, image)) in self.0.iter().enumerate() {
            let name = format!("base{number}");
            let (offer, manifest) = Offer::image(store, image)?;
            session = session.content(format!("oci:{name}"), offer);
            solve.base_image(reference, &name, manifest);
        }
        Ok(session)
    }
}
