//! Endpoint choice: shares, panic, policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use carrick_proxy_core::balance::{Balancer, Choice, hash_request};
use carrick_proxy_core::xxhash::xxh64;
use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::envoy::r#type::v3::Percent;

use crate::message::{Store, assignment, cluster, endpoint, number};

fn host(last: usize) -> String {
    format!("10.0.0.{last}:80")
}

fn hosts(count: usize) -> Vec<eds::LbEndpoint> {
    (1..=count).map(|i| endpoint(&host(i))).collect()
}

fn unhealthy(mut endpoint: eds::LbEndpoint) -> eds::LbEndpoint {
    endpoint.health_status = 2;
    endpoint
}

fn weighing(mut endpoint: eds::LbEndpoint, weight: u32) -> eds::LbEndpoint {
    endpoint.load_balancing_weight = number(weight);
    endpoint
}

fn balancer(change: impl FnOnce(&mut cds::Cluster), priorities: &[&[eds::LbEndpoint]]) -> Balancer {
    let mut resource = cluster("c", cds::cluster::DiscoveryType::Eds);
    change(&mut resource);
    let mut store = Store::default();
    store.clusters(&[resource]).expect("accepted");
    store.endpoints(&[assignment("c", priorities)]).expect("accepted");
    let runtime = store.runtime();
    Balancer::new(Arc::clone(&runtime.endpoints["c"]), &runtime.clusters["c"])
}

/// Counts per host over many draws with a fixed random sequence.
fn draw(balancer: &mut Balancer, times: usize, active: &dyn Fn(usize) -> u32) -> BTreeMap<usize, usize> {
    let mut seed = 7_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let mut choice = Choice { active, ..Choice::at_random(&mut random) };
        if let Some(host) = balancer.choose(&mut choice) {
            *counts.entry(host).or_default() += 1;
        }
    }
    counts
}

fn policy(policy: cds::cluster::LbPolicy) -> impl FnOnce(&mut cds::Cluster) {
    move |c| c.lb_policy = policy.into()
}

#[test]
fn round_robin_takes_turns_and_weights() {
    let mut plain = balancer(policy(cds::cluster::LbPolicy::RoundRobin), &[&hosts(3)]);
    assert_eq!(draw(&mut plain, 9, &|_| 0), BTreeMap::from([(0, 3), (1, 3), (2, 3)]));
    let heavy = [weighing(endpoint(&host(1)), 1), weighing(endpoint(&host(2)), 3)];
    let mut weighted = balancer(policy(cds::cluster::LbPolicy::RoundRobin), &[&heavy]);
    assert_eq!(draw(&mut weighted, 400, &|_| 0), BTreeMap::from([(0, 100), (1, 300)]));
}

#[test]
fn least_request_prefers_the_idle() {
    let mut both = balancer(policy(cds::cluster::LbPolicy::LeastRequest), &[&hosts(2)]);
    let counts = draw(&mut both, 1000, &|host| if host == 0 { 100 } else { 0 });
    // Only when both draws are the busy one.
    assert!((180..320).contains(&counts[&0]), "{counts:?}");
}

#[test]
fn the_next_priority_takes_only_what_the_first_cannot() {
    let mut first: Vec<_> = hosts(4);
    first[2] = unhealthy(first[2].clone());
    first[3] = unhealthy(first[3].clone());
    let second: Vec<_> = (5..=6).map(|i| endpoint(&host(i))).collect();
    // Half healthy × 1.4 = 70 %.
    let mut both = balancer(policy(cds::cluster::LbPolicy::Random), &[&first, &second]);
    let counts = draw(&mut both, 10_000, &|_| 0);
    let of = |range: std::ops::Range<usize>| counts.range(range).map(|(_, n)| n).sum::<usize>();
    assert!((6700..7300).contains(&of(0..2)), "{counts:?}");
    assert_eq!(of(2..4), 0, "{counts:?}");
    assert!((2700..3300).contains(&of(4..6)), "{counts:?}");
}

#[test]
fn panic_uses_all_hosts_and_a_threshold_of_zero_none() {
    let sick: Vec<_> = hosts(4).into_iter().map(unhealthy).collect();
    let mut panicking = balancer(|_| {}, &[&sick]);
    assert_eq!(draw(&mut panicking, 8, &|_| 0).len(), 4);
    let never = |c: &mut cds::Cluster| {
        c.common_lb_config = Some(cds::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        });
    };
    assert!(draw(&mut balancer(never, &[&sick]), 8, &|_| 0).is_empty());
    let mut one_left = hosts(4);
    one_left.iter_mut().skip(1).for_each(|e| *e = unhealthy(e.clone()));
    assert_eq!(draw(&mut balancer(never, &[&one_left]), 8, &|_| 0), BTreeMap::from([(0, 8)]));
    // A quarter healthy is below the default threshold.
    assert_eq!(draw(&mut balancer(|_| {}, &[&one_left]), 8, &|_| 0).len(), 4);
}

