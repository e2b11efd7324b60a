//! Requests: to services through the client's sidecar, straight to the server's, and to the gateway.

use serde_json::{Value, json};

use super::Dice;
use crate::differential::case::{Ask, Request, Says, Tls, Token};
use crate::differential::world;

const PATHS: [&str; 34] = [
    "/",
    "/admin",
    "/admin/x",
    "/Admin",
    "/a/b/c",
    "/public/a.html",
    "/api/v1/users/7",
    "/api/v1/users",
    "/api/v2",
    "//admin",
    "/x/../admin",
    "/admin%2Fx",
    "/%61dmin",
    "/admin;x=1",
    "/admin/",
    "/admin?x=1",
    "/a//b",
    "/./admin",
    "/x/%2e%2e/admin",
    "/a%5Cb",
    "/a\\b",
    "/admin?q=one",
    "/?q=1&q=one",
    "/x?q=",
    "/admin%00",
    "/%ff",
    "/a/./b/../../admin",
    "/../admin",
    "/admin%20x",
    "/a%2fb%2Fc",
    "/admin#frag",
    "/a/%",
    "/moved",
    "/x;/../admin",
];

pub fn ask(dice: &mut Dice, gateway: bool) -> Ask {
    match dice.below(if gateway { 10 } else { 7 }) {
        0..=3 => by_client(dice),
        4..=6 => at_server(dice),
        _ => at_gateway(dice),
    }
}

fn by_client(dice: &mut Dice) -> Ask {
    let (to, hosts): ((u8, u16), &[&str]) = match dice.below(9) {
        0..=3 => (
            (world::SERVER_VIP, 8080),
            &[
                "server.app",
                "server.app:8080",
                "server.app.svc.cluster.local",
                "SERVER.app",
                "server.app.svc",
                "shop.example.com",
            ],
        ),
        4 => ((world::PLAIN_VIP, 8080), &["plain.app", "plain.app:8080", "plain.app.svc.cluster.local:8080"]),
        5 => ((world::PLAIN_VIP, 8443), &["plain.app:8443", "plain.app.svc.cluster.local:8443"]),
        6 => ((world::ABROAD_VIP, 80), &["api.example.com", "api.example.com:80", "API.example.com"]),
        7 => ((world::NOBODY, 8080), &["unknown.example.com", "server.app:8080"]),
        _ if dice.once_in(3) => ((world::ABROAD_VIP, 8081), &["api.example.com"]),
        _ => ((world::SERVER_VIP, 8081), &["server.app:8081"]),
    };
    let says =
        if dice.once_in(if to.1 == 8081 { 2 } else { 20 }) { bytes(dice) } else { Says::Http(request(dice, hosts)) };
    Ask { from: world::CLIENT, to, tls: None, says }
}

fn at_server(dice: &mut Dice) -> Ask {
    let port = dice.one(&[8080, 8080, 8080, 8081, 8090]);
    let tls = (!dice.once_in(3)).then(|| Tls {
        sni: dice
            .one(&[
                None,
                Some("outbound_.8080_._.server.app.svc.cluster.local"),
                Some("server.app"),
                Some("shop.example.com"),
            ])
            .map(str::to_owned),
        alpn: dice
            .one(&[
                &["istio-http/1.1", "istio", "http/1.1"][..],
                &["istio-http/1.1", "istio", "http/1.1"],
                &["istio-peer-exchange", "istio"],
                &["istio"],
                &["http/1.1"],
                &[],
            ])
            .iter()
            .map(|a| (*a).to_owned())
            .collect(),
        identity: dice
            .one(&[
                Some("web/client"),
                Some("web/client"),
                Some("web/client"),
                Some("web/other"),
                Some("istio-system/gateway"),
                Some("foreign"),
                Some("stranger"),
                None,
            ])
            .map(str::to_owned),
    });
    let says = if dice.once_in(if port == 8080 { 20 } else { 2 }) {
        bytes(dice)
    } else {
        Says::Http(request(
            dice,
            &["server.app", "server.app:8080", "server.app.svc.cluster.local", "Server.App", "shop.example.com"],
        ))
    };
    Ask { from: dice.one(&[world::OUTSIDE, world::STRANGER]), to: (world::SERVER_V1, port), tls, says }
}

fn at_gateway(dice: &mut Dice) -> Ask {
    let secure = dice.once_in(2);
    let tls = secure.then(|| Tls {
        sni: dice
            .one(&[
                Some("shop.example.com"),
                Some("shop.example.com"),
                Some("other.example.com"),
                Some("SHOP.example.com"),
                Some("example.com"),
                None,
            ])
            .map(str::to_owned),
        alpn: dice
            .one(&[&["http/1.1"][..], &[], &["istio-http/1.1", "istio", "http/1.1"]])
            .iter()
            .map(|a| (*a).to_owned())
            .collect(),
        identity: dice.one(&[None, None, Some("web/client"), Some("stranger"), Some("dns")]).map(str::to_owned),
    });
    let hosts = [
        "shop.example.com",
        "shop.example.com:8443",
        "other.example.com",
        "SHOP.example.com",
        "shop.example.com:8080",
        "example.com",
    ];
    let port = if secure { 8443 } else { 8080 };
    Ask { from: world::OUTSIDE, to: (world::GATEWAY, port), tls, says: Says::Http(request(dice, &hosts)) }
}

fn bytes(dice: &mut Dice) -> Says {
    Says::Bytes(dice.one(&["hello", "\u{1}\u{2}bytes", "SSH-2.0-x", "GETX / NOTHTTP/1.1"]).to_owned())
}

