//! Virtual hosts, route matches, rewrites, redirects, header mutations.

use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::RouteTable;
use carrick_proxy_core::model::route::Action;
use carrick_proxy_core::mutate::Levels;
use carrick_proxy_core::rewrite;
use carrick_proxy_core::routing::{RouteFacts, RouteLookup, split_port};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::Int64Range;
use http::HeaderMap;
use std::sync::Arc;

use crate::message::{
    Request, Store, chain, http, listener, manager, number, prefix, rds_source, route, table, virtual_host,
};

/// Through the store, so that what is refused there cannot be tested here.
pub fn build(config: pb::RouteConfiguration) -> Arc<RouteTable> {
    let mut store = Store::default();
    let name = config.name.clone();
    let http = http(&manager(rds_source(&name)));
    store.routes(&[config]).expect("accepted");
    store.listeners(&[listener("l", "0.0.0.0:80", vec![chain("", Default::default(), http)])]).expect("accepted");
    Arc::clone(&store.runtime().routes[&*name])
}

fn found(table: &RouteTable, request: &Request) -> String {
    match table.find(&request.head(), &RouteFacts::default()) {
        RouteLookup::Found { route, .. } => route.name.to_string(),
        RouteLookup::RequiresTls { .. } => "requires tls".to_owned(),
        RouteLookup::NotFound => "not found".to_owned(),
    }
}

#[test]
fn domains_exact_then_longest_suffix_then_longest_prefix_then_all() {
    let host = |domain: &str| virtual_host(domain, &[domain], vec![route(prefix("/"), domain)]);
    let domains = ["a.com", "*.com", "*.b.com", "*-b.com", "www.*", "www.x.*", "*"];
    let table = build(pb::RouteConfiguration {
        ignore_port_in_host_matching: true,
        ..table("t", domains.iter().map(|d| host(d)).collect())
    });
    for (authority, expected) in [
        ("a.com", "a.com"),
        ("A.COM:8080", "a.com"),
        ("x.b.com", "*.b.com"),
        ("x-b.com", "*-b.com"),
        ("b.com", "*.com"),
        (".b.com", "*.com"),
        ("www.y.org", "www.*"),
        ("www.x.org", "www.x.*"),
        ("www.y.com", "*.com"),
        ("10.0.0.1:80", "*"),
        ("[::1]:80", "*"),
    ] {
        assert_eq!(found(&table, &Request::get(&format!("{authority}/"))), expected, "{authority}");
    }
    assert_eq!(found(&table, &Request::get("")), "not found");
}

#[test]
fn without_ignoring_it_the_port_is_part_of_the_domain() {
    let table = build(table("t", vec![virtual_host("v", &["a.com:80"], vec![route(prefix("/"), "r")])]));
    assert_eq!(found(&table, &Request::get("a.com:80/")), "r");
    assert_eq!(found(&table, &Request::get("a.com/")), "not found");
}

#[test]
fn ports_are_told_from_addresses() {
    for (authority, host, port) in [
        ("a", "a", None),
        ("a:1", "a", Some("1")),
        ("[::1]:1", "[::1]", Some("1")),
        ("::1", "::1", None),
        ("a:", "a:", None),
        ("a:b", "a:b", None),
    ] {
        assert_eq!(split_port(authority), (host, port));
    }
}

#[test]
fn paths_are_matched_without_their_query() {
    use pb::route_match::PathSpecifier as P;
    let regex = |r: &str| P::SafeRegex(matcher::RegexMatcher { regex: r.to_owned(), ..Default::default() });
    let mut blind = route(P::Path("/Case".to_owned()), "blind");
    blind.r#match.as_mut().unwrap().case_sensitive = crate::message::flag(false);
    let table = build(table(
        "t",
        vec![virtual_host(
            "v",
            &["*"],
            vec![
                route(P::Path("/exact".to_owned()), "exact"),
                blind,
                route(P::PathSeparatedPrefix("/sep".to_owned()), "sep"),
                route(regex("/r[0-9]+"), "regex"),
                route(prefix("/p"), "prefix"),
            ],
        )],
    ));
    for (path, expected) in [
        ("/exact", "exact"),
        ("/exact?q=/p", "exact"),
        ("/exact/", "not found"),
        ("/cASE", "blind"),
        ("/sep", "sep"),
        ("/sep/x?y", "sep"),
        ("/separate", "not found"),
        ("/r12?a", "regex"),
        ("/r12x", "not found"),
        ("/xr12", "not found"),
        ("/pq", "prefix"),
    ] {
        assert_eq!(found(&table, &Request::get(&format!("h{path}"))), expected, "{path}");
    }
}

