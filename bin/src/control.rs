//! `[control]`: where session managers on other machines steer sessions.
//!
//! A listener of its own with a path for each order. Whoever shows the token of a session may steer that one; the token
//! went to its manager when the session began. What is refused is told by code, and nothing of it is done.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chinwag_core::{
    ErrorCode, Hub, Refusal, RefusedReason, ScopeConfig, TransportMetrics,
    plugin::{ControlDesk, NoPass, Order},
};
use chinwag_transports::{
    BindContext, BindError, HttpListener, HttpPeer, HttpRoute, Listeners,
    http::{
        Answer, BodyError, bad_request, bearer, json, method_not_allowed, read_body, refused,
        refused_as,
    },
};
use http::{Request, StatusCode, method::Method};
use hyper::body::Incoming;

use crate::config::ControlConfig;

/// What the listener is called in logs, metrics and addresses; no transport may have the name.
pub(crate) const NAME: &str = "control";

/// What the path of every order begins with.
const PATH: &str = "/v1/control";

/// Takes the socket, and says to those who need to know where it is. Answers nobody yet.
///
/// # Errors
/// The address can't be had.
pub(crate) async fn bind(hub: &Hub, mut control: ControlConfig) -> Result<HttpListener, BindError> {
    // Back ends come by the name that they are told.
    let told = control
        .url
        .as_deref()
        .and_then(|url| url.parse::<http::Uri>().ok());
    control
        .listener
        .hosts
        .extend(told.iter().filter_map(http::Uri::host).map(str::to_owned));
    let scope = hub.scope(ScopeConfig {
        name: NAME.into(),
        auth: Vec::new(),
        timeout: Duration::ZERO,
        login_timeout: control.listener.login_timeout.0,
        write_timeout: control.listener.write_timeout.0,
    });
    let scheme = if control.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let within = control.listener.body_timeout.0;
    let cx = BindContext::new(
        NAME,
        Arc::new(control.listener),
        hub.clone(),
        scope,
        Listeners::default(),
    )
    .with_tls(control.tls);
    let listener = cx.http().await?;
    for order in Order::NAMES {
        let route = Orders {
            order,
            desk: control.desk.clone(),
            metrics: Arc::clone(hub.telemetry().transport(NAME)),
            // An object that is larger than clients expect is refused anyhow.
            limit: hub.limits().server_frame_bytes.0,
            within,
        };
        listener.route(format!("{PATH}/{order}"), Arc::new(route))?;
    }
    let address = listener.local_addr();
    let url = control
        .url
        .unwrap_or_else(|| format!("{scheme}://{address}"));
    control.desk.open_at(url + PATH);
    Ok(listener)
}

/// The path of one order.
struct Orders {
    order: &'static str,
    desk: ControlDesk,
    metrics: Arc<TransportMetrics>,
    /// The largest body.
    limit: usize,
    /// For the whole of it.
    within: Duration,
}

impl Orders {
    async fn take(&self, request: Request<Incoming>) -> Result<(), Answer> {
        if request.method() != Method::POST {
            self.metrics.refused(RefusedReason::NotFound);
            return Err(method_not_allowed("POST"));
        }
        let token = bearer(request.headers()).map_err(|refusal| refused(&refusal))?;
        let control = token.ok_or(NoPass::Wrong);
        let control = control
            .and_then(|token| self.desk.session(token))
            .map_err(|why| self.no_pass(why))?;
        let body = read_body(request.into_body(), self.limit, self.within).await;
        let body = body.map_err(|error| self.no_body(error))?;
        Order::read(self.order, &body)
            .and_then(|order| Ok(control.obey(order)?))
            .map_err(|refusal| match refusal.code {
                ErrorCode::SessionExpired => gone(&refusal),
                _ => refused(&refusal),
            })
    }

    fn no_pass(&self, why: NoPass) -> Answer {
        match why {
            NoPass::Over => gone(&Refusal::new(
                ErrorCode::SessionExpired,
                "The session is over.",
            )),
            NoPass::Wrong => {
                self.metrics.refused(RefusedReason::Token);
                let message =
                    "Orders need `Authorization: Bearer` with the token of their session.";
                refused(&Refusal::new(ErrorCode::AuthFailed, message))
            }
        }
    }

    fn no_body(&self, error: BodyError) -> Answer {
        let (reason, status, refusal) = match error {
            BodyError::TooLarge => {
                let message = format!("An order has at most {} bytes.", self.limit);
                let refusal = Refusal::new(ErrorCode::TooLarge, message);
                let status = StatusCode::PAYLOAD_TOO_LARGE;
                (RefusedReason::TooLarge, status, refusal)
            }
            BodyError::Late => (
                RefusedReason::BodyTimeout,
                StatusCode::REQUEST_TIMEOUT,
                bad_request("The body was not there in time."),
            ),
            BodyError::Broken => (
                RefusedReason::BadRequest,
                StatusCode::BAD_REQUEST,
                bad_request("The body could not be read."),
            ),
        };
        self.metrics.refused(reason);
        refused_as(status, &refusal)
    }
}

/// 410: nobody has to log in again, the session is no more.
fn gone(refusal: &Refusal) -> Answer {
    refused_as(StatusCode::GONE, refusal)
}

#[async_trait]
impl HttpRoute for Orders {
    async fn handle(&self, request: Request<Incoming>, _peer: &HttpPeer) -> Answer {
        match self.take(request).await {
            Ok(()) => json(StatusCode::OK, r#"{"type":"ok"}"#),
            Err(answer) => answer,
        }
    }
}
