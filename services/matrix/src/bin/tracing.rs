//! Spans by `tracing` and tracing-opentelemetry. Indented is what has a parent in the service itself:
//!
//! ```text
//! root                 #[instrument]
//!   child              #[instrument], ends before `root`
//!     grandchild       across awaits
//!   spawned            in a task of its own
//! scope                in_scope, without waiting
//!   scope-child
//! entered              the guard of `entered`
//! outer                open while `inner`, a root by `parent: None`, starts and ends
//! inner
//! last
//! ```

use std::error::Error;

use matrix::opentelemetry::trace::TracerProvider;
use matrix::{Providers, pause, runtime, serve, tracing_opentelemetry};
use tracing::{Instrument, info_span, instrument};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = runtime()?;
    let _in_runtime = runtime.enter();
    let providers = Providers::new()?;
    let tracer = providers.batch.tracer("matrix");
    let subscriber = registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
    tracing::subscriber::set_global_default(subscriber)?;
    runtime.block_on(serve(work))?;
    providers.finish();
    Ok(())
}

async fn work(number: i64) {
    root(number).await;

    info_span!("scope", request.number = number).in_scope(|| {
        info_span!("scope-child", request.number = number).in_scope(|| {});
    });
    {
        let _entered = info_span!("entered", request.number = number).entered();
    }

    async {
        pause(number).await;
        let inner = info_span!(parent: None, "inner", request.number = number);
        pause(number).instrument(inner).await;
        pause(number).await;
    }
    .instrument(info_span!("outer", request.number = number))
    .await;

    let last = info_span!("last", request.number = number);
    pause(number).instrument(last).await;
}

#[instrument(fields(request.number = number), skip_all)]
async fn root(number: i64) {
    pause(number).await;
    child(number).await;
    pause(number).await;
    let spawned = info_span!("spawned", request.number = number);
    // An error would be a panic in it, which prints itself.
    let _ = tokio::spawn(pause(number).instrument(spawned)).await;
}

#[instrument(fields(request.number = number), skip_all)]
async fn child(number: i64) {
    pause(number).await;
    let grandchild = info_span!("grandchild", request.number = number);
    pause(number).instrument(grandchild).await;
    pause(number).await;
}
