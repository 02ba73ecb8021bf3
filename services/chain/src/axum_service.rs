//! What the axum services of the chain share.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use crate::work::{Incoming, Service, handle};

/// Any path and method; 404 for what is not a call.
pub fn router(service: Arc<Service>) -> Router {
    Router::new().fallback(serve).with_state(service)
}

async fn serve(
    State(service): State<Arc<Service>>,
    uri: Uri,
    headers: HeaderMap,
    _body: Bytes,
) -> Response {
    match Incoming::parse(uri.path(), uri.query().unwrap_or_default()) {
        Some(incoming) => handle(service, incoming, headers).await.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