fn header(name: &str, specifier: Option<pb::header_matcher::HeaderMatchSpecifier>) -> pb::HeaderMatcher {
    pb::HeaderMatcher { name: name.to_owned(), header_match_specifier: specifier, ..Default::default() }
}

#[test]
fn header_matchers_as_envoys() {
    use matcher::string_matcher::MatchPattern as M;
    use pb::header_matcher::HeaderMatchSpecifier as S;
    let text =
        |pattern| Some(S::StringMatch(matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: true }));
    let inverted = |m: pb::HeaderMatcher| pb::HeaderMatcher { invert_match: true, ..m };
    let empty = |m: pb::HeaderMatcher| pb::HeaderMatcher { treat_missing_header_as_empty: true, ..m };
    let exact = || header("x-a", text(M::Exact("Abc".to_owned())));
    let range = || header("x-a", Some(S::RangeMatch(Int64Range { start: -10, end: 10 })));
    // Matcher, value of x-a, whether it matches.
    let cases = [
        (exact(), Some("aBC"), true),
        (exact(), Some("abcd"), false),
        (exact(), None, false),
        (inverted(exact()), Some("abc"), false),
        (inverted(exact()), Some("x"), true),
        (inverted(exact()), None, false),
        (empty(inverted(exact())), None, true),
        (header("x-a", text(M::Prefix("AB".to_owned()))), Some("abz"), true),
        (header("x-a", text(M::Suffix("yz".to_owned()))), Some("xYZ"), true),
        (header("x-a", text(M::Contains("b".to_owned()))), Some("aBc"), true),
        (header("x-a", None), Some(""), true),
        (header("x-a", None), None, false),
        (header("x-a", Some(S::PresentMatch(false))), None, true),
        (inverted(header("x-a", Some(S::PresentMatch(true)))), None, true),
        (range(), Some("-10"), true),
        (range(), Some("10"), false),
        (range(), Some("x"), false),
        (empty(inverted(range())), None, true),
        (header(":method", text(M::Exact("get".to_owned()))), None, true),
    ];
    for (matcher, value, expected) in cases {
        let mut one = route(prefix("/"), "r");
        one.r#match.as_mut().unwrap().headers = vec![matcher.clone()];
        let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
        let mut request = Request::get("h/");
        if let Some(value) = value {
            request = request.with("x-a", value);
        }
        assert_eq!(found(&table, &request) == "r", expected, "{matcher:?} on {value:?}");
    }
}

#[test]
#[allow(deprecated)]
fn each_of_several_values_counts() {
    use pb::header_matcher::HeaderMatchSpecifier as S;
    for (wanted, inverted, end) in
        [("1", false, "r"), ("2", false, "r"), ("1,2", false, "not found"), ("2", true, "not found"), ("3", true, "r")]
    {
        let mut one = route(prefix("/"), "r");
        let mut matcher = header("x-a", Some(S::ExactMatch(wanted.to_owned())));
        matcher.invert_match = inverted;
        one.r#match.as_mut().unwrap().headers = vec![matcher];
        let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
        let request = Request::get("h/").with("x-a", "1").with("x-a", "2");
        assert_eq!(found(&table, &request), end, "{wanted} {inverted}");
    }
}

#[test]
fn query_parameters_are_decoded() {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
    let value = |text: &str| matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(text.to_owned())),
        ..Default::default()
    };
    let mut one = route(prefix("/"), "r");
    one.r#match.as_mut().unwrap().query_parameters = vec![pb::QueryParameterMatcher {
        name: "a".to_owned(),
        query_parameter_match_specifier: Some(Q::StringMatch(value("x/y"))),
    }];
    let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
    for (path, expected) in
        [("/?b=1&a=x%2Fy", "r"), ("/?a=x", "not found"), ("/", "not found"), ("/?a=z&a=x/y", "not found")]
    {
        assert_eq!(found(&table, &Request::get(&format!("h{path}"))), expected, "{path}");
    }
}

