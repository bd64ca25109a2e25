//! Lets keys of ordered endpoints go on that stand still with nothing to wait for, a page of them at a time.

use std::time::Duration;

use crate::store::{OrderPlace, OrderWalk, Store};
use crate::telemetry::log::tried_again;

const EVERY: Duration = Duration::from_secs(1);
/// Keys of one look.
const PAGE: u32 = 1_000;

pub(super) async fn run(store: &Store) {
    let mut places = [(OrderWalk::Blocked, OrderPlace::default()), (OrderWalk::Any, OrderPlace::default())];
    loop {
        tokio::time::sleep(EVERY).await;
        for (walk, place) in &mut places {
            match store.mend_order(*walk, place, PAGE).await {
                Ok((mended, next)) => {
                    if mended > 0 {
                        tracing::debug!(keys = mended, "keys that stood still go on");
                    }
                    *place = next;
                }
                Err(error) => tried_again!(error, "keys of ordered endpoints could not be looked at"),
            }
        }
    }
}
