//! HTTP polling: a session that outlives requests, and whose client fetches what is queued for it.
//!
//! This module reads requests and writes answers. Queues, acknowledgements, pacing and the end of a session are the
//! session's own business, so a client that goes away while its poll waits loses nothing: its request is dropped, its
//! queue is not.

use std::{borrow::Cow, future::ready, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use chinwag_core::{
    ErrorCode, Hub, PullSession, Refusal, RefusedReason, Reply, Scope, TransportMetrics,
    config::Span, plugin::BuildError,
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, request::Parts};
use hyper::body::{Body, Incoming};
use serde::Deserialize;

use crate::{
    BindContext, BindError, HttpListener, HttpPeer, ListenerConfig, LocalAddr, Origins, ServeError,
    Transport, TransportConfig, Wire,
    http::{self as web, Answer, BodyError, Coming, Route, Template, bad_request},
    origin,
};

mod gzip;

use gzip::Gzip;

/// The most bytes of a log-in: whoever sends it is still a stranger.
const LOGIN_BYTES: usize = 8 << 10;
/// The header that every request with a cookie carries. A page of another site can't set it unasked.
const GUARD: &str = "x-chinwag";

/// `kind = "http-polling"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PollingConfig {
    /// The pages that may use it. Default: `["same"]`.
    pub origins: Origins,
    /// Where a session's id may travel. At least one place, each once. Default: `["header"]`.
    pub session_id: Vec<IdPlace>,
    /// The longest that a poll waits; a longer `wait` is cut to it. At least a second. Default: 30 s.
    pub max_wait: Span,
    /// How long a poll that waits is held after an answer that was not empty, so that what comes close together
    /// travels together. Zero: not at all. Default: 100 ms.
    pub poll_pace: Span,
    /// The most events of one answer; a greater `max` is cut to it. At least 1. Default: 1000.
    pub max_events: usize,
    /// Whether answers of 1 KiB to 256 KiB are compressed for clients that accept gzip, as long as no more than 16 MiB
    /// a second are. Answers to log-ins never are. Default: `true`.
    pub gzip: bool,
}

impl Default for PollingConfig {
    fn default() -> Self {
        Self {
            origins: Origins::default(),
            session_id: vec![IdPlace::Header],
            max_wait: Span::secs(30),
            poll_pace: Span::millis(100),
            max_events: 1000,
            gzip: true,
        }
    }
}

/// A place for a session's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdPlace {
    /// `Authorization: Bearer ID`.
    Header,
    /// A cookie, given where the log-in asks for it.
    Cookie,
    /// `?session=ID`. It ends up in the logs of proxies.
    Url,
}

#[async_trait]
impl TransportConfig for PollingConfig {
    const KIND: &'static str = "http-polling";
    const WIRE: Wire = Wire::Http;

