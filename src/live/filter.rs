//! Which transitions a subscriber wants.

use crate::domain::pattern::{EventPattern, any_matches};
use crate::store::{TimelineEvent, TimelineFilter};

/// All of its conditions must hold; an empty one always does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// What the database can tell, too, when the past is read.
    pub stored: TimelineFilter,
    /// Of a type that one of these matches.
    pub event_types: Vec<EventPattern>,
}

impl Filter {
    /// Whether the transition is wanted.
    pub fn matches(&self, event: &TimelineEvent) -> bool {
        let stored = &self.stored;
        stored.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant)
            && stored.event.is_none_or(|id| id == event.event)
            && stored.delivery.is_none_or(|id| id == event.delivery)
            && (stored.kinds.is_empty() || stored.kinds.contains(&event.kind))
            && (stored.endpoints.is_empty() || stored.endpoints.contains(&event.endpoint))
            && (self.event_types.is_empty() || any_matches(&self.event_types, &event.event_type))
    }

    /// Whose transitions it shows: what its tokens are good for. `*` is no tenant's name.
    pub fn scope(&self) -> &str {
        self.stored.tenant.as_ref().map_or("*", |tenant| tenant.as_str())
    }
}
