//! An endpoint in words.

use crate::api::proto::{CircuitState, Endpoint, EndpointState, RetryPolicy, retry_policy::Backoff};
use crate::cli::show::{Cell, Fields, Paint, counted, option, span, time, word};

/// Its line in the list.
pub(super) fn row(endpoint: &Endpoint) -> Vec<Cell> {
    vec![
        Cell::new(&endpoint.id),
        state(endpoint),
        circuit(endpoint),
        Cell::new(format!("{:.2}", endpoint.health_score)),
        Cell::new(event_types(endpoint)),
        Cell::new(&endpoint.url),
    ]
}

/// All that there is to say of it. What is at its default is said as well: one has to know it.
pub(super) fn fields(endpoint: &Endpoint) -> Fields {
    let mut fields = Fields::default();
    fields.add("id", &endpoint.id);
    fields.add("tenant", &endpoint.tenant);
    fields.add("external id", &endpoint.external_id);
    fields.add("url", &endpoint.url);
    fields.add("description", &endpoint.description);
    fields.add("state", state(endpoint));
    fields.add("disabled because", &endpoint.disabled_reason);
    fields.add("circuit", circuit(endpoint));
    fields.add("health", health(endpoint));
    fields.add("event types", event_types(endpoint));
    fields.add("filter", filter(endpoint));
    fields.add("signature", option(endpoint.signature_scheme().as_str_name(), "SIGNATURE_SCHEME"));
    fields.add("public key", &endpoint.public_key);
    fields.add("format", option(endpoint.payload_format().as_str_name(), "PAYLOAD_FORMAT"));
    fields.add_all("headers", sorted(&endpoint.headers, ": "));
    fields.add("trusts", if endpoint.ca_pem.is_empty() { "" } else { "authorities of its own, too (ca_pem)" });
    let shows = if endpoint.client_certificate_pem.is_empty() { "" } else { "a client certificate" };
    fields.add("is shown", shows);
    fields.add("timeout", span(endpoint.timeout.as_ref()));
    fields.add("in flight", format!("{} at most", endpoint.max_in_flight));
    fields.add("rate limit", rate_limit(endpoint));
    fields.add("retries", endpoint.retry_policy.as_ref().map_or_else(|| "those of the service".to_owned(), retries));
    fields.add_all(
        "by event type",
        endpoint.event_retry_policies.iter().map(|one| {
            let policy = one.retry_policy.as_ref().map_or_else(String::new, retries);
            format!("{}: {policy}", one.event_types.join(" "))
        }),
    );
    fields.add("breaker", breaker(endpoint));
    fields.add("disabled after", disable_policy(endpoint));
    fields.add("ordering", ordering(endpoint));
    fields.add_all("labels", sorted(&endpoint.labels, "="));
    fields.add_all("secrets", secrets(endpoint));
    fields.add("last success", time(endpoint.last_success_time.as_ref()));
    fields.add("last failure", time(endpoint.last_failure_time.as_ref()));
    fields.add("created", time(endpoint.create_time.as_ref()));
    fields.add("updated", time(endpoint.update_time.as_ref()));
    fields.add("etag", &endpoint.etag);
    fields
}

fn state(endpoint: &Endpoint) -> Cell {
    let paint = match endpoint.state() {
        EndpointState::Active => Paint::Good,
        EndpointState::Paused => Paint::Waiting,
        EndpointState::Disabled | EndpointState::Unspecified => Paint::Bad,
    };
    Cell::painted(paint, word(endpoint.state().as_str_name(), "ENDPOINT_STATE"))
}

fn circuit(endpoint: &Endpoint) -> Cell {
    let paint = match endpoint.circuit_state() {
        CircuitState::Closed => Paint::Good,
        CircuitState::HalfOpen => Paint::Waiting,
        CircuitState::Open | CircuitState::Unspecified => Paint::Bad,
    };
    Cell::painted(paint, word(endpoint.circuit_state().as_str_name(), "CIRCUIT_STATE"))
}

fn health(endpoint: &Endpoint) -> String {
    match endpoint.consecutive_failures {
        0 => format!("{:.2}", endpoint.health_score),
        failures => format!("{:.2}, {}", endpoint.health_score, failed_in_a_row(failures)),
    }
}

fn event_types(endpoint: &Endpoint) -> String {
    if endpoint.event_types.is_empty() { "all".to_owned() } else { endpoint.event_types.join(" ") }
}

fn filter(endpoint: &Endpoint) -> String {
    match endpoint.filter_error_count {
        0 => endpoint.filter.clone(),
        errors => format!("{}; it failed on {}", endpoint.filter, counted(errors, "event", "events")),
    }
}

fn rate_limit(endpoint: &Endpoint) -> String {
    endpoint.rate_limit.as_ref().map_or_else(String::new, |limit| {
        let burst = if limit.burst > 0 { format!(", {} at once", limit.burst) } else { String::new() };
        format!("{}/s{burst}", limit.per_second)
    })
}

