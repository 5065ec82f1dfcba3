//! Patterns, bounds and CEL rules that several fields share.

use kube::core::Rule;

/// A DNS label (RFC 1123): what namespaces and cache keys are called.
pub(crate) const LABEL: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A DNS subdomain (RFC 1123): what most objects are called.
pub(crate) const SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A key of a Secret or ConfigMap.
pub(crate) const KEY: &str = r"^[-._a-zA-Z0-9]+$";
/// A key of an annotation: an optional DNS subdomain and a name.
pub(crate) const ANNOTATION_KEY: &str =
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// A digest of the only algorithm that image stores agree on.
pub(crate) const DIGEST: &str = r"^sha256:[a-f0-9]{64}$";
/// A file's name below some folder; `relative_path` says the rest.
pub(crate) const PATH: &str = r"^[^/\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f])?$";
/// A reference as the distribution specification writes it: registry, repository, tag, and what is added.
macro_rules! reference {
    ($end:literal) => {
        concat!(
            r"^([a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)*(:[0-9]{1,5})?/)?",
            r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*",
            r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?",
            $end
        )
    };
}
/// An image to be, which cannot know its digest.
pub(crate) const IMAGE_NAME: &str = reference!("$");
/// An image that exists.
pub(crate) const IMAGE_REF: &str = reference!(r"(@sha256:[a-f0-9]{64})?$");
/// A registry, with an optional path below which repositories are.
pub(crate) const REGISTRY: &str = concat!(
    r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)*(:[0-9]{1,5})?",
    r"(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$",
);
/// Go's way of writing a duration, without signs and below a second.
pub(crate) const DURATION: &str = r"^([0-9]+(\.[0-9]+)?(s|m|h))+$";
/// Five fields, or one of the names that stand for them.
pub(crate) const CRON: &str =
    r"^(@(hourly|daily|weekly|monthly|yearly)|[0-9A-Za-z*,/?-]+( [0-9A-Za-z*,/?-]+){4})$";

/// A path stays below the folder it is relative to.
pub(crate) fn relative_path() -> Rule {
    Rule::new(r"!self.matches('(^|/)\\.{1,2}(/|$)')")
        .message("must be a path below the folder, without . and ..")
}

/// Credentials belong into a Secret: a URL is shown in status, events and logs.
pub(crate) fn no_password() -> Rule {
    Rule::new("!self.matches('^(https?://[^/@]*|ssh://[^/@]*:[^/@]*)@')")
        .message("must not hold credentials: name a Secret instead")
}

/// A duration between two others.
pub(crate) fn between(least: &str, most: &str) -> Rule {
    Rule::new(format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"))
        .message(format!("must be between {least} and {most}").as_str())
}
