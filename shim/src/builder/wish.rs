//! What a builder's pod asks for in its annotations.

use std::time::Duration;

use cloister_builder::pod::{BUILDER, CACHE_BYTES, CACHE_KEY, DEADLINE, NETWORK};

use crate::failure::{Failure, Result};
use crate::pod::Setup;

/// What a builder's pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The key of its cache disk, which begins with Kubernetes' namespace; without one its state goes with the machine.
    pub cache: Option<String>,
    /// Bytes of the disk with its state; without a number those of any container.
    pub disk_bytes: Option<u64>,
    /// Whether it has the pod's network.
    pub network: bool,
    /// How long its machine may run.
    pub deadline: Option<Duration>,
}

impl Wish {
    /// Reads the annotations of a pod; `None` when it is no builder's.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn of(setup: &Setup) -> Result<Option<Self>> {
        let text = |name: &str| setup.annotations.get(name).map(String::as_str);
        if text(BUILDER) != Some("true") {
            return Ok(None);
        }
        let number = |name: &str| match text(name).map(|text| (text, text.parse::<u64>())) {
            None => Ok(None),
            Some((_, Ok(number))) if number > 0 => Ok(Some(number)),
            Some((text, _)) => Err(Failure::Invalid(format!("{name}: {text:?} is no positive number"))),
        };
        let network = match text(NETWORK) {
            None | Some("Egress") => true,
            Some("None") => false,
            Some(other) => return Err(Failure::Invalid(format!("{NETWORK}: {other:?} is no network"))),
        };
        // Never a tenant's word: disks of one namespace are out of the reach of all others.
        let namespace = setup.name.as_deref().and_then(|name| name.split_once('/')).map(|(space, _)| space);
        let cache =
            match (text(CACHE_KEY), namespace.filter(|space| !space.is_empty() && !space.contains('.'))) {
                (None, _) => None,
                (Some(key), Some(namespace)) => Some(format!("{namespace}.{key}")),
                (Some(_), None) => {
                    return Err(Failure::Invalid(format!(
                        "{CACHE_KEY} needs a pod of Kubernetes, in a namespace"
                    )));
                }
            };
        Ok(Some(Self {
            cache,
            disk_bytes: number(CACHE_BYTES)?,
            network,
            deadline: number(DEADLINE)?.map(Duration::from_secs),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(name: Option<&str>, annotations: &[(&str, &str)]) -> Setup {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let annotations = annotations.iter().map(own).collect();
        Setup { name: name.map(str::to_owned), annotations, ..Setup::default() }
    }

    #[test]
    fn annotations_say_what_a_builder_has() {
        let all =
            [(BUILDER, "true"), (NETWORK, "None"), (CACHE_KEY, "k"), (CACHE_BYTES, "10"), (DEADLINE, "5")];
        let wish = Wish::of(&setup(Some("team/app-1"), &all)).unwrap().unwrap();
        let deadline = Some(Duration::from_secs(5));
        assert_eq!(
            wish,
            Wish { cache: Some("team.k".into()), disk_bytes: Some(10), network: false, deadline }
        );
        let least = Wish::of(&setup(Some("team/app-1"), &all[..1])).unwrap().unwrap();
        assert_eq!(least, Wish { cache: None, disk_bytes: None, network: true, deadline: None });
        assert_eq!(Wish::of(&setup(Some("team/app-1"), &all[1..])).unwrap(), None);
    }

    #[test]
    fn nobody_reaches_the_disks_of_another_namespace() {
        for name in [None, Some("no-namespace"), Some("/app"), Some("a.b/app")] {
            assert!(Wish::of(&setup(name, &[(BUILDER, "true"), (CACHE_KEY, "k")])).is_err(), "{name:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_its_name() {
        for (name, value) in [(NETWORK, "Host"), (CACHE_BYTES, "1Gi"), (CACHE_BYTES, "0"), (DEADLINE, "-1")] {
            let error = Wish::of(&setup(Some("a/b"), &[(BUILDER, "true"), (name, value)])).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