/// `1 s, then 2 times longer, up to 5 min; ±30 %; 5 retries`
fn retries(policy: &RetryPolicy) -> String {
    let mut parts = Vec::new();
    match &policy.backoff {
        Some(Backoff::Schedule(schedule)) => {
            let delays: Vec<_> = schedule.delays.iter().map(|delay| span(Some(delay))).collect();
            parts.push(delays.join(", "));
        }
        Some(Backoff::Exponential(backoff)) => {
            let mut words = Vec::new();
            words.extend(backoff.initial_delay.as_ref().map(|delay| span(Some(delay))));
            words.extend(backoff.multiplier.map(longer));
            words.extend(backoff.max_delay.as_ref().map(|delay| format!("up to {}", span(Some(delay)))));
            parts.push(words.join(", "));
        }
        None => {}
    }
    parts.extend(policy.jitter.map(|share| format!("±{:.0} %", share * 100.0)));
    parts.extend(policy.max_retries.map(|number| counted(number.into(), "retry", "retries")));
    parts.retain(|part| !part.is_empty());
    parts.join("; ")
}

fn longer(multiplier: f64) -> String {
    if multiplier == 1.0 { "each time".to_owned() } else { format!("then {multiplier} times longer") }
}

fn failed_in_a_row(failures: u32) -> String {
    format!("{} in a row", counted(failures.into(), "failure", "failures"))
}

fn breaker(endpoint: &Endpoint) -> String {
    let Some(breaker) = &endpoint.circuit_breaker else { return String::new() };
    match breaker.failure_threshold {
        Some(0) => "off".to_owned(),
        threshold => {
            let after =
                threshold.map(|number| format!("opens after {}", counted(number.into(), "failure", "failures")));
            let open = breaker.open_duration.as_ref().map(|delay| format!("for {}", span(Some(delay))));
            let max = breaker.max_open_duration.as_ref().map(|delay| format!("then up to {}", span(Some(delay))));
            after.into_iter().chain(open).chain(max).collect::<Vec<_>>().join(", ")
        }
    }
}

fn disable_policy(endpoint: &Endpoint) -> String {
    let Some(policy) = &endpoint.disable_policy else { return String::new() };
    match policy.consecutive_failures {
        Some(0) => "never".to_owned(),
        failures => {
            let count = failures.map(failed_in_a_row);
            let span = policy.failing_for.as_ref().map(|long| format!("over {}", span(Some(long))));
            count.into_iter().chain(span).collect::<Vec<_>>().join(", ")
        }
    }
}

fn ordering(endpoint: &Endpoint) -> String {
    let ordering = option(endpoint.ordering().as_str_name(), "ORDERING");
    match option(endpoint.ordering_on_failure().as_str_name(), "ORDERING_ON_FAILURE").as_str() {
        "" => ordering,
        _ if ordering == "unordered" => ordering,
        on_failure => format!("{ordering}, {on_failure} on failure"),
    }
}

fn secrets(endpoint: &Endpoint) -> Vec<String> {
    let since = |secret: &crate::api::proto::SecretInfo| {
        let since = time(secret.create_time.as_ref());
        match time(secret.expire_time.as_ref()).as_str() {
            "" => format!("version {}, since {since}", secret.version),
            until => format!("version {}, since {since}, signs until {until}", secret.version),
        }
    };
    endpoint.secrets.iter().map(since).collect()
}

fn sorted(pairs: &std::collections::HashMap<String, String>, between: &str) -> Vec<String> {
    let mut lines: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}{between}{value}")).collect();
    lines.sort_unstable();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::{BackoffSchedule, ExponentialBackoff};

    #[test]
    fn retries_are_told_in_words() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let exponential =
            ExponentialBackoff { initial_delay: seconds(1), multiplier: Some(2.0), max_delay: seconds(300) };
        let policy =
            RetryPolicy { backoff: Some(Backoff::Exponential(exponential)), jitter: Some(0.3), max_retries: Some(5) };
        assert_eq!(retries(&policy), "1 s, then 2 times longer, up to 5 min; ±30 %; 5 retries");
        let delays =
            vec![prost_types::Duration { seconds: 60, nanos: 0 }, prost_types::Duration { seconds: 300, nanos: 0 }];
        let policy = RetryPolicy { backoff: Some(Backoff::Schedule(BackoffSchedule { delays })), ..policy };
        assert_eq!(retries(&policy), "60 s, 5 min; ±30 %; 5 retries");
        let once = ExponentialBackoff { initial_delay: seconds(1), multiplier: Some(1.0), max_delay: None };
        let policy = RetryPolicy { backoff: Some(Backoff::Exponential(once)), jitter: None, max_retries: Some(1) };
        assert_eq!(retries(&policy), "1 s, each time; 1 retry");
    }
}
