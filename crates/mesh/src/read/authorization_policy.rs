//! AuthorizationPolicy objects (semantics §12.4–§12.8).
//!
//! Invariant: what cannot be read makes its rule stricter: an ALLOW rule with it never matches, any other rule matches without it. Every
//! such value is told of.

use carrick_api::{
    AuthorizationPolicy,
    istio::authorization_policy::{AuthorizationAction, AuthorizationRule, Condition, DRY_RUN, Operation, Source},
};
use carrick_base::{Diagnostic, FieldPath, Severity};

use super::{origin, targets};
use crate::{
    codes,
    model::{
        Origin,
        authz::{Action, Attribute, AuthzPolicy, AuthzRule, Cidr, Term, Text, Value},
    },
    path_template,
    trust_domains::TrustDomains,
};

/// What is tested, the field with what it must be, the field with what it must not be.
type Field<'a> = (Attribute, &'a str, &'a [String], &'a str, &'a [String]);

pub(crate) fn read(from: &AuthorizationPolicy, domains: &TrustDomains, found: &mut Vec<Diagnostic>) -> AuthzPolicy {
    let origin = origin("AuthorizationPolicy", &from.metadata);
    let spec = &from.spec;
    let action = match spec.action {
        AuthorizationAction::Allow => Action::Allow,
        AuthorizationAction::Deny => Action::Deny,
        AuthorizationAction::Audit => Action::Audit,
        AuthorizationAction::Custom => Action::Custom,
    };
    let wish = from.metadata.annotations.get(DRY_RUN).map(String::as_str);
    let dry_run = matches!(wish, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
        && matches!(action, Action::Allow | Action::Deny);
    let mut reader = Reader { origin: &origin, action, domains, found };
    let rules = spec.rules.iter().enumerate().filter_map(|(index, rule)| reader.rule(index, rule)).collect();
    let provider = spec.provider.as_ref().filter(|_| action == Action::Custom);
    AuthzPolicy {
        selector: spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default(),
        gateways: targets(spec.target_ref.iter().chain(&spec.target_refs)),
        action,
        dry_run,
        requests_only: false,
        provider: provider.map_or("", |p| p.name.as_str()).into(),
        rules,
        origin,
    }
}

/// What one rule could be read as.
type Part<T> = Result<T, Unreadable>;

/// A value was not understood, and told of.
struct Unreadable;

struct Reader<'a> {
    origin: &'a Origin,
    action: Action,
    domains: &'a TrustDomains,
    found: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn rule(&mut self, index: usize, from: &AuthorizationRule) -> Option<AuthzRule> {
        let path = FieldPath::new("spec.rules").index(index);
        let mut rule = AuthzRule { index, from: Vec::new(), to: Vec::new(), when: Vec::new() };
        let mut whole = true;
        for (i, entry) in from.from.iter().enumerate() {
            let at = path.field("from").index(i).field("source");
            let terms = self.source(&at, &entry.source.clone().unwrap_or_default(), &mut whole);
            self.alternative(&at, terms, &mut rule.from, &mut whole);
        }
        for (i, entry) in from.to.iter().enumerate() {
            let at = path.field("to").index(i).field("operation");
            let terms = self.operation(&at, &entry.operation.clone().unwrap_or_default(), &mut whole);
            self.alternative(&at, terms, &mut rule.to, &mut whole);
        }
        for (i, condition) in from.when.iter().enumerate() {
            let at = path.field("when").index(i);
            let term = self.condition(&at, condition, &mut whole);
            rule.when.extend(term);
        }
        (whole || self.action != Action::Allow).then_some(rule)
    }

    fn alternative(&mut self, at: &FieldPath, terms: Vec<Term>, all: &mut Vec<Vec<Term>>, whole: &mut bool) {
        if terms.is_empty() && *whole {
            self.tell(at, "says nothing".to_owned());
            *whole = false;
        }
        all.push(terms);
    }

    fn source(&mut self, at: &FieldPath, from: &Source, whole: &mut bool) -> Vec<Term> {
        use Attribute::{
            RemoteIp, RequestPrincipal, SourceAccount, SourceIp, SourceNamespace, SourcePrincipal, SourceTrustDomain,
        };
        let fields: [Field<'_>; 7] = [
            (SourcePrincipal, "principals", &from.principals, "notPrincipals", &from.not_principals),
            (
                RequestPrincipal,
                "requestPrincipals",
                &from.request_principals,
                "notRequestPrincipals",
                &from.not_request_principals,
            ),
            (SourceNamespace, "namespaces", &from.namespaces, "notNamespaces", &from.not_namespaces),
            (
                SourceAccount,
                "serviceAccounts",
                &from.service_accounts,
                "notServiceAccounts",
                &from.not_service_accounts,
            ),
            (SourceTrustDomain, "trustDomains", &from.trust_domains, "notTrustDomains", &from.not_trust_domains),
            (SourceIp, "ipBlocks", &from.ip_blocks, "notIpBlocks", &from.not_ip_blocks),
            (RemoteIp, "remoteIpBlocks", &from.remote_ip_blocks, "notRemoteIpBlocks", &from.not_remote_ip_blocks),
        ];
        self.fields(at, fields, whole)
    }

    fn operation(&mut self, at: &FieldPath, from: &Operation, whole: &mut bool) -> Vec<Term> {
        let fields: [Field<'_>; 4] = [
            (Attribute::Host, "hosts", &from.hosts, "notHosts", &from.not_hosts),
            (Attribute::DestinationPort, "ports", &from.ports, "notPorts", &from.not_ports),
            (Attribute::Method, "methods", &from.methods, "notMethods", &from.not_methods),
            (Attribute::Path, "paths", &from.paths, "notPaths", &from.not_paths),
        ];
        self.fields(at, fields, whole)
    }

    fn fields<const N: usize>(&mut self, at: &FieldPath, fields: [Field<'_>; N], whole: &mut bool) -> Vec<Term> {
        let mut terms = Vec::new();
        for (attribute, field, any, not_field, none) in fields {
            if any.is_empty() && none.is_empty() {
                continue;
            }
            terms.extend(self.term(attribute, (&at.field(field), any), (&at.field(not_field), none), whole));
        }
        terms
    }

    fn condition(&mut self, at: &FieldPath, from: &Condition, whole: &mut bool) -> Option<Term> {
        let Some(attribute) = attribute(&from.key) else {
            self.tell(&at.field("key"), format!("{:?} is no attribute", from.key));
            *whole = false;
            return None;
        };
        if from.values.is_empty() && from.not_values.is_empty() {
            self.tell(at, "neither values nor notValues".to_owned());
            *whole = false;
            return None;
        }
        let (values, not_values) = (at.field("values"), at.field("notValues"));
        self.term(attribute, (&values, &from.values), (&not_values, &from.not_values), whole)
    }

    fn term(
        &mut self,
        attribute: Attribute,
        any: (&FieldPath, &[String]),
        none: (&FieldPath, &[String]),
        whole: &mut bool,
    ) -> Option<Term> {
        let from_token = matches!(
            attribute,
            Attribute::RequestPrincipal | Attribute::Audiences | Attribute::Presenter | Attribute::Claim(_)
        );
        if self.action == Action::Custom && from_token {
            self.tell(
                any.0,
                "tokens are verified after the external authorizer was asked; it is asked anyway".to_owned(),
            );
            *whole = false;
            return None;
        }
        let (mut all_any, mut all_none) = (Vec::new(), Vec::new());
        let mut wide = false;
        for ((path, texts), out) in [(any, &mut all_any), (none, &mut all_none)] {
            for (i, text) in texts.iter().enumerate() {
                match self.values(&attribute, text) {
                    Ok(values) => out.extend(values),
                    Err(Unreadable) => {
                        self.tell(&path.index(i), format!("{text:?} cannot be read"));
                        *whole = false;
                        // One of several alternatives that is not known may be any.
                        wide |= std::ptr::eq(texts, any.1);
                    }
                }
            }
        }
        if wide {
            all_any.clear();
        }
        (!all_any.is_empty() || !all_none.is_empty()).then_some(Term { attribute, any: all_any, none: all_none })
    }

    fn values(&self, attribute: &Attribute, text: &str) -> Part<Vec<Value>> {
        let one = |value: Option<Value>| value.map(|v| vec![v]).ok_or(Unreadable);
        match attribute {
            Attribute::SourcePrincipal => {
                Ok(self.domains.principal(text).iter().map(|p| Value::Text(Text::parse(p))).collect())
            }
            Attribute::SourceTrustDomain => {
                if text.is_empty() || text.contains('/') {
                    return Err(Unreadable);
                }
                Ok(self.domains.domain(text).iter().map(|d| Value::Text(Text::parse(d))).collect())
            }
            Attribute::SourceNamespace => one(Some(Value::Namespace(text.into()))),
            Attribute::SourceAccount => one(self.account(text)),
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
                one(Cidr::parse(text).map(Value::Network))
            }
            Attribute::DestinationPort => one(text.parse().ok().map(Value::Port)),
            Attribute::RequestPrincipal => one(Some(subject(text))),
            Attribute::Path if text.contains("{*}") || text.contains("{**}") => {
                one(path_template::is_valid(text).then(|| Value::Template(text.into())))
            }
            Attribute::FilterMetadata { .. } => {
                let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
                one(Some(inner.map_or_else(|| Value::Text(Text::parse(text)), |t| Value::Element(Text::parse(t)))))
            }
            Attribute::Audiences
            | Attribute::Presenter
            | Attribute::Claim(_)
            | Attribute::Header(_)
            | Attribute::Host
            | Attribute::Method
            | Attribute::Path
            | Attribute::Sni => one(Some(Value::Text(Text::parse(text)))),
        }
    }

    /// `namespace/name`, or a name of the policy's own namespace.
    fn account(&self, text: &str) -> Option<Value> {
        let (namespace, name) = text.split_once('/').unwrap_or((self.origin.namespace(), text));
        let plain = |part: &str| !part.is_empty() && !part.contains(['*', '/']);
        (plain(namespace) && plain(name)).then(|| Value::Account { namespace: namespace.into(), name: name.into() })
    }

    fn tell(&mut self, at: &FieldPath, what: String) {
        let then = match self.action {
            Action::Allow => "the rule allows nothing",
            Action::Deny | Action::Audit | Action::Custom => "the rule holds without it",
        };
        self.found.push(Diagnostic {
            code: codes::UNREADABLE,
            severity: Severity::Error,
            object: self.origin.object(),
            field: at.clone(),
            message: format!("{what}; {then}"),
        });
    }
}

