//! Takes up what was published in SQL, on the one replica that the nil endpoint's lane falls to.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::cloudevents::SourceTemplate;
use crate::store::{InboxWalk, Publisher, TakenUp};
use crate::telemetry::log::tried_again;

/// Between two looks while something comes, and while nothing does.
const SOON: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_millis(200);
/// Before what has to wait is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// From so many rows on there are likely more.
const MANY: usize = 64;

/// While `is_mine`, until `end`: what is under way then is finished.
pub(super) async fn run(
    publisher: Publisher,
    source: SourceTemplate,
    mut is_mine: watch::Receiver<bool>,
    end: CancellationToken,
) {
    let mut walk = InboxWalk::default();
    loop {
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            known = is_mine.wait_for(|is_mine| *is_mine) => if known.is_err() { return },
        }
        let wait = match publisher.take_up_inbox(&mut walk, &source).await {
            Ok(TakenUp::Rows(rows)) if rows >= MANY => continue,
            Ok(TakenUp::Rows(_)) => SOON,
            Ok(TakenUp::Nothing) => IDLE,
            Ok(TakenUp::Stuck) => RETRY,
            Err(error) => {
                tried_again!(error, "what was published in SQL could not be taken up; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
