//! The picture: lines of a width and a number, made of the model alone.

use std::time::Duration;

use super::model::{Count, Lane, Model, Sort};
use crate::api::proto::{CircuitState, DeliveryEvent, DeliveryEventKind, EndpointState, Quantiles};
use crate::cli::show::{Paint, Palette, count, counted, share, short, span, time_of_day, visible, word};

/// A line of pieces, each in one colour.
#[derive(Debug, Default, Clone)]
pub(super) struct Line(Vec<(Option<Paint>, String)>);

impl Line {
    fn add(&mut self, paint: impl Into<Option<Paint>>, text: impl AsRef<str>) {
        self.0.push((paint.into(), visible(text.as_ref())));
    }

    fn new(paint: impl Into<Option<Paint>>, text: impl AsRef<str>) -> Self {
        let mut line = Self::default();
        line.add(paint, text);
        line
    }

    /// What is beyond the width is not shown.
    fn cut(&mut self, columns: usize) {
        let mut left = columns;
        for (_, text) in &mut self.0 {
            if let Some((at, _)) = text.char_indices().nth(left) {
                text.truncate(at);
            }
            left -= text.chars().count();
        }
    }

    /// As it is printed.
    pub(super) fn paint(&self, palette: Palette) -> String {
        let pieces = self.0.iter().map(|(paint, text)| paint.map_or(text.clone(), |paint| palette.paint(paint, text)));
        pieces.collect::<String>().trim_end().to_owned()
    }
}

/// Lanes that are shown at least, where there are so many, before failures get their room.
const LANES_MIN: usize = 5;
/// Failures that are shown at most, whatever the room.
const FAILURES_MAX: usize = 50;

/// So many lines at most, each so wide at most.
pub(super) fn picture(model: &Model, now: Duration, columns: usize, rows: usize) -> Vec<Line> {
    let mut lines = head(model, now);
    lines.push(Line::default());
    let left = rows.saturating_sub(lines.len());
    let lanes = model.lanes(now);
    let failures_wanted = model.failures.len().min(FAILURES_MAX);
    // Two lines of headings and one between. Failures get what lanes leave, or half where both want all of it.
    let spare = left.saturating_sub(3 + lanes.len());
    let half = left.saturating_sub(3 + LANES_MIN.min(lanes.len())) / 2;
    let failures_max = failures_wanted.min(spare.max(half));
    let lanes_max = left.saturating_sub(1 + if failures_max > 0 { failures_max + 2 } else { 0 });
    lines.extend(lane_lines(model, &lanes, columns, lanes_max));
    if failures_max > 0 {
        lines.push(Line::default());
        lines.push(Line::new(Paint::Dim, "latest failures"));
        lines.extend(model.failures.iter().take(failures_max).map(failure));
    }
    lines.truncate(rows);
    lines.iter_mut().for_each(|line| line.cut(columns));
    lines
}

fn head(model: &Model, now: Duration) -> Vec<Line> {
    let mut title = Line::new(Paint::Strong, "hooklane top");
    title.add(None, format!("  {}", model.place));
    if !model.tenant.is_empty() {
        title.add(None, format!("  tenant {}", model.tenant));
    }
    title.add(Paint::Dim, format!("  sorted by {}; q ends, s sorts, arrows scroll", sorted_by(model.sort)));
    let mut lines = vec![title];
    if let Some(trouble) = &model.trouble {
        // Refusals have a line for each field; here there is one for all.
        lines.push(Line::new(Paint::Bad, trouble.replace('\n', "; ")));
    }
    let Some(stats) = &model.stats else {
        lines.push(Line::new(Paint::Dim, "waiting for the service"));
        return lines;
    };
    let mut queue = Line::default();
    named(&mut queue, "queue", &format!("{} outstanding", count(stats.outstanding)), None);
    queue.add(None, format!("   {} in flight", count(stats.in_flight)));
    let oldest = stats.oldest_due_age.as_ref();
    queue.add(None, oldest.map_or_else(String::new, |age| format!("   oldest due {} ago", span(Some(age)))));
    let dead = if stats.dead_letters > 0 { Some(Paint::Bad) } else { None };
    queue.add(dead, format!("   {}", counted(stats.dead_letters, "dead letter", "dead letters")));
    lines.push(queue);
    lines.push(rates(model, model.rate(now)));
    let mut settled = Line::default();
    let window = span(Some(&model.window));
    named(&mut settled, &window, &format!("{} succeeded", count(stats.succeeded)), None);
    let failed = if stats.failed > 0 { Some(Paint::Bad) } else { None };
    settled.add(failed, format!("   {} failed", count(stats.failed)));
    if stats.succeeded + stats.failed > 0 {
        settled.add(None, format!("   {} success", share(stats.success_rate)));
    }
    settled.add(None, quantiles("attempt", stats.attempt_duration.as_ref()));
    settled.add(None, quantiles("from publish on", stats.end_to_end.as_ref()));
    lines.push(settled);
    lines
}

