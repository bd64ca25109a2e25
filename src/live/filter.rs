//! Which transitions a subscriber wants.

use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::pattern::{EventPattern, any_matches};
use crate::store::{TimelineEvent, TransitionKind};

/// All of its conditions must hold; an empty one always does.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One tenant's; `None` for all.
    pub tenant: Option<Tenant>,
    /// Of one of these endpoints.
    pub endpoints: Vec<EndpointId>,
    /// Of a type that one of these matches.
    pub event_types: Vec<EventPattern>,
    /// Of this event.
    pub event: Option<EventId>,
    /// Of this delivery.
    pub delivery: Option<DeliveryId>,
    /// Of one of these kinds.
    pub kinds: Vec<TransitionKind>,
}

impl Filter {
    /// Whether the transition is wanted.
    pub fn matches(&self, event: &TimelineEvent) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant)
            && self.event.is_none_or(|id| id == event.event)
            && self.delivery.is_none_or(|id| id == event.delivery)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.endpoints.is_empty() || self.endpoints.contains(&event.endpoint))
            && (self.event_types.is_empty() || any_matches(&self.event_types, &event.event_type))
    }
}
