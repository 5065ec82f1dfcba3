//! Chain IDs (OCI image-spec, config.md, "Layer ChainID").

use cloister_image::Digest;

/// The chain ID of `layer` on top of the layers with chain ID `parent`.
pub fn chain_id(parent: Option<&Digest>, layer: &Digest) -> Digest {
    match parent {
        None => *layer,
        Some(parent) => Digest::of(format!("{parent} {layer}").as_bytes()),
    }
}

/// The layer among `known` that makes `target` out of `parent`. One hash for each layer: a microsecond.
pub fn completing(
    parent: Option<&Digest>,
    target: &Digest,
    known: impl IntoIterator<Item = Digest>,
) -> Option<Digest> {
    known.into_iter().find(|layer| chain_id(parent, layer) == *target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn chains_are_those_of_the_specification() {
        let (a, b, c) = (digest("a"), digest("b"), digest("c"));
        assert_eq!(chain_id(None, &a), a);
        let ab = chain_id(Some(&a), &b);
        assert_eq!(ab, Digest::of(format!("{a} {b}").as_bytes()));
        let abc = chain_id(Some(&ab), &c);
        assert_ne!(abc, ab);
        assert_ne!(abc, chain_id(Some(&a), &c));
    }

    #[test]
    fn only_the_layer_that_fits_is_found() {
        let known = [digest("a"), digest("b"), digest("c")];
        let below = digest("below");
        let target = chain_id(Some(&below), &known[1]);
        assert_eq!(completing(Some(&below), &target, known), Some(known[1]));
        assert_eq!(completing(None, &target, known), None);
        assert_eq!(completing(None, &known[2], known), Some(known[2]));
        assert_eq!(completing(Some(&digest("other")), &target, known), None);
        assert_eq!(completing(Some(&below), &target, [known[0]]), None);
    }
}
