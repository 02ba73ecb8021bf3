//! The middle of the chain: actix-web, whose workers are threads with a runtime of their own each, and
//! hyper's client over a few connections that all of them share.

use std::error::Error;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::web::{Bytes, Data, to};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use chain::service::{Options, provider, shutdown, start};
use chain::work::{Call, Incoming, Next, Service, handle};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const USAGE: &str = "\
usage: middle --next URL [--propagate] [--listen ADDRESS] [--workers N]

  --next URL        base URL of the next service
  --propagate       read and write the header traceparent, as a service does that propagates by itself
  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --workers N       worker threads (default: one for each core)
";

/// Connections at the same time.
const CONNECTIONS: usize = 8;
/// How long requests in progress may take once the service was told to end.
const GRACE_SECONDS: u64 = 2;
/// When actix should have ended by then.
const OVERDUE: Duration = Duration::from_secs(GRACE_SECONDS + 3);
/// How long a connection may take to get ready again.
const READY: Duration = Duration::from_millis(20);

type Connection = SendRequest<Full<Bytes>>;

struct Hyper {
    address: String,
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Hyper {
    async fn connection(&self) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        loop {
            let idle = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            match idle {
                Some(connection) if connection.is_ready() => return Ok(connection),
                Some(_) => {}
                None => break,
            }
        }
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Who calls hears of it as well.
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn send(&self, call: Call) -> Result<(), Box<dyn Error + Send + Sync>> {
        let _permit = self.permits.acquire().await?;
        let mut connection = self.connection().await?;
        let method = if call.body.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder()
            .method(method)
            .uri(&call.path_and_query)
            .header("host", &self.address)
            .body(Full::new(Bytes::from(call.body.unwrap_or_default())))?;
        request.headers_mut().extend(call.headers);
        let response = connection.send_request(request).await?;
        if call.read {
            response.into_body().collect().await?;
        } else {
            drop(response);
        }
        let ready = tokio::time::timeout(READY, connection.ready()).await;
        if matches!(ready, Ok(Ok(()))) {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
        }
        Ok(())
    }
}

impl Next for Hyper {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<(), Box<dyn Error + Send + Sync>>> {
        self.send(call).boxed()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args(USAGE)?;
    let provider = provider("middle")?;
    let next = options.next.unwrap_or_default();
    let next = Hyper {
        address: next.trim_start_matches("http://").to_owned(),
        permits: Semaphore::new(CONNECTIONS),
        idle: Mutex::default(),
    };
    let listener = TcpListener::bind(options.listen)?;
    actix_web::rt::System::new().block_on(async {
        let service = start(&provider, Some(Arc::new(next)), true, options.propagates);
        let data = Data::from(service);
        let mut server =
            HttpServer::new(move || App::new().app_data(data.clone()).default_service(to(serve)))
                .shutdown_timeout(GRACE_SECONDS);
        if let Some(workers) = options.workers {
            server = server.workers(workers);
        }
        let address = listener.local_addr()?;
        let ended = common::ended()?;
        let server = server.listen(listener)?.run();
        common::announce(address)?;
        tokio::select! {
            result = server => result,
            // A worker that ends before actix has told it to is waited for without end (actix-server 2.6 to 2.10).
            () = async {
                ended.await;
                tokio::time::sleep(OVERDUE).await;
            } => Ok(()),
        }
    })?;
    shutdown("middle", &provider);
    Ok(())
}

async fn serve(service: Data<Service>, request: HttpRequest, _body: Bytes) -> HttpResponse {
    let Some(incoming) = Incoming::parse(request.path(), request.query_string()) else {
        return HttpResponse::NotFound().finish();
    };
    // Another version of the http crate, with other types: only what the propagator reads.
    let mut headers = HeaderMap::new();
    for name in ["traceparent", "tracestate"] {
        let value = request.headers().get(name);
        if let Some(Ok(value)) = value.map(|value| value.as_bytes().try_into()) {
            headers.insert(name, value);
        }
    }
    let body = handle(service.into_inner(), incoming, headers).await;
    HttpResponse::Ok().body(body)
}
