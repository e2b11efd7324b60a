//! JWT authentication: tokens in every state, at every place, under every requirement.

use crate::lab::*;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const KIND: &str = "jwt_authn.v3.JwtAuthentication";

/// Keys of an issuer, and what signs with them.
struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    p521: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    secret: Vec<u8>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn ec(algorithm: &'static signature::EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    EcdsaKeyPair::generate(algorithm).unwrap()
}

impl Issuer {
    fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            p256: ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            p521: ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
            ed: Ed25519KeyPair::generate().unwrap(),
            secret: b"a secret of sufficient length for HMAC".to_vec(),
        }
    }

    fn rsa_jwk(&self) -> Value {
        let key = self.rsa.public_key();
        let (n, e) = (key.modulus().big_endian_without_leading_zero(), key.exponent());
        json!({"kty": "RSA", "kid": "rsa", "n": B64.encode(n), "e": B64.encode(e.big_endian_without_leading_zero())})
    }

    fn ec_jwk(key: &EcdsaKeyPair, kid: &str, curve: &str) -> Value {
        let (x, y) = key.public_key().as_ref()[1..].split_at(key.public_key().as_ref().len() / 2);
        json!({"kty": "EC", "kid": kid, "crv": curve, "x": B64.encode(x), "y": B64.encode(y)})
    }

    fn jwks(&self) -> Value {
        json!({"keys": [
            self.rsa_jwk(),
            Self::ec_jwk(&self.p256, "p256", "P-256"),
            Self::ec_jwk(&self.p384, "p384", "P-384"),
            Self::ec_jwk(&self.p521, "p521", "P-521"),
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": B64.encode(self.ed.public_key().as_ref())},
            {"kty": "oct", "kid": "oct", "k": B64.encode(&self.secret)},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        ]})
    }

    fn token(&self, header: Value, payload: &Value) -> String {
        self.raw(&header, &payload.to_string())
    }

    fn raw(&self, header: &Value, payload: &str) -> String {
        let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(payload));
        let alg = header["alg"].as_str().unwrap_or_default();
        format!("{signed}.{}", B64.encode(self.sign(alg, signed.as_bytes())))
    }

    fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn signature::RsaEncoding| {
            let mut out = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, message, &mut out).unwrap();
            out
        };
        let mac = |algorithm| {
            let key = aws_lc_rs::hmac::Key::new(algorithm, &self.secret);
            aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
        };
        let ec = |key: &EcdsaKeyPair| key.sign(&random, message).unwrap().as_ref().to_vec();
        match alg {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            "ES256" => ec(&self.p256),
            "ES384" => ec(&self.p384),
            "ES512" => ec(&self.p521),
            "EdDSA" => self.ed.sign(message).as_ref().to_vec(),
            "HS256" => mac(aws_lc_rs::hmac::HMAC_SHA256),
            "HS384" => mac(aws_lc_rs::hmac::HMAC_SHA384),
            "HS512" => mac(aws_lc_rs::hmac::HMAC_SHA512),
            _ => b"none".to_vec(),
        }
    }

    /// A good token with these claims instead of the usual ones.
    fn good(&self, claims: Value) -> String {
        let mut payload = json!({"iss": "https://a.test", "sub": "ann", "aud": "shop", "exp": now() + 600});
        for (key, value) in claims.as_object().unwrap() {
            payload[key] = value.clone();
        }
        self.token(json!({"alg": "ES256", "kid": "p256"}), &payload)
    }
}

fn bearer(token: &str) -> Ask {
    Ask::get("/").header("authorization", &format!("Bearer {token}"))
}

fn provider(issuer: &str, jwks: &Value, more: Value) -> Value {
    let mut provider = json!({"issuer": issuer, "local_jwks": {"inline_string": jwks.to_string()}});
    for (key, value) in more.as_object().unwrap() {
        provider[key] = value.clone();
    }
    provider
}

fn setup(name: &'static str, providers: Value, requires: Value) -> Setup {
    let rules = json!([{"match": {"prefix": "/"}, "requires": requires}]);
    Setup::new(name).filter("jwt_authn", KIND, json!({"providers": providers, "rules": rules}))
}

