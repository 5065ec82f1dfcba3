//! The ImageBuild that a command line means.

use anyhow::{Result, bail};
use cloister_crds::{
    Attestations, BuildArg, BuildCache, BuildSecret, CacheExport, CacheMode, ImageBuild, ImageBuildSpec,
    Network, Provenance, PushOutput, SecretRef,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::pack::Packed;
use super::selector;
use crate::args::build;
use crate::args::kube::KubeBuildArgs;
use crate::command::build::caches::{self, Place};
use crate::command::build::inputs::pairs;

/// Makes it; `secrets` are those of the cluster.
pub fn object(
    name: &str,
    namespace: Option<&str>,
    args: &KubeBuildArgs,
    packed: &Packed,
    secrets: Vec<BuildSecret>,
) -> Result<ImageBuild> {
    // What is not said has the defaults of the API.
    let mut spec: ImageBuildSpec = serde_json::from_value(json!({
        "source": {"upload": {"digest": packed.digest}},
        "dockerfile": packed.dockerfile,
        "output": {"images": args.tags},
    }))?;
    spec.target.clone_from(&args.target);
    let given = pairs("--build-arg", &args.build_args, true)?;
    spec.args = given.into_iter().map(|(name, value)| BuildArg { name, value }).collect();
    spec.labels = pairs("--label", &args.labels, false)?;
    spec.secrets = secrets;
    spec.platforms.clone_from(&args.platforms);
    spec.network = match args.network {
        build::Network::None => Network::None,
        build::Network::Egress => Network::Egress,
    };
    spec.cache = cache(args)?;
    spec.image_pull_secrets = args.pull_secrets.iter().map(|name| SecretRef { name: name.clone() }).collect();
    let provenance = match args.provenance {
        build::Provenance::None => Provenance::None,
        build::Provenance::Min => Provenance::Min,
        build::Provenance::Max => Provenance::Max,
    };
    let attested = args.sbom || provenance != Provenance::None;
    spec.attestations = attested.then_some(Attestations { sbom: args.sbom, provenance });
    spec.output.nodes = args.nodes.as_deref().map(selector::parse).transpose()?;
    spec.output.push = args.push.as_ref().map(|registry| PushOutput {
        registry: Some(registry.clone()),
        credentials: args.push_secret.clone().map(|name| SecretRef { name }),
    });
    if let Some(timeout) = args.timeout {
        spec.timeout = timeout;
    }
    let mut build = ImageBuild::new(name, spec);
    build.metadata.namespace = namespace.map(str::to_owned);
    Ok(build)
}

fn cache(args: &KubeBuildArgs) -> Result<BuildCache> {
    let image = |place| match place {
        Place::Registry(reference) => Ok(reference.to_string()),
        Place::Folder(path, _) => {
            bail!("{}: a build in a cluster has its caches in registries", path.display())
        }
    };
    let to = args.cache_to.iter().map(|text| {
        let (place, max) = caches::to(text)?;
        Ok(CacheExport { image: image(place)?, mode: if max { CacheMode::Max } else { CacheMode::Min } })
    });
    Ok(BuildCache {
        key: args.cache_key.clone(),
        size: args.cache_size.clone().map(Quantity),
        disabled: args.no_cache,
        from: args.cache_from.iter().map(|text| image(caches::from(text)?)).collect::<Result<_>>()?,
        to: to.collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::secret;
    use super::*;
    use crate::args::kube::{KubeCli, KubeCommand};

    fn yaml(line: &str) -> String {
        let cli = KubeCli::try_parse_from(line.split(' ').map(|word| word.trim_matches('\''))).unwrap();
        let KubeCommand::Build(args) = cli.command else { panic!("{line}") };
        let packed = Packed {
            digest: format!("sha256:{}", "ab".repeat(32)),
            dockerfile: "Dockerfile".into(),
            ..Packed::default()
        };
        let given = secret::read(&args).unwrap();
        let build = object("app", cli.global.namespace.as_deref(), &args, &packed, given.there).unwrap();
        serde_saphyr::to_string(&build).unwrap()
    }

    #[test]
    fn a_plain_command_line_means_this() {
        assert_eq!(yaml("k build -t app:1 ."), include_str!("golden/plain.yaml"));
    }

    #[test]
    fn every_flag_has_its_field() {
        let line = "k -n team build -t registry.example.com/team/app:1.4 -t app --target run --build-arg A=1=2 \
                    --label team=web --secret id=token,secret=tokens/npm --ssh id=default,secret=deploy/ssh-privatekey \
                    --platform linux/amd64,linux/arm64 --network egress --cache-key web --cache-size 20Gi --cache-from r.test/app:cache --cache-to type=registry,ref=r.test/app:cache,mode=max \
                    --no-cache --pull-secret bases --sbom --provenance max --nodes pool=web,!old \
                    --push registry.example.com/team --push-secret robot --timeout 90m .";
        assert_eq!(yaml(line), include_str!("golden/full.yaml"));
    }

    #[test]
    fn a_cache_in_a_folder_is_of_no_use_there() {
        let cli =
            KubeCli::try_parse_from("k build -t app --cache-to type=local,dest=c .".split(' ')).unwrap();
        let KubeCommand::Build(args) = cli.command else { panic!() };
        assert_eq!(
            cache(&args).unwrap_err().to_string(),
            "c: a build in a cluster has its caches in registries"
        );
    }
}