#[test]
fn ejected_hosts_get_nothing_until_panic() {
    let mut three = balancer(|_| {}, &[&hosts(3)]);
    three.refresh(&|host| host == 1);
    let counts = draw(&mut three, 10, &|_| 0);
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [0, 2]);
    three.refresh(&|host| host != 1);
    assert_eq!(draw(&mut three, 9, &|_| 0).len(), 3, "two of three ejected is panic");
}

#[test]
fn previous_hosts_are_avoided_while_attempts_last() {
    let mut two = balancer(|_| {}, &[&hosts(2)]);
    let mut zero = || 0;
    for _ in 0..4 {
        let mut choice = Choice { avoid: &|host| host == 0, reselections: 5, ..Choice::at_random(&mut zero) };
        assert_eq!(two.choose(&mut choice), Some(1));
    }
    let mut only = balancer(|_| {}, &[&hosts(1)]);
    let mut choice = Choice { avoid: &|_| true, reselections: 5, ..Choice::at_random(&mut zero) };
    assert_eq!(only.choose(&mut choice), Some(0));
}

#[test]
fn no_hosts_no_choice() {
    for kind in [0, 1, 2, 3, 5] {
        let mut empty = balancer(|c| c.lb_policy = kind, &[]);
        assert!(draw(&mut empty, 3, &|_| 0).is_empty(), "policy {kind}");
        let mut hollow = balancer(|c| c.lb_policy = kind, &[&[], &hosts(1)]);
        assert_eq!(draw(&mut hollow, 3, &|_| 0), BTreeMap::from([(0, 3)]), "policy {kind}");
    }
}

fn by_hash(balancer: &mut Balancer, hash: u64) -> usize {
    let mut zero = || 0;
    let mut choice = Choice { hash: Some(hash), ..Choice::at_random(&mut zero) };
    balancer.choose(&mut choice).expect("a host")
}

#[test]
fn consistent_hashes_move_little_when_a_host_leaves() {
    for kind in [cds::cluster::LbPolicy::RingHash, cds::cluster::LbPolicy::Maglev] {
        let mut all = balancer(policy(kind), &[&hosts(10)]);
        let mut fewer = balancer(policy(kind), &[&hosts(9)]);
        let keys = (0..2000_u64).map(|i| xxh64(&i.to_le_bytes(), 0));
        let (mut moved, mut per_host) = (0, BTreeMap::<usize, usize>::new());
        for key in keys {
            let before = by_hash(&mut all, key);
            *per_host.entry(before).or_default() += 1;
            moved += usize::from(before != 9 && before != by_hash(&mut fewer, key));
        }
        assert_eq!(per_host.len(), 10, "{kind:?}");
        assert!(moved < 200, "{kind:?}: {moved} of 2000 keys moved between hosts that stayed");
    }
}

#[test]
fn xxhash_test_vectors() {
    // From the published sanity checks and widely used examples.
    for (text, hash) in [
        ("", 0xef46_db37_51d8_e999_u64),
        ("a", 0xd24e_c4f1_a98c_6e5b),
        ("abc", 0x44bc_2cf5_ad77_0999),
        ("Nobody inspects the spammish repetition", 0xfbce_a83c_8a37_8bf1),
    ] {
        assert_eq!(xxh64(text.as_bytes(), 0), hash, "{text}");
    }
}

#[test]
fn requests_hash_by_what_the_route_says() {
    use carrick_proxy_core::model::route::{HashPolicy, HashSource};
    let header = HashPolicy {
        terminal: true,
        source: HashSource::Header { name: http::HeaderName::from_static("x-user"), rewrite: None },
    };
    let cookie = HashPolicy {
        terminal: false,
        source: HashSource::Cookie {
            name: "s".into(),
            ttl: Some(std::time::Duration::from_secs(60)),
            path: "/".into(),
            attributes: "".into(),
        },
    };
    let policies = [header, cookie];
    let named = crate::message::Request::get("h/").with("x-user", "u");
    assert_eq!(hash_request(&policies, &named.head(), None, 1), (Some(xxh64(b"u", 0)), None));
    let unnamed = crate::message::Request::get("h/");
    let (hash, set) = hash_request(&policies, &unnamed.head(), None, 1);
    assert_eq!(set.as_deref(), Some("s=\"0000000000000001\"; Max-Age=60; Path=/; HttpOnly"));
    let back = crate::message::Request::get("h/").with("cookie", "a=b; s=\"0000000000000001\"");
    assert_eq!(hash_request(&policies, &back.head(), None, 2), (hash, None));
}

