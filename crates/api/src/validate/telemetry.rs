//! Rules of `Telemetry` (spec §25, §28).
//!
//! Invariant: expressions of filters are only evaluated by proxies; here they need to parse.

use super::{Findings, Node, attachment, cel};

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    attachment::policy(&spec, findings);
    for metrics in spec.field("metrics").items() {
        providers(&metrics.field("providers"), findings);
        let interval = metrics.field("reportingInterval");
        findings.duration(&interval.path, interval.duration());
        for entry in metrics.field("overrides").items() {
            overrides(&entry, findings);
        }
    }
    let tracing = spec.field("tracing");
    if tracing.len() > 1 {
        findings.warning(&tracing.path, "multiple tracing is not currently supported");
    }
    for entry in tracing.items() {
        self::tracing(&entry, findings);
    }
    for logging in spec.field("accessLogging").items() {
        providers(&logging.field("providers"), findings);
        let filter = logging.field("filter");
        if filter.is_set() {
            self::filter(&filter.field("expression"), findings);
        }
    }
}

fn providers(list: &Node<'_>, findings: &mut Findings) {
    for provider in list.items().iter().filter(|provider| provider.field("name").text().is_empty()) {
        findings.error(&provider.path.field("name"), "providers.name may not be empty");
    }
}

/// A CEL expression; what its names mean is the proxies' business.
fn filter(expression: &Node<'_>, findings: &mut Findings) {
    if !cel::parses(expression.text()) {
        findings.error(&expression.path, format!("expression {:?} cannot be parsed", expression.text()));
    }
}

fn tracing(tracing: &Node<'_>, findings: &mut Findings) {
    let list = tracing.field("providers");
    if list.len() > 1 {
        findings.warning(&list.path, "multiple providers is not currently supported");
    }
    providers(&list, findings);
    let share = tracing.field("randomSamplingPercentage");
    if !(0.0..=100.0).contains(&share.float()) {
        findings.error(&share.path, "randomSamplingPercentage must be in range [0.0, 100.0]");
    }
    for (name, tag) in tracing.field("customTags").entries() {
        if name.is_empty() {
            findings.error(&tag.path, "tag name may not be empty");
        }
        if !tag.is_set() {
            findings.error(&tag.path, format!("tag '{name}' may not have a nil value"));
            continue;
        }
        let kinds = tag.set_among(&["literal", "environment", "header", "formatter"]);
        if kinds.len() > 1 {
            findings.error(&tag.path, format!("only one of {} can be set", kinds.join(", ")));
        }
        for kind in kinds {
            let field = if matches!(kind, "literal" | "formatter") { "value" } else { "name" };
            let value = tag.field(kind).field(field);
            if value.text().is_empty() {
                findings.error(&value.path, format!("{kind} tag {field} may not be empty"));
            }
        }
    }
}

fn overrides(entry: &Node<'_>, findings: &mut Findings) {
    for (name, tag) in entry.field("tagOverrides").entries() {
        if name.is_empty() {
            findings.warning(&tag.path, "tagOverrides.name may not be empty");
        }
        if !tag.is_set() {
            findings.error(&tag.path, "tagOverrides may not be null");
            continue;
        }
        let value = tag.field("value");
        match tag.field("operation").choice(&["UPSERT", "REMOVE"]) {
            "UPSERT" if value.text().is_empty() => {
                findings.error(&value.path, "tagOverrides.value must be set when operation is UPSERT");
            }
            "REMOVE" if !value.text().is_empty() => {
                findings.error(&value.path, "tagOverrides.value may only be set when operation is UPSERT");
            }
            _ => {}
        }
    }
    let wanted = entry.field("match");
    if wanted.set_among(&["metric", "customMetric"]).len() > 1 {
        findings.error(&wanted.path, "only one of metric, customMetric can be set");
    }
    let custom = wanted.field("customMetric");
    if custom.is_set() && custom.text().is_empty() {
        findings.error(&custom.path, "customMetric may not be empty");
    }
}
