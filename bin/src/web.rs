//! The chat page, on the HTTP listener of the transports that it uses.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use chinwag_core::{
    RefusedReason, TransportMetrics,
    config::{Charset, NamesConfig},
};
use chinwag_transports::{
    BindContext, BindError, HttpPeer, HttpRoute,
    http::{Answer, method_not_allowed},
};
use chinwag_web::{FILES, HEADERS, SETTINGS_PATH, etag};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;

/// Every path that the page has on its bind.
pub(crate) fn paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.path).chain([SETTINGS_PATH])
}

/// What the page is told of the server that it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Settings {
    /// The path of the WebSocket transport on the page's bind, if there is one.
    pub(crate) websocket: Option<String>,
    /// Whether HTTP polling is on the page's bind.
    pub(crate) polling: bool,
    /// The room that is offered first.
    pub(crate) room: Option<String>,
    pub(crate) password: Passwords,
    /// The rules for names in words, to be read before somebody breaks them.
    pub(crate) names: String,
}

/// Whether the authenticators of the page's transports take a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Passwords {
    /// Anybody gets in without.
    None,
    /// Members have one, guests do not.
    Optional,
    /// Nobody gets in without.
    Required,
}

/// The rules for names that users choose, in words.
pub(crate) fn rules(names: &NamesConfig) -> String {
    let characters = match names.charset {
        Charset::Ascii => "letters (a to z), digits, dots, dashes or underscores",
        Charset::Unicode => "letters or digits of any script, without spaces",
    };
    format!("{} to {} {characters}", names.min, names.max)
}

/// Puts the page on the listener of the transport that `cx` was made for, and gives that listener's address.
///
/// # Errors
/// [`BindError::Path`]: a transport has claimed one of the page's paths.
pub(crate) async fn serve(cx: &BindContext, settings: &Settings) -> Result<SocketAddr, BindError> {
    let listener = cx.http().await?;
    let metrics = cx.hub.telemetry().transport(&cx.name);
    let told = serde_json::to_vec(settings).expect("plain fields have a JSON form");
    let files = FILES.map(|file| (file.path, file.content_type, Bytes::from_static(file.body)));
    let told = (SETTINGS_PATH, "application/json", Bytes::from(told));
    for (path, content_type, body) in files.into_iter().chain([told]) {
        let metrics = Arc::clone(metrics);
        listener.route(path, Arc::new(Document::new(content_type, body, metrics)))?;
    }
    Ok(listener.local_addr())
}

/// A body that never changes, with its headers.
struct Document {
    headers: HeaderMap,
    etag: String,
    body: Bytes,
    metrics: Arc<TransportMetrics>,
}

impl Document {
    fn new(content_type: &'static str, body: Bytes, metrics: Arc<TransportMetrics>) -> Self {
        let etag = etag(&body);
        let mut headers: HeaderMap = HEADERS
            .into_iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let tag = HeaderValue::from_str(&etag).expect("a tag is hexadecimal digits in quotes");
        headers.insert(header::ETAG, tag);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self {
            headers,
            etag,
            body,
            metrics,
        }
    }

    /// Whether the client says that it has these very bytes.
    fn is_known(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .map(str::trim)
            // The comparison is the weak one: a proxy may have weakened the tag as it compressed the body.
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
    }
}

#[async_trait]
impl HttpRoute for Document {
    async fn handle(&self, request: Request<Incoming>, _peer: &HttpPeer) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            self.metrics.refused(RefusedReason::NotFound);
            return method_not_allowed("GET, HEAD");
        }
        // The body of an answer to HEAD is left out by hyper, its length is not.
        let mut answer = Answer::new(Full::new(self.body.clone()));
        *answer.headers_mut() = self.headers.clone();
        if self.is_known(request.headers()) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            *answer.body_mut() = Full::default();
            answer.headers_mut().remove(header::CONTENT_TYPE);
        }
        answer
    }
}