fn tokens(a: &Issuer, b: &Issuer) -> Vec<Ask> {
    let payload = json!({"iss": "https://a.test", "sub": "ann", "aud": "shop"});
    let mut asks =
        vec![Ask::get("/"), Ask::get("/long/path?with=query"), bearer(&a.good(json!({}))), bearer(&b.good(json!({})))];
    for (alg, kid) in [
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa"),
        ("PS256", "rsa"),
        ("PS384", "rsa"),
        ("PS512", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("ES512", "p521"),
        ("EdDSA", "ed"),
        ("HS256", "oct"),
        ("HS384", "oct"),
        ("HS512", "oct"),
    ] {
        asks.push(bearer(&a.token(json!({"alg": alg, "kid": kid}), &payload)));
        asks.push(bearer(&a.token(json!({"alg": alg}), &payload)));
        asks.push(bearer(&a.token(json!({"alg": alg, "kid": "other"}), &payload)));
        // Signed with its own algorithm, sent as another key's.
        asks.push(bearer(&a.token(json!({"alg": alg, "kid": "rsa"}), &payload)));
        asks.push(bearer(&b.token(json!({"alg": alg, "kid": kid}), &payload)));
    }
    for header in [
        json!({"alg": "none"}),
        json!({"alg": "None", "kid": "rsa"}),
        json!({"kid": "rsa"}),
        json!({"alg": 1}),
        json!({"alg": "ES256", "kid": 7}),
        json!({"alg": "ES256", "kid": "../../p256"}),
        json!({"alg": "ES256", "kid": "broken"}),
        json!({"alg": "ES256K", "kid": "p256"}),
        json!({"alg": "es256", "kid": "p256"}),
        json!([]),
        json!({"alg": "ES256", "kid": "p256", "jwk": {"kty": "oct", "k": "AA"}, "jku": "http://evil.test", "typ": "JWT"}),
    ] {
        asks.push(bearer(&a.token(header, &payload)));
    }
    let (past, future) = (now() - 3600, now() + 3600);
    for claims in [
        json!({"exp": past}),
        json!({"exp": now() - 30}),
        json!({"exp": future}),
        json!({"nbf": future}),
        json!({"nbf": now() + 30}),
        json!({"exp": "1"}),
        json!({"exp": -1}),
        json!({"exp": 1e40}),
        json!({"exp": 1.5}),
        json!({"exp": null}),
        json!({"nbf": []}),
        json!({"iat": future}),
        json!({"iat": {}}),
        json!({"iat": -5}),
        json!({"iss": 3}),
        json!({"iss": "https://other.test"}),
        json!({"iss": ""}),
        json!({"iss": null}),
        json!({"sub": 4}),
        json!({"sub": null}),
        json!({"jti": 4}),
        json!({"aud": 4}),
        json!({"aud": [4]}),
        json!({"aud": []}),
        json!({"aud": null}),
        json!({"aud": ["x", "shop"]}),
        json!({"aud": "https://shop/"}),
        json!({"aud": "http://shop"}),
        json!({"aud": "shopping"}),
        json!({"aud": "SHOP"}),
        json!({"exp": 0}),
        json!({"nbf": 0}),
    ] {
        asks.push(bearer(&a.good(claims)));
    }
    let good = a.good(json!({}));
    let [header, payload64, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    for text in [
        String::new(),
        "x".into(),
        "a.b".into(),
        "a.b.c".into(),
        "..".into(),
        format!("{good}."),
        format!(".{good}"),
        format!("{header}.{payload64}."),
        format!("{header}..{signature}"),
        format!("{header}.{payload64}.{}", &signature[1..]),
        format!("{payload64}.{header}.{signature}"),
        format!("{header}.{payload64}.!!"),
        format!("{good} tail"),
        format!("{header}.{}.{signature}", B64.encode("[]")),
        format!("{header}.{}.{signature}", B64.encode("{")),
        format!("{}.{payload64}.{signature}", B64.encode("{")),
        format!("{header}=.{payload64}.{signature}"),
        format!("{header}.{}.{signature}", B64.encode(&B64.decode(payload64).unwrap()[1..])),
    ] {
        asks.push(bearer(&text));
    }
    asks.extend([
        Ask::get("/").header("authorization", &good),
        Ask::get("/").header("authorization", &format!("bearer {good}")),
        Ask::get("/").header("authorization", &format!("Basic x, Bearer {good}")),
        Ask::get("/").header("authorization", &format!("Bearer   {good}")),
        Ask::get(&format!("/?access_token={good}")),
        Ask::get(&format!("/p?a=1&access_token={good}&b=2")),
        Ask::get(&format!("/?access_token={good}")).header("authorization", "Bearer bad"),
        Ask::get("/?access_token=bad").header("authorization", &format!("Bearer {good}")),
        Ask::get("/").header("authorization", &format!("Bearer {good}")).header("authorization", "Bearer bad"),
        Ask::get("/").header("authorization", "Bearer bad").header("authorization", &format!("Bearer {good}")),
        Ask::get("/now").header("x-envoy-original-path", "/first?q=1"),
        Ask::with("OPTIONS", "/").header("origin", "http://o").header("access-control-request-method", "GET"),
        Ask::with("POST", "/s/m").header("content-type", "application/grpc"),
    ]);
    asks
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_judged_as_by_envoy() {
    let (a, b) = (Issuer::new(), Issuer::new());
    let providers = || json!({"a": provider("https://a.test", &a.jwks(), json!({}))});
    let one = json!({"provider_name": "a"});
    let with_audiences =
        json!({"a": provider("https://a.test", &a.jwks(), json!({"audiences": ["https://shop", "other/"]}))});
    let seen = compare(&[
        (setup("one provider", providers(), one.clone()), tokens(&a, &b)),
        (setup("audiences", with_audiences, one), tokens(&a, &b)),
    ])
    .await;
    let text = |i: usize| (seen[0][i].status, seen[0][i].body.as_str());
    assert_eq!(text(0), (401, "Jwt is missing"));
    assert_eq!(text(2).0, 200);
    assert_eq!(text(3), (401, "Jwt verification fails"));
    assert_eq!(seen[0][0].headers["www-authenticate"], "Bearer realm=\"http://app.test/\"");
    // What Envoy would take is refused here: an extension that nobody understands (RFC 7515 §4.1.11).
    let critical = a.token(json!({"alg": "ES256", "kid": "p256", "crit": ["exp"]}), &json!({"iss": "https://a.test"}));
    let only = setup("crit", providers(), json!({"provider_name": "a"}));
    let (app, _) = crate::support::echo_app().await;
    let (_engine, ports) = native(&[&only], app);
    assert_eq!(send(ports[0], &bearer(&critical)).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn requirements_and_traces_are_envoys() {
    let (a, b) = (Issuer::new(), Issuer::new());
    let two = || {
        json!({
            "a": provider("https://a.test", &a.jwks(), json!({"from_headers": [{"name": "x-a"}], "forward": true,
                "payload_in_metadata": "payload"})),
            "b": provider("https://b.test", &b.jwks(), json!({"from_headers": [{"name": "x-b", "value_prefix": "T "}],
                "from_params": ["tok"], "from_cookies": ["c"], "audiences": ["shop"]})),
        })
    };
    let (ta, tb) = (a.good(json!({})), b.good(json!({"iss": "https://b.test"})));
    let wrong_aud = b.good(json!({"iss": "https://b.test", "aud": "z"}));
    let asks = || {
        vec![
            Ask::get("/"),
            Ask::get("/").header("x-a", &ta),
            Ask::get("/").header("x-b", &format!("T {tb}")),
            Ask::get("/").header("x-b", &tb),
            Ask::get("/").header("x-a", &ta).header("x-b", &format!("T {tb}")),
            Ask::get("/").header("x-a", &ta).header("x-b", "T bad"),
            Ask::get("/").header("x-a", "bad").header("x-b", &format!("T {tb}")),
            Ask::get("/").header("x-a", &tb),
            Ask::get("/").header("x-b", &format!("T {ta}")),
            Ask::get("/").header("x-b", &format!("T {wrong_aud}")),
            Ask::get(&format!("/?x=1&tok={tb}&y")),
            Ask::get(&format!("/?z=1&a=c&tok={tb}&b&a=d&q=a=b")),
            Ask::get("/").header("cookie", &format!("z=1; c={tb}")),
            Ask::get("/").header("cookie", "c=bad").header("x-a", &ta),
            Ask::get("/").header("authorization", &format!("Bearer {ta}")),
        ]
    };
    let (pa, pb) = (json!({"provider_name": "a"}), json!({"provider_name": "b"}));
    let (missing, failed) = (json!({"allow_missing": {}}), json!({"allow_missing_or_failed": {}}));
    let any = |list: &[&Value]| json!({"requires_any": {"requirements": list}});
    let all = |list: &[&Value]| json!({"requires_all": {"requirements": list}});
    let other = json!({"provider_and_audiences": {"provider_name": "b", "audiences": ["z"]}});
    let istio = any(&[&pa, &pb, &all(&[&any(&[&pa, &missing]), &any(&[&pb, &missing])])]);
    let mut cases: Vec<(Setup, Vec<Ask>)> = [
        ("a", pa.clone()),
        ("b", pb.clone()),
        ("other audiences", other),
        ("any", any(&[&pa, &pb])),
        ("all", all(&[&pa, &pb])),
        ("allow missing", missing.clone()),
        ("allow failed", failed.clone()),
        ("a or missing", any(&[&pa, &missing])),
        ("any or missing", any(&[&pa, &pb, &missing])),
        ("any or failed", any(&[&pa, &pb, &failed])),
        ("all with missing", all(&[&pa, &missing])),
        ("istio", istio),
    ]
    .into_iter()
    .map(|(name, requires)| (setup(name, two(), requires), asks()))
    .collect();
    cases.extend(traces(&a));
    cases.extend(places(&a));
    compare(&cases).await;
}

/// What a good token leaves in the request.
fn traces(a: &Issuer) -> Vec<(Setup, Vec<Ask>)> {
    let rich = a.good(json!({"n": 12, "f": 1.5, "t": true, "s": "text", "l": ["x", 1], "o": {"deep": {"er": "in"}}, "neg": -2.25, "huge": 1e300,
        "null": null, "big": 12345678901u64, "scope": "read write", "uni": "ü", "a.b": "dotted"}));
    let claim = |claim: &str| json!({"header_name": format!("x-{}", claim.replace('.', "-")), "claim_name": claim});
    let claims: Vec<Value> =
        ["n", "f", "t", "s", "l", "o", "o.deep.er", "null", "big", "absent", "sub", "exp", "neg", "huge"]
            .iter()
            .map(|c| claim(c))
            .collect();
    let full = json!({"a": provider("https://a.test", &a.jwks(), json!({"forward_payload_header": "x-payload",
        "claim_to_headers": claims, "payload_in_metadata": "p", "header_in_metadata": "h", "audiences": [],
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]}}))});
    let padded = json!({"a": provider("https://a.test", &a.jwks(), json!({"forward_payload_header": "x-payload",
        "pad_forward_payload_header": true, "forward": true}))});
    let one = || json!({"provider_name": "a"});
    let path = |keys: &[&str]| keys.iter().map(|k| json!({"key": k})).collect::<Vec<_>>();
    let reads = |keys: &[&str], value: Value| {
        let metadata =
            json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path(keys), "value": value}});
        json!({"rules": {"policies": {"p": {"permissions": [metadata], "principals": [{"any": true}]}}}})
    };
    let list = |text: &str| json!({"list_match": {"one_of": {"string_match": {"exact": text}}}});
    let exact = |text: &str| json!({"string_match": {"exact": text}});
    let asks = || {
        vec![bearer(&rich), bearer(&rich).header("x-s", "forged").header("x-payload", "forged").header("x-absent", "f")]
    };
    let mut cases = vec![
        (setup("traces", full.clone(), one()), asks()),
        (setup("padded", padded, one()), asks()),
        (
            setup(
                "forged without a token",
                full.clone(),
                json!({"requires_any": {"requirements": [one(), {"allow_missing": {}}]}}),
            ),
            vec![Ask::get("/").header("x-s", "forged").header("x-payload", "forged"), bearer(&rich)],
        ),
    ];
    for (name, keys, value) in [
        ("scope list", &["p", "scope"][..], list("read")),
        ("no such scope", &["p", "scope"], list("delete")),
        ("text", &["p", "s"], exact("text")),
        ("nested", &["p", "o", "deep", "er"], exact("in")),
        ("in a list", &["p", "l"], list("x")),
        ("audience", &["p", "aud"], exact("shop")),
        ("number", &["p", "n"], json!({"double_match": {"exact": 12.0}})),
        ("range", &["p", "n"], json!({"double_match": {"range": {"start": 12, "end": 13}}})),
        ("truth", &["p", "t"], json!({"bool_match": true})),
        ("null", &["p", "null"], json!({"null_match": {}})),
        ("present object", &["p", "o"], json!({"present_match": true})),
        ("header", &["h", "kid"], exact("p256")),
        ("either", &["p", "s"], json!({"or_match": {"value_matchers": [exact("no"), exact("text")]}})),
    ] {
        cases.push((setup(name, full.clone(), one()).filter("rbac", "rbac.v3.RBAC", reads(keys, value)), asks()));
    }
    cases
}