#[test]
fn new_hosts_take_their_share_slowly() {
    use carrick_proxy_core::model::cluster::SlowStart;
    use std::time::Duration;
    let slow = SlowStart { window: Duration::from_secs(100), aggression: 1.0, least: 0.1 };
    let at = |seconds| (slow.share(Duration::from_secs(seconds)) * 100.0).round();
    assert_eq!([0, 5, 50, 99, 100, 500].map(at), [10.0, 10.0, 50.0, 99.0, 100.0, 100.0]);
    let steep = SlowStart { aggression: 2.0, ..slow };
    assert_eq!((steep.share(Duration::from_secs(25)) * 100.0).round(), 50.0);
    for kind in [cds::cluster::LbPolicy::RoundRobin, cds::cluster::LbPolicy::Random] {
        let mut two = balancer(policy(kind), &[&hosts(2)]);
        let mut seed = 7_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed ^ (seed >> 32)
        };
        let share = |host: usize| if host == 0 { 0.25 } else { 1.0 };
        let mut counts = [0_u32; 2];
        for _ in 0..5000 {
            let mut choice = Choice { share: Some(&share), ..Choice::at_random(&mut random) };
            counts[two.choose(&mut choice).unwrap()] += 1;
        }
        assert!((850..1150).contains(&counts[0]), "{kind:?}: a fifth of 5000, found {counts:?}");
    }
}

#[test]
fn priorities_tried_are_avoided_while_there_are_others() {
    let first = [unhealthy(endpoint(&host(1))), endpoint(&host(2)), unhealthy(endpoint(&host(3)))];
    let mut two = balancer(|c| c.common_lb_config = no_panic(), &[&first, &hosts(1)]);
    let mut random = || 0;
    for _ in 0..5 {
        let mut choice = Choice { avoid_priority: &|p| p == 0, ..Choice::at_random(&mut random) };
        assert_eq!(two.choose(&mut choice), Some(3), "the host of the second priority");
        let mut choice = Choice { avoid_priority: &|_| true, ..Choice::at_random(&mut random) };
        assert_eq!(two.choose(&mut choice), Some(1), "all tried: as if none");
    }
}

fn no_panic() -> Option<cds::cluster::CommonLbConfig> {
    Some(cds::cluster::CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 0.0 }), ..Default::default() })
}

#[test]
fn policies_of_the_newer_field() {
    use carrick_proxy_core::model::cluster::LbPolicy;
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use envoy_types::pb::envoy::extensions::load_balancing_policies as typed;
    use envoy_types::pb::google::protobuf::Any;
    let listed = |configs: Vec<Any>| cds::LoadBalancingPolicy {
        policies: configs
            .into_iter()
            .map(|config| cds::load_balancing_policy::Policy {
                typed_extension_config: Some(TypedExtensionConfig { name: "p".to_owned(), typed_config: Some(config) }),
            })
            .collect(),
    };
    let unknown = || Any { type_url: "type.googleapis.com/x.Unknown".to_owned(), value: vec![] };
    let random = || crate::message::any(&typed::random::v3::Random::default());
    let locality = crate::message::any(&typed::wrr_locality::v3::WrrLocality {
        endpoint_picking_policy: Some(listed(vec![
            crate::message::any(&typed::round_robin::v3::RoundRobin::default()),
        ])),
    });
    let cases = [
        (vec![random()], LbPolicy::Random, false),
        (vec![unknown(), random()], LbPolicy::Random, false),
        (vec![locality], LbPolicy::RoundRobin, true),
        (
            vec![crate::message::any(&typed::maglev::v3::Maglev::default())],
            LbPolicy::Maglev { table: 65_537, by_hostname: false },
            false,
        ),
    ];
    for (configs, expected, weighted) in cases {
        let mut resource = cluster("c", cds::cluster::DiscoveryType::Eds);
        resource.load_balancing_policy = Some(listed(configs));
        let mut store = Store::default();
        store.clusters(&[resource]).expect("accepted");
        store.endpoints(&[assignment("c", &[&hosts(1)])]).expect("accepted");
        let found = &store.runtime().clusters["c"];
        assert_eq!((&found.lb, found.locality_weighted), (&expected, weighted));
    }
    let mut resource = cluster("c", cds::cluster::DiscoveryType::Eds);
    resource.load_balancing_policy = Some(listed(vec![unknown()]));
    let refused = Store::default().clusters(&[resource]).expect_err("refused");
    assert_eq!(refused[0].to_string(), "c: load_balancing_policy: no supported policy among \"p\"");
}
