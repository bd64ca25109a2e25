//! Acts 4 and 5: the sums, and one delivery's history as anybody can read it afterwards.

use super::recipient::Recipient;
use super::screen::{Paint, Screen, instant, seconds};
use super::tally::{Progress, Tally};
use super::{Client, refused};
use crate::api::proto::{Attempt, Delivery, GetDeliveryRequest};
use crate::cli::Failure;
use crate::cli::show::counted;

/// A row for each endpoint.
pub(super) fn summary(recipients: &[Recipient], tally: &Tally, screen: &Screen) -> Result<(), Failure> {
    let title = "endpoint  deliveries  attempts  retried  succeeded  signatures verified";
    screen.line(&screen.paint(Paint::Dim, title))?;
    for (index, recipient) in recipients.iter().enumerate() {
        let count = |wanted: fn(&&Progress) -> bool| tally.of(index).filter(wanted).count();
        let sum = |number: fn(&Progress) -> u32| tally.of(index).map(number).sum::<u32>();
        let verified = format!("{} of {}", sum(|it| it.verified), sum(|it| it.arrivals));
        screen.line(&format!(
            "{}  {:>10}  {:>8}  {:>7}  {}  {}",
            screen.paint(Paint::Name, &format!("{:<8}", recipient.name)),
            tally.of(index).count(),
            sum(|it| it.attempts),
            count(|it| it.attempts > 1),
            screen.paint(Paint::Good, &format!("{:>9}", count(|it| it.has_succeeded()))),
            screen.paint(Paint::Good, &format!("{verified:>19}")),
        ))?;
    }
    Ok(())
}

/// Every attempt of the delivery: when, how long, what was answered.
pub(super) async fn history(progress: &Progress, client: &mut Client, screen: &Screen) -> Result<(), Failure> {
    let request = GetDeliveryRequest { delivery_id: progress.id.clone() };
    let response = client.get_delivery(request).await.map_err(refused("GetDelivery"))?.into_inner();
    let delivery = response.delivery.unwrap_or_default();
    let state = delivery.state().as_str_name().trim_start_matches("DELIVERY_STATE_");
    screen.line(&format!(
        "{}  {} for {}, {} after {}",
        delivery.id,
        delivery.event_type,
        screen.paint(Paint::Name, progress.recipient_name),
        screen.paint(Paint::Good, state),
        counted(delivery.attempt_count.into(), "attempt", "attempts"),
    ))?;
    screen.line(&screen.paint(Paint::Dim, "attempt    sent at      took  status  response body"))?;
    for attempt in &delivery.attempts {
        screen.line(&row(attempt, &delivery, screen))?;
    }
    Ok(())
}

fn row(attempt: &Attempt, delivery: &Delivery, screen: &Screen) -> String {
    let made = instant(delivery.create_time.as_ref());
    let started = instant(attempt.start_time.as_ref());
    let sent_at = made.zip(started).map_or(0.0, |(made, started)| seconds(made, started));
    let took = attempt.duration.as_ref().map_or(0.0, |span| span.seconds as f64 * 1e3 + f64::from(span.nanos) / 1e6);
    let is_success = (200..300).contains(&attempt.status_code);
    let status =
        screen.paint(if is_success { Paint::Good } else { Paint::Bad }, &format!("{:>6}", attempt.status_code));
    // A receiver's answer is a stranger's text: nothing in it may move the cursor.
    let body = String::from_utf8_lossy(&attempt.response_body).escape_debug().to_string();
    format!("{:>7}  {sent_at:>+7.3} s  {took:>5.1} ms  {status}  {body}", attempt.number)
}
