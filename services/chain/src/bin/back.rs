//! The last of the chain: axum. It calls nobody.

use std::error::Error;

use chain::axum_service;
use chain::service::{Options, provider, shutdown, start};
use common::Threads;

const USAGE: &str = "\
usage: back [--listen ADDRESS] [--workers N]

  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --workers N       worker threads (default: one for each core)
";

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args(USAGE)?;
    let provider = provider("back")?;
    common::runtime(Threads::Workers(options.workers))?.block_on(async {
        let service = start(&provider, None, false, options.propagates);
        common::serve(options.listen, axum_service::router(service)).await
    })?;
    shutdown("back", &provider);
    Ok(())
}
