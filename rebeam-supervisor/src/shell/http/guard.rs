//! Who may ask over HTTP: nobody who was sent here by a web page.
//!
//! A page in somebody's browser can have its own name resolve to our address (DNS rebinding) and read what we say. Its
//! requests carry that name as `Host`, and, from elsewhere, an `Origin`: both are refused.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Lets a request through, or refuses it.
pub(super) async fn check(State(hosts): State<Arc<Vec<String>>>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), &hosts) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, why).into_response(),
    }
}

fn refusal(headers: &HeaderMap, hosts: &[String]) -> Option<String> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let Some(host) = text(header::HOST) else { return Some("a request without `Host`\n".into()) };
    let name = name_in(host);
    let is_known = name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
    if !is_known {
        return Some(format!("`{name}` is not a name of this node: allow it with `--http-host {name}`\n"));
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.split_once("://").is_none_or(|(_, rest)| rest != host) => {
            Some("a request from another origin\n".into())
        }
        _ => None,
    }
}

/// The name in `name:port`.
fn name_in(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_resolves_to_us_is_no_name_of_ours() {
        let refused = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a value"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("a value"));
            }
            refusal(&headers, &["app.internal".to_owned()]).is_some()
        };
        for host in ["10.0.0.7:8080", "[::1]:8080", "[::1]", "localhost", "LOCALHOST:1", "app.internal:8080"] {
            assert!(!refused(host, None), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", ""] {
            assert!(refused(host, None), "{host}");
        }
        assert!(refused("localhost:1", Some("http://evil.example")));
        assert!(refused("localhost:1", Some("null")));
        assert!(!refused("localhost:1", Some("http://localhost:1")));
        assert!(refusal(&HeaderMap::new(), &[]).is_some());
    }
}
