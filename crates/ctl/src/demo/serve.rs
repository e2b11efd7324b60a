//! A small HTTP/1.1 and h2c service for the examples.
//!
//! Invariant: it knows nothing of the mesh; what it answers about a request is what reached it.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How the service listens and whom it calls.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Port to listen on, on every address.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What the service calls itself in its answers.
    #[arg(long, default_value = "demo")]
    name: String,
    /// URLs to call for each request; their statuses are part of the answer.
    #[arg(long = "call", value_name = "URL")]
    calls: Vec<String>,
}

type Caller = Client<HttpConnector, Empty<Bytes>>;

/// Serves until the process is told to stop, then lets open connections finish.
///
/// # Errors
/// When the port cannot be bound.
pub async fn run(options: Options) -> Result<u8> {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], options.port)))
        .await
        .with_context(|| format!("cannot listen on port {}", options.port))?;
    let caller = Client::builder(TokioExecutor::new()).build_http();
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    let mut stop = std::pin::pin!(stopped());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            () = &mut stop => break,
        };
        let (options, caller) = (options.clone(), caller.clone());
        let service = service_fn(move |request| answer(request, options.clone(), caller.clone()));
        let server = auto::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A peer that goes away is its own business.
            let _ = connection.await;
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), graceful.shutdown()).await;
    Ok(0)
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}

async fn answer(
    request: Request<Incoming>,
    options: Options,
    caller: Caller,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut calls = Vec::new();
    for url in &options.calls {
        calls.push(call(&caller, url).await);
    }
    let headers: serde_json::Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned().into()))
        .collect();
    let mut body = json!({
        "service": options.name,
        "path": request.uri().path(),
        "headers": headers,
    });
    if !calls.is_empty() {
        body["calls"] = calls.into();
    }
    let mut text = body.to_string();
    text.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn call(caller: &Caller, url: &str) -> Value {
    let answered = async {
        let uri: http::Uri = url.parse().context("not a URL")?;
        let request = Request::get(uri).body(Empty::new())?;
        let response = caller.request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        anyhow::Ok(status)
    };
    match answered.await {
        Ok(status) => json!({"url": url, "status": status}),
        Err(error) => json!({"url": url, "error": format!("{error:#}")}),
    }
}
