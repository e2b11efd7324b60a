//! Whether a pod is injected, and by which rule.
//!
//! Invariant: the decision is that of the cluster's webhook configuration first (labels only: a webhook cannot select by
//! annotation) and of the injector's own check second. Sources: spec §16.1 and §16.2.

use std::collections::BTreeMap;
use std::fmt;

use carrick_base::Selector;

const INJECT: &str = "sidecar.istio.io/inject";
const NAMESPACE_INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";

/// Namespaces that no webhook of Istio ever injects into.
pub const IGNORED_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// The name of the revision that `istio-injection: enabled` means.
pub const DEFAULT_REVISION: &str = "default";

/// Settings of the injector.
#[derive(Debug, Clone)]
pub struct Config {
    /// Revisions (and tags) that this control plane injects; the default revision among them if it is ours.
    pub revisions: Vec<String>,
    /// Inject into namespaces that say nothing.
    pub enable_namespaces_by_default: bool,
    /// `policy` of the injector: what an unmarked pod in a selected namespace gets.
    pub policy_enabled: bool,
    /// Pods that are never injected unless they ask for it.
    pub never_inject: Vec<Selector>,
    /// Pods that are always injected unless they refuse.
    pub always_inject: Vec<Selector>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            revisions: vec![DEFAULT_REVISION.to_owned()],
            enable_namespaces_by_default: false,
            policy_enabled: true,
            never_inject: Vec::new(),
            always_inject: Vec::new(),
        }
    }
}

/// What is known of a pod and its namespace when the decision is taken.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    pub namespace: &'a str,
    pub namespace_labels: &'a BTreeMap<String, String>,
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
    pub host_network: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub inject: bool,
    /// The revision that injects; `None` when nobody does.
    pub revision: Option<String>,
    pub why: Why,
}

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The namespace is labelled `istio-injection: enabled`.
    NamespaceEnabled,
    /// The namespace names our revision.
    NamespaceRevision(String),
    /// The pod asks for injection by its label.
    PodLabel,
    /// The pod names our revision.
    PodRevision(String),
    /// Neither namespace nor pod says anything, and unmarked namespaces are injected.
    EnabledByDefault,
    /// A selector of the injector always injects such pods.
    AlwaysSelector,
    /// The namespace is labelled `istio-injection: disabled`, which nothing overrides.
    NamespaceDisabled,
    /// The namespace's label has a value that means nothing.
    NamespaceLabelUnknown(String),
    /// The pod refuses by its label.
    PodLabelFalse,
    /// The pod refuses by its annotation.
    PodAnnotationFalse,
    /// Neither namespace nor pod says anything.
    NotEnabled,
    /// Another revision is asked for.
    OtherRevision(String),
    /// The pod uses the host's network, where captured traffic would be the host's.
    HostNetwork,
    /// A namespace of the cluster itself.
    SystemNamespace,
    /// A selector of the injector never injects such pods.
    NeverSelector,
    /// The injector's policy is `disabled` and the pod does not ask.
    PolicyDisabled,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamespaceEnabled => f.write_str("namespace is labelled istio-injection=enabled"),
            Self::NamespaceRevision(revision) => write!(f, "namespace is labelled istio.io/rev={revision}"),
            Self::PodLabel => f.write_str("pod is labelled sidecar.istio.io/inject=true"),
            Self::PodRevision(revision) => write!(f, "pod is labelled istio.io/rev={revision}"),
            Self::EnabledByDefault => f.write_str("namespaces are injected by default"),
            Self::AlwaysSelector => f.write_str("pod matches an alwaysInjectSelector"),
            Self::NamespaceDisabled => f.write_str("namespace is labelled istio-injection=disabled"),
            Self::NamespaceLabelUnknown(value) => {
                write!(f, "namespace is labelled istio-injection={value}, which selects nothing")
            }
            Self::PodLabelFalse => f.write_str("pod is labelled sidecar.istio.io/inject=false"),
            Self::PodAnnotationFalse => f.write_str("pod is annotated sidecar.istio.io/inject=false"),
            Self::NotEnabled => f.write_str("neither namespace nor pod is labelled for injection"),
            Self::OtherRevision(revision) => write!(f, "revision {revision} is not served here"),
            Self::HostNetwork => f.write_str("pod uses the host network"),
            Self::SystemNamespace => f.write_str("namespace belongs to the cluster"),
            Self::NeverSelector => f.write_str("pod matches a neverInjectSelector"),
            Self::PolicyDisabled => f.write_str("injection policy is disabled and the pod does not ask for it"),
        }
    }
}

