//! GetStats.

use std::time::Duration;

use tonic::Status;

use super::auth::Caller;
use super::convert::Violations;
use super::convert::time::{from_duration, to_duration};
use super::proto;
use super::service::Webhooks;
use crate::domain::Problem;
use crate::store::{EndpointFigures, Figures, Quantiles};

const WINDOW_DEFAULT: Duration = Duration::from_secs(3_600);
const WINDOW_MAX: Duration = Duration::from_secs(30 * 86_400);

impl Webhooks {
    /// Figures of a tenant, or of all.
    pub(super) async fn stats(
        &self,
        caller: &Caller,
        request: proto::GetStatsRequest,
    ) -> Result<proto::GetStatsResponse, Status> {
        let mut v = Violations::new();
        let tenant = caller.tenants("tenant", &request.tenant, &mut v);
        let window = v.take("window", window(request.window.as_ref()));
        let (Some(tenant), Some(window)) = (tenant, window) else { return Err(v.into_status()) };
        Ok(to_proto(self.services.store.figures(tenant.as_ref(), window).await?))
    }
}

fn window(asked: Option<&prost_types::Duration>) -> Result<Duration, Problem> {
    let Some(asked) = asked else { return Ok(WINDOW_DEFAULT) };
    let span = from_duration(asked)?;
    let is_allowed = !span.is_zero() && span <= WINDOW_MAX;
    is_allowed
        .then_some(span)
        .ok_or_else(|| Problem::new("is not within 30 days; allowed is more than 0 up to 2592000 s"))
}

fn to_proto(figures: Figures) -> proto::GetStatsResponse {
    proto::GetStatsResponse {
        outstanding: figures.outstanding,
        in_flight: figures.in_flight,
        oldest_due_age: figures.oldest_due_age.map(to_duration),
        dead_letters: figures.dead_letters,
        succeeded: figures.succeeded,
        failed: figures.failed,
        attempts: figures.attempts,
        success_rate: rate(figures.succeeded, figures.failed),
        attempt_duration: figures.attempt_duration.map(quantiles),
        end_to_end: figures.end_to_end.map(quantiles),
        attempt_duration_mean: figures.attempt_duration_mean.map(to_duration),
        endpoints: figures.endpoints.into_iter().map(endpoint_to_proto).collect(),
    }
}

fn endpoint_to_proto(figures: EndpointFigures) -> proto::EndpointStats {
    proto::EndpointStats {
        endpoint_id: figures.endpoint.to_string(),
        outstanding: figures.outstanding,
        oldest_due_age: figures.oldest_due_age.map(to_duration),
        succeeded: figures.succeeded,
        failed: figures.failed,
        success_rate: rate(figures.succeeded, figures.failed),
        attempt_duration: figures.attempt_duration.map(quantiles),
    }
}

fn rate(succeeded: u64, failed: u64) -> f64 {
    let settled = succeeded + failed;
    if settled == 0 { 0.0 } else { succeeded as f64 / settled as f64 }
}

fn quantiles(quantiles: Quantiles) -> proto::Quantiles {
    proto::Quantiles {
        p50: Some(to_duration(quantiles.p50)),
        p95: Some(to_duration(quantiles.p95)),
        p99: Some(to_duration(quantiles.p99)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_positive_and_at_most_thirty_days() {
        let of = |seconds, nanos| window(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(window(None), Ok(WINDOW_DEFAULT));
        assert_eq!(of(0, 1), Ok(Duration::from_nanos(1)));
        assert_eq!(of(30 * 86_400, 0), Ok(WINDOW_MAX));
        for (seconds, nanos) in [(0, 0), (-1, 0), (30 * 86_400, 1), (1, -1)] {
            assert!(of(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }

    #[test]
    fn a_rate_is_a_share_of_what_settled() {
        assert_eq!((rate(0, 0), rate(3, 1), rate(0, 2)), (0.0, 0.75, 0.0));
    }
}
