//! The first of the chain: axum, and reqwest with a pool of few connections.

use std::error::Error;
use std::sync::Arc;

use chain::axum_service;
use chain::service::{Options, provider, shutdown, start};
use chain::work::{Call, Next};
use common::Threads;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

const USAGE: &str = "\
usage: front --next URL [--through URL] [--listen ADDRESS] [--workers N]

  --next URL        base URL of the next service
  --through URL     base URL of a `relay`, which is told to call the next service
  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --workers N       worker threads (default: one for each core)
";

/// Connections that are kept for later.
const IDLE: usize = 4;

struct Reqwest {
    client: reqwest::Client,
    next: String,
    through: Option<String>,
}

impl Reqwest {
    fn request(&self, call: Call) -> reqwest::RequestBuilder {
        let path = &call.path_and_query;
        let request = match (&self.through, call.body) {
            (Some(relay), _) => {
                let errands = format!(
                    r#"[{{"url": "{}{}", "arguments": []}}]"#,
                    self.next,
                    onward(path)
                );
                self.client
                    .post(format!("{relay}{path}"))
                    .header("content-type", "application/json")
                    .body(errands)
            }
            (None, Some(body)) => self.client.post(format!("{}{path}", self.next)).body(body),
            (None, None) => self.client.get(format!("{}{path}", self.next)),
        };
        request.headers(call.headers)
    }
}

/// The relay's own call: its key is that of the call it serves with `-r`.
fn onward(path_and_query: &str) -> String {
    let mut segments = path_and_query.splitn(5, '/').skip(1);
    let key = segments.next().unwrap_or_default();
    let number_and_query = segments.nth(2).unwrap_or_default();
    format!("/{key}-r/{key}/wire/{number_and_query}")
}

impl Next for Reqwest {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<(), Box<dyn Error + Send + Sync>>> {
        async move {
            let read = call.read;
            let response = self.request(call).send().await?;
            if read {
                response.bytes().await?;
            }
            Ok(())
        }
        .boxed()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args(USAGE)?;
    let provider = provider("front")?;
    let next = Reqwest {
        client: reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(IDLE)
            .build()?,
        next: options.next.unwrap_or_default(),
        through: options.through,
    };
    common::runtime(Threads::Workers(options.workers))?.block_on(async {
        let service = start(&provider, Some(Arc::new(next)), false, options.propagates);
        common::serve(options.listen, axum_service::router(service)).await
    })?;
    shutdown("front", &provider);
    Ok(())
}