fn rates(model: &Model, rate: Count) -> Line {
    let mut line = Line::default();
    match model.is_live {
        Some(true) => {
            named(&mut line, "now", &format!("{}/s queued", number(rate.queued)), None);
            line.add(None, format!("   {}/s delivered", number(rate.succeeded)));
            let paint = if rate.failed > 0.0 { Some(Paint::Waiting) } else { None };
            line.add(paint, format!("   {}/s attempts failed", number(rate.failed)));
        }
        Some(false) => named(&mut line, "now", "the live stream is away", Some(Paint::Waiting)),
        None => named(&mut line, "now", "…", Some(Paint::Dim)),
    }
    line
}

fn named(line: &mut Line, name: &str, value: &str, paint: Option<Paint>) {
    line.add(Paint::Dim, format!("{name:<8}"));
    line.add(paint, value);
}

fn quantiles(name: &str, quantiles: Option<&Quantiles>) -> String {
    quantiles.map_or_else(String::new, |quantiles| {
        format!("   {name} p50 {} p99 {}", span(quantiles.p50.as_ref()), span(quantiles.p99.as_ref()))
    })
}

/// Heading, width, and whether numbers stand in it.
const COLUMNS: &[(&str, usize, bool)] = &[
    ("state", 8, false),
    ("circuit", 9, false),
    ("health", 6, true),
    ("outstanding", 11, true),
    ("oldest due", 10, true),
    ("ok/s", 7, true),
    ("fail/s", 7, true),
    ("success", 8, true),
    ("p50", 7, true),
    ("p99", 7, true),
];
/// Narrower terminals show the end of ids.
const COLUMNS_FOR_IDS: usize = 140;
const ID_COLUMNS: usize = 29;
const SHORT_ID_COLUMNS: usize = 8;

fn lane_lines(model: &Model, lanes: &[Lane<'_>], columns: usize, rows: usize) -> Vec<Line> {
    if lanes.is_empty() {
        return vec![Line::new(Paint::Dim, "no endpoint has anything to do")];
    }
    let is_wide = columns >= COLUMNS_FOR_IDS;
    let id_columns = if is_wide { ID_COLUMNS } else { SHORT_ID_COLUMNS };
    let mut title = Line::new(Paint::Dim, format!("{:<id_columns$}", "endpoint"));
    for (name, width, is_number) in COLUMNS {
        title.add(Paint::Dim, padded(name, *width, *is_number));
    }
    title.add(Paint::Dim, "  url");
    let first = model.first.min(lanes.len().saturating_sub(rows.max(1)));
    let mut lines = vec![title];
    lines.extend(lanes.iter().skip(first).take(rows).map(|lane| {
        let id = if is_wide { lane.stats.endpoint_id.clone() } else { short(&lane.stats.endpoint_id) };
        let mut line = Line::new(Paint::Name, format!("{id:<id_columns$}"));
        for ((paint, text), (_, width, is_number)) in cells(lane).into_iter().zip(COLUMNS) {
            line.add(paint, padded(&text, *width, *is_number));
        }
        line.add(None, format!("  {}", lane.endpoint.map_or("", |endpoint| &endpoint.url)));
        line
    }));
    lines
}

fn cells(lane: &Lane<'_>) -> [(Option<Paint>, String); 10] {
    let stats = lane.stats;
    let (state, circuit, health) = match lane.endpoint {
        Some(endpoint) => {
            let is_active = endpoint.state() == EndpointState::Active;
            let is_closed = endpoint.circuit_state() == CircuitState::Closed;
            (
                (
                    if is_active { Paint::Good } else { Paint::Bad },
                    word(endpoint.state().as_str_name(), "ENDPOINT_STATE"),
                ),
                (
                    if is_closed { Paint::Good } else { Paint::Bad },
                    word(endpoint.circuit_state().as_str_name(), "CIRCUIT_STATE"),
                ),
                format!("{:.2}", endpoint.health_score),
            )
        }
        // Deleted, come with an event, or beyond those that are read.
        None => ((Paint::Dim, ""), (Paint::Dim, ""), String::new()),
    };
    let success = if stats.succeeded + stats.failed > 0 { share(stats.success_rate) } else { String::new() };
    let quantile =
        |pick: fn(&Quantiles) -> Option<&prost_types::Duration>| span(stats.attempt_duration.as_ref().and_then(pick));
    [
        (Some(state.0), state.1.to_owned()),
        (Some(circuit.0), circuit.1.to_owned()),
        (None, health),
        (None, count(stats.outstanding)),
        (None, span(stats.oldest_due_age.as_ref())),
        (None, number(lane.rate.succeeded)),
        (if lane.rate.failed > 0.0 { Some(Paint::Waiting) } else { None }, number(lane.rate.failed)),
        (if stats.failed > 0 { Some(Paint::Bad) } else { None }, success),
        (None, quantile(|q| q.p50.as_ref())),
        (None, quantile(|q| q.p99.as_ref())),
    ]
}

fn padded(text: &str, width: usize, is_number: bool) -> String {
    if is_number { format!("  {text:>width$}") } else { format!("  {text:<width$}") }
}

fn failure(event: &DeliveryEvent) -> Line {
    let kind = event.kind();
    let delivery = event.delivery.clone().unwrap_or_default();
    let is_final = matches!(kind, DeliveryEventKind::Failed | DeliveryEventKind::Expired);
    let mut line = Line::new(Paint::Dim, time_of_day(event.occur_time.as_ref()));
    let name = word(kind.as_str_name(), "DELIVERY_EVENT_KIND");
    line.add(if is_final { Paint::Bad } else { Paint::Waiting }, format!("  {name:<14}"));
    line.add(None, format!("  {:<20}  {}", delivery.event_type, delivery.id));
    line.add(Paint::Name, format!("  {}", short(&delivery.endpoint_id)));
    match &event.attempt {
        Some(attempt) => line.add(None, format!("  attempt {}: {}", attempt.number, attempt.error)),
        None => line.add(None, format!("  {}", delivery.reason)),
    }
    line
}

/// `0`, `0.4`, `12.5`, `1,234`.
fn number(rate: f64) -> String {
    match rate {
        r if r <= 0.0 => "0".to_owned(),
        r if r < 100.0 => format!("{r:.1}"),
        r => count(r.round() as u64),
    }
}

const fn sorted_by(sort: Sort) -> &'static str {
    match sort {
        Sort::Outstanding => "outstanding",
        Sort::Oldest => "oldest due",
        Sort::Delivered => "ok/s",
        Sort::Failing => "fail/s",
    }
}