/// What a condition's key names.
fn attribute(key: &str) -> Option<Attribute> {
    let fixed = match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::SourceNamespace,
        "source.principal" => Attribute::SourcePrincipal,
        "source.serviceAccount" => Attribute::SourceAccount,
        "source.trustDomain" => Attribute::SourceTrustDomain,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::Audiences,
        "request.auth.presenter" => Attribute::Presenter,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::Sni,
        _ => return keyed(key),
    };
    Some(fixed)
}

/// A key with a name in brackets.
fn keyed(key: &str) -> Option<Attribute> {
    let (base, inside) = key.strip_suffix(']')?.split_once('[')?;
    match base {
        "request.headers" => {
            super::is_header_name(inside).then(|| Attribute::Header(inside.to_ascii_lowercase().into()))
        }
        "request.auth.claims" => {
            let path: Vec<_> = inside.split("][").map(std::sync::Arc::from).collect();
            path.iter().all(|part: &std::sync::Arc<str>| !part.is_empty()).then_some(Attribute::Claim(path))
        }
        _ => {
            let filter = base.strip_prefix("experimental.").filter(|f| f.starts_with("envoy.filters."))?;
            let metadata = Attribute::FilterMetadata { filter: filter.into(), key: inside.into() };
            (!inside.is_empty()).then_some(metadata)
        }
    }
}

