//! An issuer of tokens for the examples: a key set, and tokens as they are asked for, good and bad.
//!
//! Invariant: the key is made at the start and never written down; anybody may ask for any token, so it is for
//! examples alone.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::SystemTime};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How the issuer listens and what it calls itself.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Port to listen on, on every address.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The `iss` claim of its tokens.
    #[arg(long, default_value = "https://issuer.example.com", value_name = "URL")]
    issuer: String,
}

struct Issuer {
    name: String,
    key: KeyPair,
    /// A key that is in no set.
    other: KeyPair,
}

/// Serves `/jwks` and `/token?sub=…&aud=…&ttl=SECONDS&key=other&CLAIM=…` until the process ends.
///
/// # Errors
/// When the port cannot be bound.
pub async fn run(options: Options) -> Result<u8> {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], options.port)))
        .await
        .with_context(|| format!("cannot listen on port {}", options.port))?;
    let issuer = Arc::new(Issuer { name: options.issuer, key: KeyPair::generate()?, other: KeyPair::generate()? });
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let issuer = issuer.clone();
        // A peer that goes away is its own business.
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answered = issuer.answer(request.uri());
                async move { Ok::<_, Infallible>(answered) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Issuer {
    fn answer(&self, uri: &http::Uri) -> Response<Full<Bytes>> {
        let text = match uri.path() {
            "/jwks" => Ok(self.keys().to_string()),
            "/token" => self.token(uri.query().unwrap_or_default()),
            _ => Err(anyhow::anyhow!("/jwks or /token")),
        };
        let (status, text) = match text {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }

    /// The public key as a JSON Web Key (RFC 7518 §6.2): the point's two coordinates.
    fn keys(&self) -> Value {
        let point = self.key.public_key_raw();
        let part = |from: usize, to: usize| URL_SAFE_NO_PAD.encode(point.get(from..to).unwrap_or_default());
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "example",
            "x": part(1, 33), "y": part(33, 65)}]})
    }

    fn token(&self, query: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() as i64;
        let mut claims = json!({"iss": self.name, "sub": "somebody", "iat": now, "exp": now + 3600});
        let mut key = &self.key;
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "ttl" => claims["exp"] = (now + value.parse::<i64>().context("ttl")?).into(),
                "key" if value == "other" => key = &self.other,
                name => claims[name] = value.into(),
            }
        }
        let header = jsonwebtoken::Header {
            kid: Some("example".into()),
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256)
        };
        let secret = jsonwebtoken::EncodingKey::from_ec_der(key.serialized_der());
        Ok(jsonwebtoken::encode(&header, &claims, &secret)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_signed_by_the_key_of_the_set() {
        let issuer =
            Issuer { name: "me".into(), key: KeyPair::generate().unwrap(), other: KeyPair::generate().unwrap() };
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(issuer.keys()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&set.keys[0]).unwrap();
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        rules.set_audience(&["shop"]);
        let check = |query: &str| jsonwebtoken::decode::<Value>(issuer.token(query).unwrap().as_str(), &key, &rules);
        assert_eq!(check("aud=shop&sub=alice").unwrap().claims["sub"], "alice");
        assert!(check("aud=shop&key=other").is_err());
        assert!(check("aud=shop&ttl=-300").is_err());
        assert!(check("aud=bank").is_err());
    }
}