/// Which rule, which route.
fn places(a: &Issuer) -> Vec<(Setup, Vec<Ask>)> {
    let good = a.good(json!({}));
    let here = |config: Value| typed("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", config);
    let hosts = json!([{"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": "/off"}, "route": {"cluster": "app"},
         "typed_per_filter_config": {"envoy.filters.http.jwt_authn": here(json!({"disabled": true}))}},
        {"match": {"prefix": "/named"}, "route": {"cluster": "app"},
         "typed_per_filter_config": {"envoy.filters.http.jwt_authn": here(json!({"requirement_name": "r"}))}},
        {"match": {"prefix": "/unknown"}, "route": {"cluster": "app"},
         "typed_per_filter_config": {"envoy.filters.http.jwt_authn": here(json!({"requirement_name": "other"}))}},
        {"match": {"prefix": "/", "headers": [{"name": "x-sub", "string_match": {"exact": "ann"}}]},
         "direct_response": {"status": 200, "body": {"inline_string": "ann's"}}},
        {"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]);
    let rules = json!([
        {"match": {"prefix": "/free"}},
        {"match": {"path": "/exact"}, "requires": {"provider_name": "a"}},
        {"match": {"prefix": "/", "headers": [{"name": "x-skip", "present_match": true}]}},
        {"match": {"safe_regex": {"regex": "/v[0-9]+/.*"}}, "requires": {"provider_name": "a"}},
        {"match": {"prefix": "/map"}, "requirement_name": "r"}]);
    let provider = provider(
        "https://a.test",
        &a.jwks(),
        json!({"claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}],
        "clear_route_cache": true, "require_expiration": true, "clock_skew_seconds": 5}),
    );
    let asks = || {
        let mut asks: Vec<Ask> =
            ["/free", "/exact", "/exact/x", "/v1/x", "/map/1", "/off", "/named", "/unknown", "/other"]
                .iter()
                .flat_map(|p| [Ask::get(p), Ask::get(p).header("authorization", &format!("Bearer {good}"))])
                .collect();
        asks.extend([
            Ask::get("/v1/x").header("x-skip", "1"),
            Ask::with("OPTIONS", "/v1/x").header("origin", "http://o").header("access-control-request-method", "GET"),
            Ask::with("OPTIONS", "/v1/x").header("origin", "http://o"),
            Ask::get("/v1/x").header("authorization", &format!("Bearer {}", a.good(json!({"exp": now() - 20})))),
        ]);
        asks
    };
    let config = |more: Value| {
        let mut config =
            json!({"providers": {"a": provider}, "rules": rules, "requirement_map": {"r": {"provider_name": "a"}}});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    vec![
        (Setup::new("rules").filter("jwt_authn", KIND, config(json!({}))).hosts(hosts.clone()), asks()),
        (
            Setup::new("preflights")
                .filter("jwt_authn", KIND, config(json!({"bypass_cors_preflight": true})))
                .hosts(hosts.clone()),
            asks(),
        ),
        (
            Setup::new("stripped")
                .filter("jwt_authn", KIND, config(json!({"strip_failure_response": true})))
                .hosts(hosts),
            asks(),
        ),
    ]
}

fn provider_with(jwks: &str) -> Value {
    json!({"issuer": "https://a.test", "local_jwks": {"inline_string": jwks}})
}

#[test]
fn key_sets_that_cannot_be_used_are_refused() {
    for (jwks, why) in [
        ("nonsense", "Jwks is an invalid JSON"),
        ("{}", "Jwks does not have [keys] field"),
        ("{\"keys\": []}", "Jwks doesn't have any valid public key"),
    ] {
        let setup = setup("keys", json!({"a": provider_with(jwks)}), json!({"provider_name": "a"}));
        let text = refused(&setup);
        assert!(text.contains("providers[\"a\"].local_jwks") && text.contains(why), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetched_keys_are_used_and_kept() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncWriteExt;
    let a = Issuer::new();
    let body = a.jwks().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let server = crate::support::raw_server(move |_, mut tcp| {
        let (body, count) = (body.clone(), Arc::clone(&count));
        async move {
            while crate::support::read_head(&mut tcp).await {
                count.fetch_add(1, Ordering::SeqCst);
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                tcp.write_all(text.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let remote = |cluster: &str| {
        json!({"issuer": "https://a.test", "remote_jwks": {"http_uri": {"uri": "http://keys.test/jwks?x=1", "cluster": cluster,
            "timeout": "2s"}, "cache_duration": "300s"}})
    };
    let one = json!({"provider_name": "a"});
    let setups = [
        setup("fetched", json!({"a": remote("keys")}), one.clone()).cluster(static_cluster("keys", server)),
        setup("not to be had", json!({"a": remote("gone")}), one)
            .cluster(static_cluster("gone", crate::support::free_port())),
    ];
    let (good, bad) = (a.good(json!({})), Issuer::new().good(json!({})));
    let cases: Vec<(Setup, Vec<Ask>)> =
        setups.into_iter().map(|s| (s, vec![Ask::get("/"), bearer(&good), bearer(&good), bearer(&bad)])).collect();
    let seen = compare(&cases).await;
    assert_eq!(seen[0][1].status, 200);
    assert_eq!(seen[1][1].body, "Jwks remote fetch is failed");
    // Once for Envoy, and at most once for each of our workers.
    assert!(asked.load(Ordering::SeqCst) <= 3, "{asked:?}");
}
