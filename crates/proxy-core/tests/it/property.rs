//! Whatever the bytes, nothing panics, and a refused resource changes nothing.

use std::sync::Arc;

use carrick_proxy_core::format;
use carrick_proxy_core::hygiene::path;
use carrick_proxy_core::model::hcm::{EscapedSlashes, PathOptions};
use carrick_proxy_core::store::type_url;
use envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType;
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;

use crate::message::{
    Store, any as pack, assignment, chain, cluster, endpoint, http, listener, manager, name, prefix, rds_source, route,
    table, tcp, virtual_host,
};

/// A valid resource of each type.
fn seeds() -> Vec<(&'static str, Any)> {
    let chains = vec![
        chain("h", Default::default(), http(&manager(rds_source("x")))),
        chain(
            "t",
            envoy_types::pb::envoy::config::listener::v3::FilterChainMatch {
                transport_protocol: "tls".to_owned(),
                ..Default::default()
            },
            tcp("c"),
        ),
    ];
    vec![
        (type_url::LISTENER, pack(&listener("x", "0.0.0.0:1", chains))),
        (type_url::CLUSTER, pack(&cluster("x", DiscoveryType::Eds))),
        (type_url::ENDPOINT, pack(&assignment("x", &[&[endpoint("1.1.1.1:1")]]))),
        (type_url::ROUTE, pack(&table("x", vec![virtual_host("v", &["*"], vec![route(prefix("/"), "c")])]))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(kind in 0_usize..4, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (url, mut body) = seeds().swap_remove(kind);
        body.value = bytes;
        let mut store = Store::default();
        let _ = store.0.apply(url, vec![(name("x"), body)], &[]);
    }

    #[test]
    fn flipped_bytes_are_refused_or_taken_but_never_half(
        kind in 0_usize..4,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut store = Store::default();
        for (url, body) in seeds() {
            store.0.apply(url, vec![(name("x"), body)], &[]).unwrap();
        }
        let before = store.runtime();
        let dump = store.0.dump();
        let (url, mut body) = seeds().swap_remove(kind);
        for (at, byte) in changes {
            let at = at.index(body.value.len());
            body.value[at] = byte;
        }
        if let Some(cut) = cut {
            body.value.truncate(cut.index(body.value.len()));
        }
        if store.0.apply(url, vec![(name("x"), body)], &[]).is_err() {
            prop_assert!(Arc::ptr_eq(&before, &store.runtime()));
            prop_assert_eq!(dump, store.0.dump());
        }
    }

    #[test]
    fn formats_do_not_panic(text in "[%A-Z_():a-z' ?=.]{0,60}") {
        let _ = format::parse(&text);
    }

    #[test]
    fn normalizing_twice_is_normalizing_once(text in "/[a-c./%2eEfF5cC\\\\]{0,40}") {
        let options = PathOptions { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::UnescapeAndForward };
        if let Ok(once) = path::normalize(&text, &options, false) {
            prop_assert!(once.starts_with('/'));
            prop_assert!(!once.split('/').any(|s| s == ".."), "{} from {}", once, text);
        }
        let base = PathOptions { normalize: true, ..PathOptions::default() };
        if let Ok(once) = path::normalize(&text, &base, false) {
            let again = path::normalize(&once, &base, false);
            prop_assert_eq!(again.as_deref(), Ok(&*once), "{}", text);
        }
    }
}