    fn check(&self, _listener: &ListenerConfig) -> Result<(), Vec<BuildError>> {
        let mut faults = Vec::new();
        let places = &self.session_id;
        if places.is_empty() {
            faults.push(BuildError::key(
                "session_id",
                "needs at least one of \"header\", \"cookie\", \"url\"",
            ));
        }
        if let Some(twice) = places
            .iter()
            .enumerate()
            .find_map(|(at, place)| places[..at].contains(place).then_some(place))
        {
            faults.push(BuildError::key(
                "session_id",
                format!("names {twice:?} twice").to_lowercase(),
            ));
        }
        if self.max_wait < Span::secs(1) {
            faults.push(BuildError::key(
                "max_wait",
                "must be at least 1s: clients ask for whole seconds",
            ));
        }
        if self.poll_pace > self.max_wait {
            faults.push(BuildError::key(
                "poll_pace",
                format!("must be at most max_wait, which is {}", self.max_wait),
            ));
        }
        if self.max_events == 0 {
            faults.push(BuildError::key("max_events", "must be at least 1"));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    fn paths(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        Resource::ALL
            .map(|resource| ("kind", resource.path().into()))
            .into()
    }

    async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
        let listener = cx.http().await?;
        let events = [false, true].map(|is_zipped| {
            let mut answer = ok(Bytes::new(), is_zipped);
            self.mark(&mut answer, Resource::Events, None);
            Template::new(answer)
        });
        let polling = Arc::new(Polling {
            events,
            metrics: Arc::clone(cx.hub.telemetry().transport(&cx.name)),
            hub: cx.hub,
            scope: cx.scope,
            body_timeout: cx.listener.body_timeout.0,
            gzip: self.gzip.then(Gzip::new),
            config: self,
        });
        for resource in Resource::ALL {
            let polling = Arc::clone(&polling);
            listener.claim(
                resource.path().to_owned(),
                Arc::new(Endpoint { polling, resource }),
            )?;
        }
        Ok(Box::new(PollingTransport { listener }))
    }
}

impl PollingConfig {
    /// Says in `answer` who may read it, and what it varies with. `origin`: that of the page that asks.
    fn mark(&self, answer: &mut Answer, resource: Resource, origin: Option<&HeaderValue>) {
        let cookies = self.session_id.contains(&IdPlace::Cookie);
        self.origins.permit(answer, origin, cookies);
        if resource != Resource::Session && self.gzip {
            let vary = HeaderValue::from_static("Origin, Accept-Encoding");
            answer.headers_mut().insert(header::VARY, vary);
        }
    }
}

struct PollingTransport {
    listener: HttpListener,
}

#[async_trait]
impl Transport for PollingTransport {
    fn local_addr(&self) -> LocalAddr {
        self.listener.local_addr().into()
    }

    async fn serve(self: Box<Self>) -> Result<(), ServeError> {
        self.listener.serve().await;
        Ok(())
    }
}

/// The three paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Session,
    Commands,
    Events,
}

impl Resource {
    const ALL: [Self; 3] = [Self::Session, Self::Commands, Self::Events];

    const fn path(self) -> &'static str {
        match self {
            Self::Session => "/v1/session",
            Self::Commands => "/v1/commands",
            Self::Events => "/v1/events",
        }
    }

    const fn methods(self) -> &'static str {
        match self {
            Self::Session => "POST, DELETE, OPTIONS",
            Self::Commands => "POST, OPTIONS",
            Self::Events => "GET, OPTIONS",
        }
    }
}

/// What the three paths have in common.
struct Polling {
    hub: Hub,
    scope: Arc<Scope>,
    metrics: Arc<TransportMetrics>,
    config: PollingConfig,
    body_timeout: Duration,
    /// `None`: switched off.
    gzip: Option<Gzip>,
    /// Answers to polls that no page of another origin sent, as nearly all are: as they are, and compressed.
    events: [Arc<Template>; 2],
}

struct Endpoint {
    polling: Arc<Polling>,
    resource: Resource,
}

impl Route for Endpoint {
    // The head is read here and let go of: it is most of what a poll that waits would have.
    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: HttpPeer) -> Coming {
        let Polling {
            config, metrics, ..
        } = &*self.polling;
        let (parts, body) = request.into_parts();
        let origin = match config.origins.check(&parts.headers, &peer) {
            // A copy: the header's value would keep the whole head for as long as a poll waits.
            Ok(origin) => origin.map(copied),
            Err(refusal) => {
                metrics.refused(RefusedReason::Origin);
                return Box::pin(ready(web::refused(&refusal).into()));
            }
        };
        let preflight = origin::is_preflight(&parts.method, &parts.headers);
        let begun = self.begin(&parts, body, &peer);
        Box::pin(async move {
            let polling = &*self.polling;
            let done = match begun {
                Ok(Work::Poll(poll)) => match polling.poll(poll).await {
                    Ok((body, is_zipped)) if origin.is_none() => {
                        return polling.events[usize::from(is_zipped)].fill(body);
                    }
                    given => given.map(|(body, is_zipped)| ok(body, is_zipped)),
                },
                Ok(Work::Other(work)) => work.await,
                Err(refused) => Err(refused),
            };
            let mut answer = done.unwrap_or_else(Refused::into_answer);
            if preflight {
                origin::answer_preflight(&mut answer, self.resource.methods());
            }
            polling
                .config
                .mark(&mut answer, self.resource, origin.as_ref());
            answer.into()
        })
    }
}

