//! What a request gets instead of an answer: OpenAI's error object.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use polykv::Error;
use polykv::models::engine::Refusal;
use serde_json::json;

/// Seconds after which a request that was turned away may come again.
const LATER: HeaderValue = HeaderValue::from_static("2");

/// A refused or failed request.
#[derive(Debug)]
pub struct Fault {
    pub status: StatusCode,
    pub message: String,
    /// The field that is at fault.
    pub field: Option<String>,
    pub code: Option<&'static str>,
}

impl Fault {
    fn of(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            field: None,
            code: None,
        }
    }

    /// A field with a value that is not allowed.
    pub fn field(field: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self {
            message: format!("{field}: {message}"),
            field: Some(field),
            ..Self::of(StatusCode::BAD_REQUEST, "")
        }
    }

    /// A body that is no request.
    pub fn body(message: impl Into<String>) -> Self {
        Self::of(StatusCode::BAD_REQUEST, message)
    }

    pub fn too_large(most: u64) -> Self {
        let message = format!("the request is larger than {most} bytes, the most that is allowed");
        Self::of(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub fn slow() -> Self {
        let message = "the request did not arrive in time";
        Self::of(StatusCode::REQUEST_TIMEOUT, message)
    }

    pub fn unauthorized() -> Self {
        let message = "the request needs the server's key: Authorization: Bearer KEY";
        Self {
            code: Some("invalid_api_key"),
            ..Self::of(StatusCode::UNAUTHORIZED, message)
        }
    }

    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::of(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    pub fn no_model(found: &str, allowed: &str) -> Self {
        Self {
            field: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::not_found(format!("model '{found}'; allowed: '{allowed}'"))
        }
    }

    pub fn busy(session: &str) -> Self {
        let message = format!("session '{session}' is in use by another request");
        Self::of(StatusCode::CONFLICT, message)
    }

    pub fn method() -> Self {
        Self::of(
            StatusCode::METHOD_NOT_ALLOWED,
            "the path takes another method",
        )
    }

    pub fn not_now(why: &str) -> Self {
        Self::of(StatusCode::SERVICE_UNAVAILABLE, why)
    }

    /// The engine's thread is gone.
    pub fn ended() -> Self {
        Self::failed("the engine has ended by an error in polykv itself")
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's error object.
    pub fn object(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.field,
            "code": self.code,
        }})
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error.is_refusal() {
            true => Self::body(error.to_string()),
            false => Self::failed(error.to_string()),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Invalid(error) => error.into(),
            Refusal::Full { .. } | Refusal::Held { .. } => {
                Self::of(StatusCode::TOO_MANY_REQUESTS, message)
            }
            _ => Self {
                code: Some("kv_memory_exceeded"),
                ..Self::body(message)
            },
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.object())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, LATER);
            }
            StatusCode::UNAUTHORIZED => {
                let scheme = HeaderValue::from_static("Bearer");
                headers.insert(header::WWW_AUTHENTICATE, scheme);
            }
            _ => {}
        }
        response
    }
}
