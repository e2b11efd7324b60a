//! What the judge of rules finds: types, costs and words, held against those of Kubernetes.

use super::*;

fn with_rule(mut schema: Value, rule: &str) -> Value {
    schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
    json!({"type": "object", "properties": {"f": schema}})
}

fn wrong(schema: Value, rule: &str) -> String {
    let found = check(&with_rule(schema, rule), "s");
    found.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>().join("; ")
}

/// What Kubernetes' own tests of its estimates have.
#[test]
fn costs_are_those_of_kubernetes() {
    let list = |items: &str| json!({"type": "array", "items": {"type": items}});
    for (schema, rule, cost) in [
        (list("number"), "self.all(x, true)", 4_718_591),
        (json!({"type": "array", "maxItems": 10, "items": {"type": "number"}}), "self.all(x, true)", 32),
        (list("string"), "self.all(x, true)", 3_145_727),
        (list("boolean"), "self.all(x, true)", 1_887_437),
        (json!({"type": "object", "additionalProperties": {"type": "number"}}), "self.all(x, true)", 1_348_169),
        (json!({"type": "string"}), "self.contains('test')", 314_574),
        (json!({"type": "string", "maxLength": 10}), "self.contains('test')", 5),
        (json!({"type": "string"}), "self.matches('x')", 314_574),
        (json!({"type": "integer"}), "self > 0 && self < 5", 4),
    ] {
        assert_eq!(total(&with_rule(schema.clone(), rule)), cost, "{rule} on {schema}");
    }
}

#[test]
fn what_a_rule_may_not_do_is_named() {
    let object = || {
        json!({"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "b-c": {"type": "boolean"},
            "list": {"type": "array", "items": {"type": "string"}}, "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "either": {"x-kubernetes-int-or-string": true}, "namespace": {"type": "string"}}})
    };
    for good in [
        "has(self.a) && self.a.size() < 5 && self.n > 2 && self.b__dash__c",
        "self.list == ['a'] || (has(self.list) ? self.list : []).exists(x, x == '')",
        "self.map.all(k, self.map[k] != '' && k.startsWith('a'))",
        "type(self.either) == int ? self.either > 1 : self.either == 'x'",
        "self.list.map(x, x + 'a').join(',') != '' && self.list.filter(x, x != '').size() > 0",
        "url(self.a).getScheme() in ['http', 'https'] && duration(self.a) >= duration('1ms')",
        "sets.contains(self.list, ['a']) && quantity(self.a).isGreaterThan(quantity('1'))",
        "self == oldSelf && self.__namespace__ != ''",
        "!format.dns1123Label().validate(self.a).hasValue()",
    ] {
        let mut bounded = object();
        for field in ["a", "namespace"] {
            bounded["properties"][field]["maxLength"] = json!(100);
        }
        bounded["properties"]["list"]["maxItems"] = json!(10);
        bounded["properties"]["map"]["maxProperties"] = json!(10);
        assert_eq!(wrong(bounded, good), "", "{good}");
    }
    for (bad, why) in [
        ("self.nosuch", "ERROR: <input>:1:5: undefined field 'nosuch'\n | self.nosuch\n | ....^"),
        ("self.a", "cel expression must evaluate to a bool"),
        ("self.a == 1", "found no matching overload for '_==_' applied to '(string, int)'"),
        ("self.a.nosuch()", "undeclared reference to 'nosuch' (in container '')"),
        ("other == 1", "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')"),
        (
            "self.n.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("self.a.size", "type 'string' does not support field selection"),
        ("self.list.all(x, x)", "found no matching overload for '_&&_' applied to '(bool, string)'"),
        ("[1, 'a'] == []", "expected type 'int' but found 'string'"),
        ("self.a ==", "compilation failed"),
    ] {
        let found = wrong(object(), bad);
        assert!(
            found.starts_with("s.properties[f].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":"),
            "{found}"
        );
        assert!(found.contains(why), "{bad}: {found}");
    }
}

#[test]
fn rules_that_are_too_dear_are_refused() {
    let nested = json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}});
    assert_eq!(
        wrong(nested, "self.all(x, x.all(y, y.contains('a')))"),
        format!(
            "s.properties[f].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {TRY}; \
             s.properties[f].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for \
             entire OpenAPIv3 schema; s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds \
             budget by factor of more than 100x {TRY}"
        )
    );
    // A rule in a list runs for each of its items, bounded or not.
    let inside = |bound: Value| {
        let mut list = json!({"type": "array", "items": {"type": "string", "maxLength": 1000, "x-kubernetes-validations": [{"rule": "self.contains('a')"}]}});
        list["maxItems"] = bound;
        check(&json!({"type": "object", "properties": {"f": list}}), "s").len()
    };
    assert_eq!((inside(json!(100)), inside(Value::Null)), (0, 3));
    let old = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 3, "items": {
        "type": "string", "maxLength": 3, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}});
    assert!(
        check(&old, "s")
            .iter()
            .any(|c| c.message.contains("uncorrelatable portion of the schema within s.properties[l]"))
    );
}

#[test]
fn fields_are_called_as_the_runner_calls_them() {
    let schema = json!({"type": "object", "properties": {"a_b": {"type": "string"}, "c_d-e": {"type": "string"}},
        "x-kubernetes-validations": [{"rule": "self.a_b == 'self.a_b' && has(self.c_d__dash__e) && a_b.size() > 0"}]});
    assert_eq!(
        for_the_runner(&schema)["x-kubernetes-validations"][0]["rule"],
        "self.a__b == 'self.a_b' && has(self.c__d__dash__e) && a_b.size() > 0"
    );
}

/// Our own definitions, which a real API server has to take.
#[test]
fn our_own_definitions_pass() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/base/files");
    let mut seen = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for document in text.split("\n---\n").filter(|d| d.contains("CustomResourceDefinition")) {
            let mut object: Value = serde_saphyr::from_str(document).unwrap();
            super::super::check::complete(&mut object);
            let causes = super::super::check::causes(&object, None);
            let told: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            assert!(told.is_empty(), "{}: {}", object["metadata"]["name"], told.join("\n"));
            for version in object["spec"]["versions"].as_array().unwrap() {
                let cost = total(&version["schema"]["openAPIV3Schema"]);
                println!("{} {}: {cost}", object["metadata"]["name"], version["name"]);
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} definitions");
}
