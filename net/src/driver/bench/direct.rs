//! How long two nodes that meet at a relay need until they speak directly.

use std::time::{Duration, Instant};

use super::BenchError;
use super::asking::Asking;
use crate::driver::now;
use crate::{LinkStatus, Path};
use lapwing_base::Row;

/// Guessing ports takes up to twenty seconds, and comes after everything else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Far below what is measured.
const LOOK_INTERVAL: Duration = Duration::from_micros(500);

const BENCH: &str = "time to direct";

/// Where no relay is on the way there is nothing to wait for.
pub(super) fn none() -> Row {
    Row::new(
        BENCH,
        "none: direct from the first packet, no relay on the way",
        f64::NAN,
        "ms",
        f64::NAN,
    )
}

/// Meets the other end for the first time.
pub(super) async fn rows(asking: &Asking) -> Result<Vec<Row>, BenchError> {
    let began = now();
    asking.connect().await?;
    let met = since(began);
    let relayed = asking.link();
    let found = now();
    let direct = loop {
        match asking.link() {
            Some(link) if link.path == Path::Direct => break Some(since(found)),
            _ if found.elapsed() > PATIENCE => break None,
            _ => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    };
    let rtt = |link: Option<LinkStatus>| {
        let rtt = link.and_then(|link| link.rtt);
        rtt.map_or(f64::NAN, |rtt| rtt.as_secs_f64() * 1e3)
    };
    let first = match relayed {
        Some(link) if link.path == Path::Relayed => "the first link, relayed",
        _ => "the first link, direct",
    };
    let row = match direct {
        Some(took) => Row::new(
            BENCH,
            "from relayed to direct, beside a direct round trip",
            took,
            "ms",
            rtt(asking.link()),
        ),
        None => {
            let because = asking.relayed_because();
            let case = format!("none in {} s: {because}", PATIENCE.as_secs());
            Row::new(BENCH, case, f64::NAN, "ms", f64::NAN)
        }
    };
    Ok(vec![Row::new("set-up", first, met, "ms", f64::NAN), row])
}

fn since(at: Instant) -> f64 {
    at.elapsed().as_secs_f64() * 1e3
}