#[test]
fn weights_share_by_the_random_number() {
    let weight = |name: &str, weight| pb::weighted_cluster::ClusterWeight {
        name: name.to_owned(),
        weight: number(weight),
        ..Default::default()
    };
    let clusters = vec![weight("a", 1), weight("zero", 0), weight("b", 3)];
    let specifier =
        pb::route_action::ClusterSpecifier::WeightedClusters(pb::WeightedCluster { clusters, ..Default::default() });
    let action = pb::RouteAction { cluster_specifier: Some(specifier), ..Default::default() };
    let mut one = route(prefix("/"), "r");
    one.action = Some(pb::route::Action::Route(action));
    let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
    let route = &table.virtual_hosts[0].routes[0];
    let request = Request::get("h/");
    let chosen: Vec<_> =
        (0..8).map(|random| route.forward().unwrap().choose_cluster(&request.head(), random).unwrap().name).collect();
    assert_eq!(chosen, ["a", "b", "b", "b", "a", "b", "b", "b"]);
}

#[test]
fn rewrites_keep_the_query() {
    let cases = [
        ("/api", "/", "/api/v1?q=1", "//v1?q=1"),
        ("/api/", "/", "/api/v1?q=1", "/v1?q=1"),
        ("/api", "/new", "/api", "/new"),
    ];
    for (matched, to, path, expected) in cases {
        let mut one = route(prefix(matched), "r");
        if let Some(pb::route::Action::Route(action)) = &mut one.action {
            action.prefix_rewrite = to.to_owned();
        }
        let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
        let route = &table.virtual_hosts[0].routes[0];
        let new = rewrite::path(route.forward().unwrap(), &route.matching.path, path);
        assert_eq!(new.as_deref(), Some(expected));
    }
}

#[test]
fn regex_rewrites_know_groups() {
    let mut one = route(prefix("/"), "r");
    if let Some(pb::route::Action::Route(action)) = &mut one.action {
        action.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
            pattern: Some(matcher::RegexMatcher { regex: "^/service/([^/]+)(/.*)$".to_owned(), ..Default::default() }),
            substitution: r"\2/instance/\1$".to_owned(),
        });
    }
    let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
    let route = &table.virtual_hosts[0].routes[0];
    let new = rewrite::path(route.forward().unwrap(), &route.matching.path, "/service/foo/v1/api?x");
    assert_eq!(new.as_deref(), Some("/v1/api/instance/foo$?x"));
}

#[test]
fn redirects() {
    use pb::redirect_action::{PathRewriteSpecifier as P, SchemeRewriteSpecifier as S};
    let base = pb::RedirectAction::default();
    let cases = [
        (
            pb::RedirectAction { scheme_rewrite_specifier: Some(S::HttpsRedirect(true)), ..base.clone() },
            301,
            "https://h/a?q",
        ),
        (pb::RedirectAction { host_redirect: "o".to_owned(), ..base.clone() }, 301, "http://o/a?q"),
        (pb::RedirectAction { port_redirect: 8443, strip_query: true, ..base.clone() }, 301, "http://h:8443/a"),
        // A port that is asked for is written although it is the scheme's own, as Envoy does.
        (pb::RedirectAction { port_redirect: 80, strip_query: true, ..base.clone() }, 301, "http://h:80/a"),
        (
            pb::RedirectAction {
                path_rewrite_specifier: Some(P::PathRedirect("/z".to_owned())),
                response_code: 3,
                ..base.clone()
            },
            307,
            "http://h:80/z?q",
        ),
        (
            pb::RedirectAction { path_rewrite_specifier: Some(P::PrefixRewrite("/n".to_owned())), ..base },
            301,
            "http://h:80/na?q",
        ),
    ];
    for (action, status, location) in cases {
        let mut one = route(prefix("/"), "r");
        one.action = Some(pb::route::Action::Redirect(action));
        let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
        let route = &table.virtual_hosts[0].routes[0];
        let Action::Redirect(redirect) = &route.action else { panic!("a redirect") };
        let request = Request::get("h:80/a?q");
        let (code, to) = rewrite::redirect(redirect, &route.matching.path, &request.head());
        assert_eq!((code.as_u16(), to.as_str()), (status, location));
    }
}

