//! Creates users: validates a request and saves it in a downstream store.
//!
//! The handler makes its spans by hand and exports them itself, by OTLP over HTTP. Nothing here
//! knows of any other instrumentation.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use common::Threads;
use opentelemetry::trace::{Span, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::{Value, json};

const USAGE: &str = "\
usage: users --store URL [--listen ADDRESS] [--workers N]

  --store URL       base URL of the downstream store
  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --workers N       worker threads (default: one for each core)
";

struct Options {
    listen: SocketAddr,
    store: String,
    workers: Option<usize>,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        common::options(USAGE, |args| {
            Ok(Self {
                listen: common::listen_address(args)?,
                store: args.value_from_str("--store")?,
                workers: args.opt_value_from_str("--workers")?,
            })
        })
    }
}

struct Users {
    client: reqwest::Client,
    store_url: String,
}

/// Why a user was not created.
enum Refusal {
    Invalid(serde_json::Error),
    NotSaved(reqwest::Error),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::Invalid(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::NotSaved(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
        };
        (status, Json(json!({ "error": message }))).into_response()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("users").build())
        .with_batch_exporter(SpanExporter::builder().with_http().build()?)
        .build();
    global::set_tracer_provider(provider.clone());

    let users = Users {
        // The store is a neighbour; a proxy from the environment is none of its business.
        client: reqwest::Client::builder().no_proxy().build()?,
        store_url: format!("{}/store", options.store.trim_end_matches('/')),
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/api/users", post(create_user))
        .route("/api/users/{n}", post(create_numbered_user))
        .with_state(Arc::new(users));

    common::runtime(Threads::Workers(options.workers))?
        .block_on(common::serve(options.listen, router))?;
    // Outside the runtime: the exporter's client blocks.
    if let Err(error) = provider.shutdown() {
        eprintln!("users: the last spans were not exported: {error}");
    }
    Ok(())
}

async fn create_user(
    State(users): State<Arc<Users>>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    users.create(None, &body).await
}

async fn create_numbered_user(
    State(users): State<Arc<Users>>,
    Path(number): Path<i64>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    users.create(Some(number), &body).await
}

impl Users {
    async fn create(
        &self,
        number: Option<i64>,
        body: &[u8],
    ) -> Result<(StatusCode, Json<Value>), Refusal> {
        let tracer = global::tracer("users");
        let mut span = tracer.start("process_business_logic");
        set_number(&mut span, number);
        let cx = Context::current_with_span(span);

        let created = async {
            let user = validate_input(&cx, number, body).await?;
            self.save_to_database(&cx, number, &user).await?;
            Ok((StatusCode::CREATED, Json(user)))
        }
        .await;

        if created.is_err() {
            cx.span().set_status(Status::error("user not created"));
        }
        cx.span().end();
        created
    }

    async fn save_to_database(
        &self,
        cx: &Context,
        number: Option<i64>,
        user: &Value,
    ) -> Result<(), Refusal> {
        let mut span = global::tracer("users").start_with_context("save_to_database", cx);
        set_number(&mut span, number);
        let saved = self
            .client
            .post(&self.store_url)
            .json(user)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        // The answer is read to its end, so that the connection can be used again.
        let saved = match saved {
            Ok(response) => response.bytes().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = &saved {
            span.set_status(Status::error(error.to_string()));
        }
        span.end();
        saved.map_err(Refusal::NotSaved)
    }
}

/// Accepts JSON, or nothing, which is a user without properties.
async fn validate_input(cx: &Context, number: Option<i64>, body: &[u8]) -> Result<Value, Refusal> {
    let mut span = global::tracer("users").start_with_context("validate_input", cx);
    set_number(&mut span, number);
    tokio::time::sleep(short_delay()).await;
    let properties = match body {
        [] => Ok(Value::Null),
        body => serde_json::from_slice(body),
    };
    if let Err(error) = &properties {
        span.set_status(Status::error(error.to_string()));
    }
    span.end();
    match properties {
        Ok(properties) => Ok(json!({ "number": number, "user": properties })),
        Err(error) => Err(Refusal::Invalid(error)),
    }
}

fn set_number(span: &mut impl Span, number: Option<i64>) {
    if let Some(number) = number {
        span.set_attribute(KeyValue::new("request.number", number));
    }
}

/// Up to a millisecond, by the clock: different enough to shuffle requests among the workers.
fn short_delay() -> Duration {
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    Duration::from_micros(u64::from(nanos % 1000))
}
