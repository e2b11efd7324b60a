//! The small things that containers of an injected pod ask for: waiting for the proxy, and asking its agent.
//!
//! Invariant: only this pod is asked, on loopback; waiting ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{Method, StatusCode};

use crate::config::Tool;
use crate::http_client;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// Does it; gives what is printed.
///
/// # Errors
/// The proxy was not ready in time, or the agent refused.
pub async fn run(tool: &Tool) -> Result<String, String> {
    match tool {
        Tool::Wait { port, path, limit } => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let looking = async {
                loop {
                    if let Ok((StatusCode::OK, _)) = http_client::get(address, path).await {
                        return;
                    }
                    tokio::time::sleep(PERIOD).await;
                }
            };
            tokio::time::timeout(*limit, looking)
                .await
                .map_err(|_| format!("the proxy is not ready after {limit:?}"))?;
            Ok(String::new())
        }
        Tool::Ask { port, method, path } => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let method = Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())?;
            let (status, body) = http_client::send(address, method, path).await.map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&body).into_owned();
            if status.is_success() { Ok(text) } else { Err(format!("{status}: {}", text.trim())) }
        }
    }
}