fn add(name: &str, value: &str, action: i32) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: name.to_owned(), value: value.to_owned(), ..Default::default() }),
        append_action: action,
        ..Default::default()
    }
}

fn mutated(most_specific_wins: bool) -> HeaderMap {
    let mut one = route(prefix("/"), "r");
    one.request_headers_to_add =
        vec![add("x-level", "route", 2), add("x-path", "%REQ(:PATH)%-%PROTOCOL%", 0), add("x-none", "%REQ(x-no)%", 0)];
    one.request_headers_to_remove = vec!["x-gone".to_owned()];
    let mut host = virtual_host("v", &["*"], vec![one]);
    host.request_headers_to_add = vec![add("x-level", "host", 2), add("x-absent", "new", 1), add("x-there", "new", 1)];
    let table = build(pb::RouteConfiguration {
        request_headers_to_add: vec![add("x-level", "table", 2), add("x-only-if", "never", 3)],
        most_specific_header_mutations_wins: most_specific_wins,
        ..table("t", vec![host])
    });
    let request = Request::get("h/p").with("x-gone", "1").with("x-there", "old");
    let virtual_host = &table.virtual_hosts[0];
    let levels = Levels { table: &table, virtual_host, route: &virtual_host.routes[0], weighted: None };
    let mut headers = request.headers.clone();
    let facts = Facts { request: Some(request.head()), protocol: Some("HTTP/1.1"), ..Facts::default() };
    levels.mutate_request(&mut headers, &facts);
    headers
}

#[test]
fn mutations_go_from_route_to_table_unless_reversed() {
    let headers = mutated(false);
    assert_eq!(headers["x-level"], "table");
    assert_eq!(headers["x-path"], "/p-HTTP/1.1");
    assert_eq!(headers["x-absent"], "new");
    assert_eq!(headers["x-there"], "old");
    for absent in ["x-gone", "x-none", "x-only-if"] {
        assert!(!headers.contains_key(absent), "{absent}");
    }
    assert_eq!(mutated(true)["x-level"], "route");
}

#[test]
fn what_replaces_goes_before_what_adds() {
    let mut one = route(prefix("/"), "r");
    one.request_headers_to_add = vec![add("x-a", "first", 0), add("x-a", "set", 2), add("x-a", "last", 0)];
    let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
    let virtual_host = &table.virtual_hosts[0];
    let levels = Levels { table: &table, virtual_host, route: &virtual_host.routes[0], weighted: None };
    let mut headers = Request::get("h/p").with("x-a", "old").headers;
    levels.mutate_request(&mut headers, &Facts::default());
    assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["set", "first", "last"]);
}

fn typed(name: &str, config: envoy_types::pb::google::protobuf::Any) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) }
}

#[test]
fn templates_match_and_rewrite() {
    use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
    use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
    let matched = UriTemplateMatchConfig { path_template: "/tmpl/{a}/{b=**}".to_owned() };
    let rewrite = UriTemplateRewriteConfig { path_template_rewrite: "/{b}/{a}".to_owned() };
    let mut one =
        route(pb::route_match::PathSpecifier::PathMatchPolicy(typed("t", crate::message::any(&matched))), "one");
    if let Some(pb::route::Action::Route(action)) = &mut one.action {
        action.path_rewrite_policy = Some(typed("t", crate::message::any(&rewrite)));
    }
    let table = build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
    let request = Request::get("h/tmpl/x/y/z?q=1");
    assert_eq!(found(&table, &request), "one");
    assert_eq!(found(&table, &Request::get("h/tmpl/x")), "not found");
    let route = &table.virtual_hosts[0].routes[0];
    let action = route.forward().unwrap();
    let new = carrick_proxy_core::rewrite::path(action, &route.matching.path, request.head().path);
    assert_eq!(new.as_deref(), Some("/y/z/x?q=1"), "as Envoy 1.40");
}