/// `issuer/subject`, cut at the last slash, which is not one of `://`.
fn subject(text: &str) -> Value {
    let cut = |text: &str| {
        let at = text.rfind('/')?;
        let (issuer, subject) = (text.get(..at)?, text.get(at.checked_add(1)?..)?);
        (!issuer.ends_with(":/")).then(|| (issuer.to_owned(), subject.to_owned()))
    };
    let some = |text: &str, form: fn(std::sync::Arc<str>) -> Text| {
        if text.is_empty() { Text::Present } else { form(text.into()) }
    };
    let (issuer, subject) = match Text::parse(text) {
        Text::Present => (Text::Present, Text::Present),
        Text::Exact(all) => match cut(&all) {
            Some((issuer, subject)) => (Text::Exact(issuer.into()), Text::Exact(subject.into())),
            None => (Text::Exact(all), Text::Exact("".into())),
        },
        Text::Prefix(all) => match cut(&all) {
            Some((issuer, subject)) => (Text::Exact(issuer.into()), some(&subject, Text::Prefix)),
            None => (Text::Prefix(all), Text::Present),
        },
        Text::Suffix(all) => match cut(&all) {
            Some((issuer, subject)) => (some(&issuer, Text::Suffix), Text::Exact(subject.into())),
            None => (Text::Present, Text::Suffix(all)),
        },
    };
    Value::Subject { issuer, subject }
}