fn no(why: Why) -> Decision {
    Decision { inject: false, revision: None, why }
}

/// Decides for one pod.
pub fn decide(config: &Config, pod: &PodFacts<'_>) -> Decision {
    let (revision, why) = match selected(config, pod) {
        Ok(selected) => selected,
        Err(why) => return no(why),
    };
    match server_side(config, pod, why) {
        Ok(why) => Decision { inject: true, revision: Some(revision), why },
        Err(why) => no(why),
    }
}

/// The injector's own check alone, for whoever is asked to inject this very pod.
///
/// # Errors
/// The rule that says no.
pub fn required(config: &Config, pod: &PodFacts<'_>) -> Result<Why, Why> {
    server_side(config, pod, Why::NamespaceEnabled)
}

/// The webhooks: which revision is asked to inject, by namespace and pod labels.
fn selected(config: &Config, pod: &PodFacts<'_>) -> Result<(String, Why), Why> {
    let served = |revision: &str| config.revisions.iter().any(|r| r == revision);
    let ours = |revision: &str, why: Why| {
        if served(revision) { Ok((revision.to_owned(), why)) } else { Err(Why::OtherRevision(revision.to_owned())) }
    };
    let inject = pod.labels.get(INJECT).map(String::as_str);
    let refuses = inject == Some("false");
    match pod.namespace_labels.get(NAMESPACE_INJECTION).map(String::as_str) {
        Some("enabled") if refuses => return Err(Why::PodLabelFalse),
        Some("enabled") => return ours(DEFAULT_REVISION, Why::NamespaceEnabled),
        Some("disabled") => return Err(Why::NamespaceDisabled),
        Some(other) => return Err(Why::NamespaceLabelUnknown(other.to_owned())),
        None => {}
    }
    if let Some(revision) = pod.namespace_labels.get(REVISION) {
        if refuses {
            return Err(Why::PodLabelFalse);
        }
        return ours(revision, Why::NamespaceRevision(revision.clone()));
    }
    if let Some(revision) = pod.labels.get(REVISION) {
        if refuses {
            return Err(Why::PodLabelFalse);
        }
        return ours(revision, Why::PodRevision(revision.clone()));
    }
    match inject {
        Some("true") => ours(DEFAULT_REVISION, Why::PodLabel),
        Some("false") => Err(Why::PodLabelFalse),
        // The webhook for unmarked namespaces asks for pods without the label, whatever its value.
        None if config.enable_namespaces_by_default => ours(DEFAULT_REVISION, Why::EnabledByDefault),
        _ => Err(Why::NotEnabled),
    }
}