#[test]
fn claims_choose_the_route() {
    use carrick_proxy_core::model::metadata::{Metadata, Value};
    use envoy_types::pb::envoy::r#type::matcher::v3 as m;
    let segment = |key: &str| m::metadata_matcher::PathSegment {
        segment: Some(m::metadata_matcher::path_segment::Segment::Key(key.to_owned())),
    };
    let text = |text: &str| m::ValueMatcher {
        match_pattern: Some(m::value_matcher::MatchPattern::StringMatch(m::StringMatcher {
            match_pattern: Some(m::string_matcher::MatchPattern::Exact(text.to_owned())),
            ..Default::default()
        })),
    };
    let listed = |one: m::ValueMatcher| m::ValueMatcher {
        match_pattern: Some(m::value_matcher::MatchPattern::ListMatch(Box::new(m::ListMatcher {
            match_pattern: Some(m::list_matcher::MatchPattern::OneOf(Box::new(one))),
        }))),
    };
    let mut admins = route(prefix("/"), "admins");
    admins.r#match.as_mut().unwrap().dynamic_metadata = vec![m::MetadataMatcher {
        filter: "jwt".to_owned(),
        path: vec![segment("payload"), segment("groups")],
        value: Some(m::ValueMatcher {
            match_pattern: Some(m::value_matcher::MatchPattern::OrMatch(m::OrMatcher {
                value_matchers: vec![text("admin"), listed(text("admin"))],
            })),
        }),
        invert: false,
    }];
    let table = build(table("t", vec![virtual_host("v", &["*"], vec![admins, route(prefix("/"), "others")])]));
    let claims = |groups: Value| {
        let payload = Value::Object([("groups".into(), groups)].into());
        Metadata([("jwt".into(), [("payload".into(), payload)].into())].into())
    };
    let one = claims(Value::Text("admin".into()));
    let several = claims(Value::List(vec![Value::Text("x".into()), Value::Text("admin".into())]));
    let other = claims(Value::Text("x".into()));
    for (metadata, expected) in
        [(Some(&one), "admins"), (Some(&several), "admins"), (Some(&other), "others"), (None, "others")]
    {
        let facts = RouteFacts { metadata, ..RouteFacts::default() };
        let RouteLookup::Found { route, .. } = table.find(&Request::get("h/").head(), &facts) else {
            panic!("a route")
        };
        assert_eq!(&*route.name, expected);
    }
}

#[test]
fn mirrors_are_inherited_from_host_and_table() {
    use pb::route_action::RequestMirrorPolicy;
    let mirror = |cluster: &str| RequestMirrorPolicy { cluster: cluster.to_owned(), ..Default::default() };
    let mut own = route(prefix("/own"), "own");
    if let Some(pb::route::Action::Route(action)) = &mut own.action {
        action.request_mirror_policies = vec![mirror("of-route"), mirror("second")];
    }
    let mut with = virtual_host("with", &["with"], vec![own, route(prefix("/"), "r")]);
    with.request_mirror_policies = vec![mirror("of-host")];
    let mut config = table("t", vec![with, virtual_host("without", &["without"], vec![route(prefix("/"), "r")])]);
    config.request_mirror_policies = vec![mirror("of-table")];
    let table = build(config);
    for (host, number, expected) in [(0, 0, "of-route second"), (0, 1, "of-host"), (1, 0, "of-table")] {
        let mirrors = &table.virtual_hosts[host].routes[number].forward().unwrap().mirrors;
        let names: Vec<_> = mirrors
            .iter()
            .map(|m| match &m.target {
                carrick_proxy_core::model::route::MirrorTarget::Cluster(name) => &**name,
                carrick_proxy_core::model::route::MirrorTarget::Header(_) => "?",
            })
            .collect();
        assert_eq!(names.join(" "), expected);
        assert!(mirrors.iter().all(|m| m.fraction == 1_000_000 && m.host_suffix));
    }
}