/// What is left to do for a request when its head was read.
enum Work {
    /// By itself, since most requests are polls, and most memory is theirs.
    Poll(Poll),
    Other(Pin<Box<dyn Future<Output = Result<Answer, Refused>> + Send>>),
}

impl Work {
    fn other(work: impl Future<Output = Result<Answer, Refused>> + Send + 'static) -> Self {
        Self::Other(Box::pin(work))
    }
}

/// A `GET /v1/events` that was understood.
struct Poll {
    session: PullSession,
    ack: Option<u64>,
    wait: Duration,
    most: usize,
    zips: bool,
    body: Incoming,
}

impl Endpoint {
    fn begin(&self, parts: &Parts, body: Incoming, peer: &HttpPeer) -> Result<Work, Refused> {
        let polling = &self.polling;
        match (self.resource, &parts.method) {
            (Resource::Session, &Method::POST) => polling.log_in(parts, body, peer),
            (Resource::Session, &Method::DELETE) => polling.log_out(parts, body, peer),
            (Resource::Commands, &Method::POST) => polling.command(parts, body, peer),
            (Resource::Events, &Method::GET) => polling.events(parts, body, peer),
            (resource, &Method::OPTIONS) => {
                let mut answer = web::empty();
                let allow = HeaderValue::from_static(resource.methods());
                answer.headers_mut().insert(header::ALLOW, allow);
                Ok(Work::other(ready(Ok(answer))))
            }
            (resource, _) => {
                polling.metrics.refused(RefusedReason::NotFound);
                let answer = web::method_not_allowed(resource.methods());
                Ok(Work::other(ready(Ok(answer))))
            }
        }
    }
}

/// A refusal with its status, which is that of its code but for the few that HTTP adds.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    refusal: Refusal,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            status: web::status(refusal.code),
            refusal,
        }
    }
}

impl Refused {
    fn into_answer(self) -> Answer {
        web::refused_as(self.status, &self.refusal)
    }

    /// The same refusal, counted as a violation of `session`'s.
    fn by(mut self, session: &PullSession) -> Self {
        self.refusal = session.violated(self.refusal);
        self
    }
}

impl Polling {
    /// `POST /v1/session`.
    fn log_in(
        self: &Arc<Self>,
        parts: &Parts,
        body: Incoming,
        peer: &HttpPeer,
    ) -> Result<Work, Refused> {
        self.counted(peer.admit().map_err(Refused::from))?;
        let credentials = self.counted(web::credentials(&parts.headers).map_err(Refused::from))?;
        let media = Media::of(&parts.headers);
        let limit = LOGIN_BYTES.min(self.hub.limits().frame_bytes.0);
        let client = peer.logging_in(&parts.headers, &self.scope);
        let (this, form) = (Arc::clone(self), CookieForm::of(peer));
        Ok(Work::other(async move {
            let body = this.read(body, limit).await?;
            this.counted(media.suits(&body))?;
            let opened = this
                .hub
                .open(&this.scope, client, &body, credentials)
                .await?;
            let may_set = this.config.session_id.contains(&IdPlace::Cookie);
            let cookie = may_set && opened.cookie;
            if !cookie && this.config.session_id == [IdPlace::Cookie] {
                // Nobody could use an id from the body.
                opened.session.logout().await;
                let message = "cookie must be true: sessions travel in cookies here.";
                return Err(bad_request(message).into());
            }
            let status = if opened.resumed {
                StatusCode::OK
            } else {
                StatusCode::CREATED
            };
            let mut answer = web::json(status, opened.reply(!cookie));
            if cookie {
                let value = form.set(opened.session_id());
                answer.headers_mut().insert(header::SET_COOKIE, value);
            }
            Ok(answer)
        }))
    }

