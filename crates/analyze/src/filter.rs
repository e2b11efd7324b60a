//! Which messages are shown.
//!
//! Invariant: a message on an object of the whole cluster is shown for every namespace.

use crate::message::Message;
use crate::objects::Objects;

/// `CODE=RESOURCE` of the command line, where `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    pub code: String,
    /// `Kind name.namespace` or `Kind namespace/name`.
    pub resource: String,
}

/// What is shown.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this namespace; all when empty.
    pub namespace: String,
    pub suppressions: Vec<Suppression>,
}

/// Says on an object which codes its author does not want to see.
const ANNOTATION: &str = "galley.istio.io/analyze-suppress";

impl Filter {
    /// Removes what is not to be shown.
    pub fn apply(&self, objects: &Objects, messages: &mut Vec<Message>) {
        messages.retain(|message| self.in_scope(message) && !self.suppressed(message) && !waived(objects, message));
    }

    fn in_scope(&self, message: &Message) -> bool {
        let origin = &message.origin;
        let namespace = if origin.kind == "Namespace" { &origin.name } else { &origin.namespace };
        self.namespace.is_empty() || namespace.is_empty() || *namespace == self.namespace
    }

    fn suppressed(&self, message: &Message) -> bool {
        let origin = &message.origin;
        let dotted = format!("{} {}.{}", origin.kind, origin.name, origin.namespace);
        self.suppressions.iter().any(|suppression| {
            suppression.code == message.code
                && [origin.friendly_name(), dotted.clone()].iter().any(|name| glob(&suppression.resource, name))
        })
    }
}

fn waived(objects: &Objects, message: &Message) -> bool {
    let same_kind = objects.all().filter(|((_, kind), _)| *kind == message.origin.kind);
    let object = same_kind.flat_map(|(_, list)| list).find(|object| object.origin == message.origin);
    let codes = object.and_then(|object| object.annotations().get(ANNOTATION).copied()).unwrap_or_default();
    codes.split(',').map(str::trim).any(|code| code == "*" || code == message.code)
}

/// Whether a text fits a pattern with `*`.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("Pod a.b", "Pod a.b", true),
            ("Pod *.b", "Pod x.b", true),
            ("Pod *.b", "Pod x.c", false),
            ("*", "anything", true),
            ("Pod", "Pod a", false),
            ("P*d *", "Pod a", true),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }
}
