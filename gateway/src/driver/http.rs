//! Reading bodies and writing JSON, for both APIs. Knows nothing of what they mean.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Refusal;

/// Longest body. A registration with everything at its bound needs about 20 KiB.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How much of a body that is too long is read and dropped, so that its sender reads the refusal instead of a
/// reset connection.
const DROPPED_BYTES_MAX: u64 = 1024 * 1024;

/// The whole body.
pub(super) async fn read_body(request: Request, patience: Duration) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::TooLarge {
        bytes_max: BODY_BYTES_MAX,
    };
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > DROPPED_BYTES_MAX) {
        return Err(too_large());
    }
    let mut stream = request.into_body().into_data_stream();
    let read = async {
        let mut body = Vec::new();
        let mut length = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| Refusal::InvalidJson("it broke off".to_owned()))?;
            length += chunk.len() as u64;
            if length > DROPPED_BYTES_MAX {
                return Err(too_large());
            }
            if length <= BODY_BYTES_MAX as u64 {
                body.extend_from_slice(&chunk);
            }
        }
        if length > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        Ok(Bytes::from(body))
    };
    tokio::time::timeout(patience, read)
        .await
        .unwrap_or(Err(Refusal::TooSlow))
}

/// The body as the JSON of `T`; a declared content type must be JSON.
pub(super) async fn read_json<T: DeserializeOwned>(
    request: Request,
    patience: Duration,
) -> Result<T, Refusal> {
    if let Some(declared) = request.headers().get(header::CONTENT_TYPE) {
        let essence = declared.to_str().unwrap_or_default().split(';').next();
        let essence = essence.unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Refusal::NotJson);
        }
    }
    let body = read_body(request, patience).await?;
    serde_json::from_slice(&body).map_err(|error| Refusal::InvalidJson(error.to_string()))
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    with_type(status, body, HeaderValue::from_static("application/json"))
}

/// An RFC 9457 answer.
pub(super) fn problem(refusal: &Refusal) -> Response {
    let problem = refusal.to_problem();
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static("application/problem+json");
    let mut response = with_type(status, &problem, kind);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn with_type(status: StatusCode, body: &impl Serialize, kind: HeaderValue) -> Response {
    let Ok(bytes) = serde_json::to_vec(body) else {
        // Only maps with keys that are not strings have no JSON form, and no answer holds one.
        return empty(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
