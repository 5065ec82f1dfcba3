//! What is wrong with a spec: the rules of the definition, which API servers before 1.25 do not evaluate, and what no
//! rule can say.

use std::sync::OnceLock;

use cloister_crds::{ImageBuild, ImageBuildSpec};
use jiff::tz::TimeZone;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};

use crate::cron::Schedule;
use crate::quantity::thousandths;
use cloister_crds::fingerprint::inline_bytes;

/// Most bytes of inline files: they travel to the node in a ConfigMap, which holds 1 MiB.
const MOST_INLINE: usize = 960 << 10;

/// The definition's rules, compiled once.
static RULES: OnceLock<Option<CompiledSchema>> = OnceLock::new();

/// Everything that is wrong with a build's spec, in one line.
///
/// # Errors
/// With that line.
pub fn validate(build: &ImageBuild) -> Result<(), String> {
    let mut wrong = rules(build);
    wrong.extend(further(&build.spec));
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("; ")),
    }
}

fn rules(build: &ImageBuild) -> Vec<String> {
    let compiled = RULES.get_or_init(|| {
        let definition = cloister_crds::image_builds().ok()?;
        let schema = definition.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?;
        Some(compile_schema(&serde_json::to_value(schema).ok()?))
    });
    // The status is ours, and has no rules.
    let bare = ImageBuild { status: None, ..build.clone() };
    let (Some(compiled), Ok(object)) = (compiled, serde_json::to_value(&bare)) else {
        return vec!["the rules of the definition cannot be evaluated".to_owned()];
    };
    match Validator::new().validate_compiled(compiled, &object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// What the definition leaves to the operator.
fn further(spec: &ImageBuildSpec) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(resources) = &spec.resources
        && let (Some(requests), Some(limits)) = (&resources.requests, &resources.limits)
    {
        for (name, request, limit) in [
            ("cpu", &requests.cpu, &limits.cpu),
            ("memory", &requests.memory, &limits.memory),
            ("ephemeral-storage", &requests.ephemeral_storage, &limits.ephemeral_storage),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && thousandths(request) > thousandths(limit)
            {
                let (request, limit) = (&request.0, &limit.0);
                wrong.push(format!(
                    "spec.resources: {name} of requests ({request}) is above limits ({limit})"
                ));
            }
        }
    }
    if let Some(schedule) = spec.triggers.as_ref().and_then(|triggers| triggers.schedule.as_ref()) {
        if let Err(error) = Schedule::parse(&schedule.cron) {
            wrong.push(format!("spec.triggers.schedule.cron: {error}"));
        }
        if let Some(zone) = &schedule.time_zone
            && TimeZone::get(zone).is_err()
        {
            wrong.push(format!("spec.triggers.schedule.timeZone: no time zone is called {zone:?}"));
        }
    }
    let bytes = inline_bytes(spec);
    if bytes > MOST_INLINE {
        wrong.push(format!("spec.source.inline: {bytes} bytes of files; {MOST_INLINE} is the most"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use cloister_crds::{BuildSource, Proxy, ResourceList, Resources, ScheduleTrigger, Triggers};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;
    use crate::fixture;

    fn refused(change: impl FnOnce(&mut ImageBuild)) -> String {
        let mut build = fixture::build();
        change(&mut build);
        validate(&build).unwrap_err()
    }

    #[test]
    fn a_good_spec_passes_trimmed_or_not() {
        let mut build = fixture::build();
        assert_eq!(validate(&build), Ok(()));
        cloister_crds::fingerprint::trim(&mut build.spec);
        assert_eq!(validate(&build), Ok(()));
    }

    #[test]
    fn rules_hold_without_an_api_server_that_evaluates_them() {
        let two = refused(|build| build.spec.source.upload = Some(Default::default()));
        assert!(two.contains("exactly one of"), "{two}");
        let none = refused(|build| build.spec.source = BuildSource::default());
        assert!(none.contains("exactly one of"), "{none}");
        let proxy = refused(|build| build.spec.proxy = Some(Proxy::default()));
        assert!(proxy.contains("proxy needs network"), "{proxy}");
        let long = refused(|build| build.metadata.name = Some("x".repeat(53)));
        assert!(long.contains("at most 52"), "{long}");
        let nowhere = refused(|build| build.spec.output = Default::default());
        assert!(nowhere.contains("goes nowhere"), "{nowhere}");
    }

    #[test]
    fn what_no_rule_can_say_is_checked_too() {
        let list =
            |memory: &str| ResourceList { memory: Some(Quantity(memory.into())), ..Default::default() };
        let above = refused(|build| {
            build.spec.resources = Some(Resources { requests: Some(list("2Gi")), limits: Some(list("2G")) });
        });
        assert_eq!(above, "spec.resources: memory of requests (2Gi) is above limits (2G)");
        let schedule = |cron: &str, zone: Option<&str>| {
            let schedule = ScheduleTrigger { cron: cron.into(), time_zone: zone.map(str::to_owned) };
            refused(|build| {
                build.spec.triggers = Some(Triggers { schedule: Some(schedule), ..Default::default() });
            })
        };
        assert!(schedule("99 * * * *", None).contains("99 is not between 0 and 59"));
        assert!(schedule("0 0 * * *", Some("Europe/Atlantis")).contains("no time zone is called"));
        let large = refused(|build| {
            build.spec.source.inline.as_mut().unwrap().files = vec![cloister_crds::InlineFile {
                path: "a".into(),
                content: Some("x".repeat(1 << 20)),
                ..Default::default()
            }];
        });
        assert!(large.contains("983040 is the most"), "{large}");
    }
}