    /// `DELETE /v1/session`.
    fn log_out(
        self: &Arc<Self>,
        parts: &Parts,
        body: Incoming,
        peer: &HttpPeer,
    ) -> Result<Work, Refused> {
        let (session, place) = self.find(parts, peer)?;
        let (this, form) = (Arc::clone(self), CookieForm::of(peer));
        Ok(Work::other(async move {
            this.skip(body).await?;
            let mut answer = answer_with(session.logout().await);
            if place == IdPlace::Cookie {
                let value = form.clear();
                answer.headers_mut().insert(header::SET_COOKIE, value);
            }
            Ok(answer)
        }))
    }

    /// `POST /v1/commands`.
    fn command(
        self: &Arc<Self>,
        parts: &Parts,
        body: Incoming,
        peer: &HttpPeer,
    ) -> Result<Work, Refused> {
        let (session, _) = self.find(parts, peer)?;
        let media = Media::of(&parts.headers);
        let zips = self.zips(parts);
        let limit = session.frame_bytes();
        let this = Arc::clone(self);
        Ok(Work::other(async move {
            let body = match web::read_body(body, limit, this.body_timeout).await {
                Ok(body) => body,
                Err(BodyError::TooLarge) => {
                    let message = format!("A command has at most {limit} bytes.");
                    let refusal = Refusal::new(ErrorCode::TooLarge, message);
                    return Err(session.violated(refusal).into());
                }
                Err(BodyError::Late) => return Err(this.late()),
                Err(BodyError::Broken) => return Err(this.broken()),
            };
            media.suits(&body).map_err(|refused| refused.by(&session))?;
            let reply = session.command(&body).await;
            Ok(match &reply.refusal {
                None => {
                    let (body, is_zipped) = this.zip(reply.json, zips);
                    ok(body, is_zipped)
                }
                Some(refusal) => web::refused_with(refusal, reply.json),
            })
        }))
    }

    /// `GET /v1/events`.
    fn events(&self, parts: &Parts, body: Incoming, peer: &HttpPeer) -> Result<Work, Refused> {
        let (session, _) = self.find(parts, peer)?;
        let query = Query::read(parts.uri.query().unwrap_or_default())
            .map_err(|refusal| Refused::from(refusal).by(&session))?;
        let most = query.max.map_or(self.config.max_events, |max| {
            usize::try_from(max).unwrap_or(usize::MAX)
        });
        Ok(Work::Poll(Poll {
            session,
            ack: query.ack,
            wait: Duration::from_secs(query.wait).min(self.config.max_wait.0),
            most: most.min(self.config.max_events),
            zips: self.zips(parts),
            body,
        }))
    }

    /// The events, and whether they are compressed.
    async fn poll(&self, poll: Poll) -> Result<(Bytes, bool), Refused> {
        if !poll.body.is_end_stream() {
            Box::pin(self.skip(poll.body)).await?;
        }
        let pace = self.config.poll_pace.0;
        let body = poll
            .session
            .poll(poll.ack, poll.wait, poll.most, pace)
            .await?;
        Ok(self.zip(body, poll.zips))
    }

    /// Whether the answer to a request may be compressed.
    fn zips(&self, parts: &Parts) -> bool {
        self.gzip.is_some() && gzip::is_accepted(&parts.headers)
    }

    /// `body`, compressed where `zips` and where it is worth it, and whether it is.
    fn zip(&self, body: Bytes, zips: bool) -> (Bytes, bool) {
        match &self.gzip {
            Some(gzip) if zips => gzip.apply(body),
            _ => (body, false),
        }
    }