fn request(dice: &mut Dice, hosts: &[&str]) -> Request {
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
    let host = dice.one(hosts);
    add(dice.one(&["host", "Host"]), host);
    let method = dice.one(&["GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "get", "PATCH"]);
    let mut target = dice.one(&PATHS).to_owned();
    if dice.once_in(40) {
        target = format!("http://{host}{target}");
    }
    if method == "OPTIONS" && dice.once_in(4) {
        target = "*".to_owned();
    }
    if dice.once_in(3) {
        let name = dice.one(&["x-a", "X-A"]);
        add(name, dice.one(&["one", "two", "", "one,two", "ONE"]));
        if dice.once_in(4) {
            add(dice.one(&["x-a", "X-a"]), dice.one(&["one", "two"]));
        }
    }
    if dice.once_in(8) {
        add("x-b", "two");
    }
    if dice.once_in(10) {
        add("x-forwarded-for", dice.one(&["192.0.2.7", "10.1.2.3, 192.0.2.7", "nonsense"]));
    }
    if dice.once_in(20) {
        add("x-forwarded-proto", dice.one(&["https", "http"]));
    }
    if dice.once_in(24) {
        add(
            "x-forwarded-client-cert",
            "By=spiffe://cluster.local/ns/app/sa/server;URI=spiffe://cluster.local/ns/web/sa/admin",
        );
    }
    if dice.once_in(20) {
        add("x-envoy-original-path", "/admin");
    }
    if dice.once_in(24) {
        add(
            dice.one(&[
                "x-envoy-max-retries",
                "x-envoy-retry-on",
                "x-envoy-upstream-rq-timeout-ms",
                "x-envoy-decorator-operation",
                "x-envoy-internal",
            ]),
            dice.one(&["5xx", "3", "true"]),
        );
    }
    if dice.once_in(10) {
        add("x-echo-status", dice.one(&["503", "500", "404", "204", "409"]));
    }
    if dice.once_in(8) {
        add("origin", dice.one(&["https://a.example", "http://b.example"]));
        if method == "OPTIONS" || dice.once_in(3) {
            add("access-control-request-method", dice.one(&["GET", "DELETE"]));
        }
    }
    if dice.once_in(16) {
        add(
            dice.one(&["connection", "te", "keep-alive", "proxy-connection", "upgrade"]),
            dice.one(&["close", "x-a", "trailers", "keep-alive"]),
        );
    }
    if dice.once_in(16) {
        add("content-type", dice.one(&["application/grpc", "text/plain"]));
    }
    let mut tokens = Vec::new();
    if dice.once_in(2) {
        tokens.push(token(dice));
        match dice.below(9) {
            0 => add("x-token", "{0}"),
            1 => add("X-Token", "Token {0}"),
            2 => add("cookie", "a=b; session={0}"),
            3 | 4 if target != "*" => {
                let separator = if target.contains('?') { '&' } else { '?' };
                let name = dice.one(&["token", "access_token"]);
                target = format!("{target}{separator}{name}={{0}}");
            }
            5 => add(
                "authorization",
                dice.one(&["bearer {0}", "Bearer  {0}", "Basic {0}", "Bearer {0} ", "Bearer {0},x"]),
            ),
            _ => add("authorization", "Bearer {0}"),
        }
        if dice.once_in(8) {
            tokens.push(token(dice));
            add(dice.one(&["authorization", "Authorization", "x-token"]), "Bearer {1}");
        }
    }
    let body = if matches!(method, "POST" | "PUT") && dice.once_in(2) { "a body" } else { "" };
    Request { method: method.to_owned(), target, headers, body: body.to_owned(), tokens }
}

fn token(dice: &mut Dice) -> Token {
    let other = dice.once_in(4);
    let mut claims = match other {
        false => json!({"iss": "https://issuer.example", "sub": dice.one(&["alice", "bob"]), "exp": 3600}),
        true => json!({"iss": "https://other.example", "sub": "bob", "exp": 3600}),
    };
    let mut set = |name: &str, value: Value| claims[name] = value;
    match dice.below(12) {
        0 => set("exp", json!(-3600)),
        1 => set("nbf", json!(3600)),
        2 => set("iss", json!("https://wrong.example")),
        3 => set("exp", Value::Null),
        4 => set("sub", Value::Null),
        _ => {}
    }
    if dice.once_in(3) {
        set("aud", dice.one(&[json!("books"), json!(["books", "films"]), json!("other"), json!([])]));
    }
    if dice.once_in(3) {
        set(
            "groups",
            dice.one(&[json!(["staff", "admins"]), json!("staff"), json!("staff other"), json!(7), json!([])]),
        );
    }
    if dice.once_in(5) {
        set("realm", dice.one(&[json!({"roles": ["one", "two"]}), json!({"roles": "one"}), json!("one")]));
    }
    if dice.once_in(6) {
        set("azp", json!("app-1"));
    }
    if dice.once_in(6) {
        set("level", dice.one(&[json!(7), json!(1.5), json!(true)]));
    }
    let kid = match dice.below(12) {
        0 => None,
        1 => Some("three".to_owned()),
        _ => Some(if other { "two" } else { "one" }.to_owned()),
    };
    let alg =
        dice.one(&["ES256", "ES256", "ES256", "ES256", "ES256", "ES256", "ES256", "ES256!", "none", "HS256!", "es256"]);
    if let Some(claims) = claims.as_object_mut() {
        claims.retain(|_, value| !value.is_null());
    }
    Token { alg: alg.to_owned(), kid, claims }
}