/// The injector's own check of a pod that a webhook sent it.
fn server_side(config: &Config, pod: &PodFacts<'_>, why: Why) -> Result<Why, Why> {
    if pod.host_network {
        return Err(Why::HostNetwork);
    }
    if IGNORED_NAMESPACES.contains(&pod.namespace) {
        return Err(Why::SystemNamespace);
    }
    let label = pod.labels.get(INJECT);
    let wish = label.or_else(|| pod.annotations.get(INJECT)).map(String::as_str);
    match wish {
        Some("true") => return Ok(why),
        Some("false") if label.is_some() => return Err(Why::PodLabelFalse),
        Some("false") => return Err(Why::PodAnnotationFalse),
        _ => {}
    }
    let selects = |selectors: &[Selector]| selectors.iter().any(|s| !s.is_empty() && s.matches(pod.labels));
    if selects(&config.never_inject) {
        Err(Why::NeverSelector)
    } else if selects(&config.always_inject) {
        Ok(Why::AlwaysSelector)
    } else if config.policy_enabled {
        Ok(why)
    } else {
        Err(Why::PolicyDisabled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> BTreeMap<String, String> {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn check(
        config: &Config,
        namespace: &str,
        namespace_labels: &str,
        labels: &str,
        annotations: &str,
        host_network: bool,
    ) -> Decision {
        let (namespace_labels, labels, annotations) = (map(namespace_labels), map(labels), map(annotations));
        decide(
            config,
            &PodFacts {
                namespace,
                namespace_labels: &namespace_labels,
                labels: &labels,
                annotations: &annotations,
                host_network,
            },
        )
    }

    #[test]
    fn namespace_and_pod_labels_decide() {
        const ON: &str = "istio-injection=enabled";
        const OFF: &str = "istio-injection=disabled";
        const TRUE: &str = "sidecar.istio.io/inject=true";
        const FALSE: &str = "sidecar.istio.io/inject=false";
        let config = Config { revisions: vec!["default".into(), "canary".into()], ..Config::default() };
        for (namespace, pod, annotation, revision) in [
            (ON, "", "", Some("default")),
            (ON, "app=a", "", Some("default")),
            (ON, TRUE, "", Some("default")),
            (ON, FALSE, "", None),
            (ON, "sidecar.istio.io/inject=nonsense", "", Some("default")),
            (ON, "sidecar.istio.io/inject=False", "", Some("default")),
            (ON, "", FALSE, None),
            (ON, TRUE, FALSE, Some("default")),
            ("istio-injection=enabled,istio.io/rev=other", "", "", Some("default")),
            ("istio-injection=enabled,istio.io/rev=canary", "", "", Some("default")),
            (OFF, "", "", None),
            (OFF, TRUE, "", None),
            (OFF, "istio.io/rev=canary", "", None),
            ("istio-injection=disabled,istio.io/rev=canary", "", "", None),
            ("istio-injection=true", TRUE, "", None),
            ("istio-injection=Enabled", "", "", None),
            ("istio-injection=", TRUE, "", None),
            ("istio.io/rev=canary", "", "", Some("canary")),
            ("istio.io/rev=canary", FALSE, "", None),
            ("istio.io/rev=canary", "", FALSE, None),
            ("istio.io/rev=canary", "istio.io/rev=default", "", Some("canary")),
            ("istio.io/rev=other", "", "", None),
            ("istio.io/rev=other", TRUE, "", None),
            ("", "", "", None),
            ("", TRUE, "", Some("default")),
            ("", FALSE, "", None),
            ("", "istio.io/rev=canary", "", Some("canary")),
            ("", "istio.io/rev=canary,sidecar.istio.io/inject=false", "", None),
            ("", "istio.io/rev=canary,sidecar.istio.io/inject=true", "", Some("canary")),
            ("", "istio.io/rev=other,sidecar.istio.io/inject=true", "", None),
            ("", "", TRUE, None),
            ("", "sidecar.istio.io/inject=yes", "", None),
        ] {
            let decision = check(&config, "shop", namespace, pod, annotation, false);
            assert_eq!(
                decision.revision.as_deref(),
                revision,
                "namespace {namespace:?}, pod {pod:?}, annotation {annotation:?}: {}",
                decision.why
            );
            assert_eq!(decision.inject, revision.is_some());
        }
    }

    #[test]
    fn enabled_by_default_takes_only_what_says_nothing() {
        let config = Config { enable_namespaces_by_default: true, ..Config::default() };
        assert!(check(&config, "a", "", "", "", false).inject);
        assert!(!check(&config, "a", "istio-injection=disabled", "", "", false).inject);
        assert!(!check(&config, "a", "", "sidecar.istio.io/inject=false", "", false).inject);
        assert!(!check(&config, "a", "", "sidecar.istio.io/inject=maybe", "", false).inject);
    }

    #[test]
    fn the_injector_checks_again() {
        let on = "istio-injection=enabled";
        assert_eq!(check(&Config::default(), "a", on, "", "", true).why, Why::HostNetwork);
        assert_eq!(check(&Config::default(), "kube-system", on, "", "", false).why, Why::SystemNamespace);
        let disabled = Config { policy_enabled: false, ..Config::default() };
        assert_eq!(check(&disabled, "a", on, "", "", false).why, Why::PolicyDisabled);
        assert!(check(&disabled, "a", on, "sidecar.istio.io/inject=true", "", false).inject);
        assert!(check(&disabled, "a", on, "", "sidecar.istio.io/inject=true", false).inject);
        let selectors = Config {
            policy_enabled: false,
            never_inject: vec![Selector::parse("job").unwrap()],
            always_inject: vec![Selector::parse("tier=front").unwrap()],
            ..Config::default()
        };
        assert_eq!(check(&selectors, "a", on, "tier=front", "", false).why, Why::AlwaysSelector);
        assert_eq!(check(&selectors, "a", on, "tier=front,job=1", "", false).why, Why::NeverSelector);
        assert!(check(&selectors, "a", on, "job=1,sidecar.istio.io/inject=true", "", false).inject);
    }
}