    /// The session whose id the request carries, and where.
    fn find(&self, parts: &Parts, peer: &HttpPeer) -> Result<(PullSession, IdPlace), Refused> {
        let form = CookieForm::of(peer);
        let query = parts.uri.query().unwrap_or_default();
        let (id, place) = self.counted(session_id(
            &parts.headers,
            query,
            form,
            &self.config.session_id,
        ))?;
        let session = self.hub.find(&self.scope, &peer.peer, &id)?;
        Ok((session, place))
    }

    /// Counts a request that is refused before it reaches a session.
    fn counted<T>(&self, result: Result<T, Refused>) -> Result<T, Refused> {
        if let Err(refused) = &result
            && refused.refusal.code == ErrorCode::BadRequest
        {
            self.metrics.refused(RefusedReason::BadRequest);
        }
        result
    }

    /// A body of at most `limit` bytes from somebody who has no session to answer for it.
    async fn read(&self, body: Incoming, limit: usize) -> Result<Bytes, Refused> {
        match web::read_body(body, limit, self.body_timeout).await {
            Ok(body) => Ok(body),
            Err(BodyError::TooLarge) => {
                self.metrics.refused(RefusedReason::TooLarge);
                let message = format!("The body has at most {limit} bytes.");
                Err(Refusal::new(ErrorCode::TooLarge, message).into())
            }
            Err(BodyError::Late) => Err(self.late()),
            Err(BodyError::Broken) => Err(self.broken()),
        }
    }

    /// Reads a body that means nothing out of the way of the next request.
    async fn skip(&self, body: Incoming) -> Result<(), Refused> {
        self.read(body, LOGIN_BYTES).await.map(drop)
    }

    fn late(&self) -> Refused {
        self.metrics.refused(RefusedReason::BodyTimeout);
        Refused {
            status: StatusCode::REQUEST_TIMEOUT,
            refusal: bad_request(format!(
                "The body has to be there within {} seconds.",
                self.body_timeout.as_secs()
            )),
        }
    }

    fn broken(&self) -> Refused {
        self.metrics.refused(RefusedReason::BadRequest);
        bad_request("The body could not be read.").into()
    }
}

/// 200 and `body`.
fn ok(body: Bytes, is_zipped: bool) -> Answer {
    let mut answer = web::json(StatusCode::OK, body);
    if is_zipped {
        gzip::mark(&mut answer);
    }
    answer
}

fn copied(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("it was a value before")
}

/// 200 and the reply, or the status of the error that it is.
fn answer_with(reply: Reply) -> Answer {
    match &reply.refusal {
        None => web::json(StatusCode::OK, reply.json),
        Some(refusal) => web::refused_with(refusal, reply.json),
    }
}

/// What a request says that its body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Media {
    Json,
    Other,
    Unsaid,
}

impl Media {
    fn of(headers: &HeaderMap) -> Self {
        let mut types = headers.get_all(header::CONTENT_TYPE).iter();
        let (first, None) = (types.next(), types.next()) else {
            return Self::Other;
        };
        let Some(value) = first else {
            return Self::Unsaid;
        };
        let essence = value
            .to_str()
            .ok()
            .and_then(|value| value.split(';').next());
        if essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json")) {
            Self::Json
        } else {
            Self::Other
        }
    }

    /// Bodies are JSON, and say so; an empty one need not say what it is not.
    fn suits(self, body: &[u8]) -> Result<(), Refused> {
        if self == Self::Json || (self == Self::Unsaid && body.is_empty()) {
            return Ok(());
        }
        Err(Refused {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            refusal: bad_request("The body's Content-Type has to be application/json."),
        })
    }
}

