//! Go's `text/template` over JSON values, with the functions of Helm's charts: as much as our charts and people's injection templates use.
//!
//! Invariant: what is not understood is an error that names it, never text; evaluation is a function of its arguments. Which functions
//! there are besides Helm's is the caller's business ([`Dialect`]).

mod eval;
mod functions;
mod parse;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub use self::functions::{KNOWN, merge, text, truth};

/// What a function gives; `None` for a name that is not the dialect's.
pub type Call = fn(&str, &[Value]) -> Option<Result<Value, String>>;

/// What differs between those who write templates.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Functions that go before Helm's.
    pub call: Call,
    /// Fields may be written as Go's types have them (`.HostIP`) where the value has them as JSON does (`hostIP`).
    pub go_fields: bool,
}

/// Helm's own.
pub const HELM: Dialect = Dialect { call: |_, _| None, go_fields: false };

/// What several files define for each other, by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Definitions(parse::Defined);

impl Definitions {
    /// Adds what a template defines; a name that was there is defined anew.
    pub fn add(&mut self, template: &Template) {
        self.0.extend(template.defined.0.clone());
    }
}

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    nodes: Vec<parse::Node>,
    defined: Definitions,
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// What is not understood, in words.
    pub fn read(text: &str) -> Result<Self, String> {
        let (nodes, defined) = parse::template(text)?;
        Ok(Self { nodes, defined: Definitions(defined) })
    }

    /// The names of all functions that are called.
    pub fn functions(&self) -> BTreeSet<&str> {
        let mut all = BTreeSet::new();
        parse::functions(&self.nodes, &mut all);
        self.defined.0.values().for_each(|nodes| parse::functions(nodes, &mut all));
        all
    }

    /// The text for a value.
    ///
    /// # Errors
    /// What cannot be evaluated, in words.
    pub fn render(&self, dot: &Value, dialect: Dialect) -> Result<String, String> {
        self.render_among(dot, &self.defined, &BTreeMap::new(), dialect)
    }

    /// The text for a value, with what other files define, and files that it may quote.
    ///
    /// # Errors
    /// What cannot be evaluated, in words.
    pub fn render_among(
        &self,
        dot: &Value,
        defined: &Definitions,
        files: &BTreeMap<String, String>,
        dialect: Dialect,
    ) -> Result<String, String> {
        eval::Engine { defined: &defined.0, files, dialect }.render(&self.nodes, dot, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(template: &str, dot: Value) -> Result<String, String> {
        let go = Dialect {
            call: |name, values| match (name, values) {
                ("twice", [value]) => Some(Ok(format!("{0}{0}", crate::text(value)).into())),
                _ => None,
            },
            go_fields: true,
        };
        Template::read(template)?.render(&dot, go)
    }

    #[test]
    fn templates_are_evaluated_as_go_does() {
        let dot = json!({"Spec": {"containers": [{"name": "a", "hostIP": "1"}, {"name": "b"}], "dnsPolicy": "D"}, "M": {"a/b": "x"}});
        for (template, wanted) in [
            ("{{ range $i, $c := .Spec.Containers }}{{ $i }}{{ $c.Name }}{{ .HostIP }};{{ end }}", "0a1;1b;"),
            ("{{ .Spec.DNSPolicy | twice }}{{ index .M `a/b` }}", "DDx"),
            ("{{ $n := 1 -}} {{ if and (ge (len .Spec.Containers) 2) (lt $n 2) }}y{{ else }}n{{ end }}", "y"),
            ("{{ with .None }}a{{ else }}b{{ end }}{{ .None.Below }}", "b"),
            (
                "{{ $l := list }}{{ range .Spec.Containers }}{{ $l = append $l .Name }}{{ end }}{{ $l | join \",\" }}",
                "a,b",
            ),
            ("{{ define \"d\" }}<{{ . }}>{{ end }}{{ include \"d\" 3 }}{{ template \"d\" 4 }}", "<3><4>"),
            ("{{ \"-a_\" | trimAll \"-_\" | upper }}{{ trunc 2 \"abc\" }}{{ contains \"b\" \"abc\" }}", "Aabtrue"),
            ("{{ .Spec.DNSPolicy.String }}", "D"),
        ] {
            assert_eq!(text(template, dot.clone()).as_deref(), Ok(wanted), "{template}");
        }
    }

    #[test]
    fn functions_are_known_before_they_are_called() {
        let template =
            Template::read("{{ if (a .x) }}{{ b | c }}{{ end }}{{ define \"x\" }}{{ range d }}{{ end }}{{ end }}");
        assert_eq!(template.unwrap().functions().into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert!(text("{{ none 1 }}", json!({})).unwrap_err().contains("none"));
        for name in KNOWN {
            let error = text(&format!("{{{{ {name} 1 2 3 4 5 }}}}"), json!({}));
            assert!(error.is_ok() || !error.unwrap_err().contains("there is no function"), "{name}");
        }
    }
}