#[cfg(test)]
mod tests {
    use super::super::feed::News;
    use super::super::model::tests::{event, model};
    use super::*;
    use crate::api::proto::Endpoint;

    fn shown(model: &Model, columns: usize, rows: usize) -> Vec<String> {
        let lines = picture(model, Duration::from_secs(1), columns, rows);
        lines.iter().map(|line| line.paint(Palette::plain())).collect()
    }

    #[test]
    fn a_picture_has_queue_rates_lanes_and_failures() {
        let mut model = model(&[("ep_01h455vb4pex5vsknk084sn02q", 1_234)]);
        model.take(News::Live(true), Duration::ZERO);
        model.take(event(DeliveryEventKind::AttemptFailed, "ep_01h455vb4pex5vsknk084sn02q"), Duration::ZERO);
        let endpoint = Endpoint {
            id: "ep_01h455vb4pex5vsknk084sn02q".to_owned(),
            url: "https://example.com/a\u{1b}[2J".to_owned(),
            state: EndpointState::Paused.into(),
            circuit_state: CircuitState::Closed.into(),
            ..Endpoint::default()
        };
        model.take(News::Endpoints(vec![endpoint]), Duration::ZERO);
        let lines = shown(&model, 200, 40);
        let all = lines.join("\n");
        for part in
            ["hooklane top  127.0.0.1:50051", "1.0/s attempts failed", "0 dead letters", "latest failures", "5 min"]
        {
            assert!(all.contains(part), "{part} in\n{all}");
        }
        let lane = lines.iter().find(|line| line.starts_with("ep_01h455")).expect("a lane");
        assert!(
            lane.contains("PAUSED    CLOSED") && lane.contains("1,234") && lane.contains("example.com/a\\u{1b}[2J"),
            "{lane}"
        );
        assert!(
            shown(&model, 80, 40).iter().any(|line| line.starts_with("…4sn02q")),
            "narrow terminals have short ids"
        );
    }

    #[test]
    fn a_picture_fits_its_terminal_whatever_there_is() {
        let ids: Vec<String> = (0..100).map(|number| format!("ep_{number:026}")).collect();
        let lanes: Vec<_> = ids.iter().map(|id| (id.as_str(), 7)).collect();
        let mut model = model(&lanes);
        for id in &ids {
            model.take(event(DeliveryEventKind::AttemptFailed, id), Duration::ZERO);
        }
        for (columns, rows) in [(200, 60), (80, 24), (20, 10), (1, 1), (0, 0)] {
            let lines = shown(&model, columns, rows);
            assert!(
                lines.len() <= rows && lines.iter().all(|line| line.chars().count() <= columns),
                "{columns} {rows}"
            );
        }
        assert_eq!(shown(&model, 200, 60).len(), 60, "all of the room is used");
        model.scroll(1_000);
        assert!(
            shown(&model, 80, 24).iter().any(|line| line.starts_with("…000099")),
            "it scrolls to the end, not beyond"
        );
    }

    #[test]
    fn trouble_is_shown_until_figures_come_again() {
        let mut model = model(&[]);
        model.take(News::Away("GetStats was refused".to_owned()), Duration::ZERO);
        assert!(shown(&model, 80, 24)[1].contains("GetStats was refused"));
        let stats = model.stats.clone().unwrap();
        model.take(News::Stats(Box::new(stats)), Duration::ZERO);
        assert!(!shown(&model, 80, 24)[1].contains("refused"));
    }

    #[test]
    fn rates_are_shown_as_exactly_as_they_are_known() {
        assert_eq!([0.0, 0.4, 12.54, 1_234.4].map(number), ["0", "0.4", "12.5", "1,234"]);
    }
}