/// The one id that a request carries in one of `places`; elsewhere it is not looked for.
fn session_id<'a>(
    headers: &'a HeaderMap,
    query: &'a str,
    form: CookieForm,
    places: &[IdPlace],
) -> Result<(Cow<'a, str>, IdPlace), Refused> {
    let mut found: Option<(Cow<'_, str>, IdPlace)> = None;
    let mut add = |id, place| {
        if found.replace((id, place)).is_some() {
            return Err(bad_request(
                "The session's id stands in more than one place; leave one of them.",
            ));
        }
        Ok(())
    };
    for place in places {
        match place {
            IdPlace::Header => {
                if let Some(id) = web::bearer(headers)? {
                    add(Cow::Borrowed(id), IdPlace::Header)?;
                }
            }
            IdPlace::Cookie => {
                for id in form.find(headers) {
                    add(Cow::Borrowed(id), IdPlace::Cookie)?;
                }
            }
            IdPlace::Url => {
                for (key, id) in form_urlencoded::parse(query.as_bytes()) {
                    if key == "session" {
                        add(id, IdPlace::Url)?;
                    }
                }
            }
        }
    }
    let Some((id, place)) = found else {
        return Err(Refusal::new(
            ErrorCode::NotLoggedIn,
            "Log in with POST /v1/session and send the session's id, as Authorization: Bearer ID where nothing else \
             was agreed.",
        )
        .into());
    };
    if place == IdPlace::Cookie && headers.get(GUARD).is_none_or(|value| value != "1") {
        return Err(Refusal::new(
            ErrorCode::Forbidden,
            "A request with the session's cookie carries the header X-Chinwag: 1.",
        )
        .into());
    }
    Ok((id, place))
}

/// The cookie of a client, by how it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CookieForm {
    /// Over TLS: bound to this host, and never sent in plain text.
    Secure,
    /// In plain text, where a browser would not keep the other form.
    Plain,
}

impl CookieForm {
    fn of(peer: &HttpPeer) -> Self {
        if peer.secure {
            Self::Secure
        } else {
            Self::Plain
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Secure => "__Host-chinwag",
            Self::Plain => "chinwag",
        }
    }

    fn set(self, id: &str) -> HeaderValue {
        let secure = match self {
            Self::Secure => "; Secure",
            Self::Plain => "",
        };
        let name = self.name();
        HeaderValue::try_from(format!(
            "{name}={id}; Path=/; HttpOnly; SameSite=Strict{secure}"
        ))
        .expect("a session's id is base64url")
    }

    /// Makes the browser forget it.
    fn clear(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Secure => "__Host-chinwag=; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=0",
            Self::Plain => "chinwag=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0",
        })
    }

    /// The values of the cookie in a request: more than one where something set it for another path or domain.
    fn find(self, headers: &HeaderMap) -> impl Iterator<Item = &str> {
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(move |pair| {
                let (name, value) = pair.split_once('=')?;
                (name.trim() == self.name()).then_some(value.trim())
            })
            .filter(|value| !value.is_empty())
    }
}

/// The query of `GET /v1/events`. What it does not know it ignores.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    ack: Option<u64>,
    /// Whole seconds.
    wait: u64,
    max: Option<u64>,
}

impl Query {
    fn read(query: &str) -> Result<Self, Refusal> {
        let (mut ack, mut wait, mut max) = (None, None, None);
        let mut read = |key: &str, value: &str| {
            let (slot, name) = match key {
                "ack" => (&mut ack, "ack"),
                "wait" => (&mut wait, "wait"),
                "max" => (&mut max, "max"),
                _ => return Ok(()),
            };
            let number = whole(value)
                .ok_or_else(|| bad_request(format!("{name} is a whole number, 0 or more.")))?;
            if slot.replace(number).is_some() {
                return Err(bad_request(format!("{name} stands there twice.")));
            }
            Ok(())
        };
        if query.contains(['%', '+']) {
            for (key, value) in form_urlencoded::parse(query.as_bytes()) {
                read(&key, &value)?;
            }
        } else {
            // As it is with nearly every poll, of which there are many.
            for pair in query.split('&') {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                read(key, value)?;
            }
        }
        if max == Some(0) {
            return Err(bad_request("max is at least 1."));
        }
        Ok(Self {
            ack,
            wait: wait.unwrap_or(0),
            max,
        })
    }
}

/// Digits and nothing else; what is beyond the greatest number is the greatest.
fn whole(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
