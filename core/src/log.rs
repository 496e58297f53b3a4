//! Who decides the order of a room's events: the embedded log here, or one that several nodes share.

use std::sync::Arc;

use crate::room::{Proposal, Room};

/// Decides the order of each room's events and feeds them back.
///
/// For every proposal the log calls [`Room::apply`] with the proposal's place, on every node that has the room, or
/// [`Room::apply_next`] where the calls themselves are the order. It may do so before `submit` returns or any time
/// later, repeatedly, and out of order. Places are dense and begin at 1. The proposals of one session for one room get
/// places in the order in which they were submitted. A proposal counts as accepted only once the fold has taken it
/// back from the log; the session is answered from there.
pub trait Log: Send + Sync + 'static {
    /// Takes a proposal. Must not block, and must not call back into the session that submits.
    fn submit(&self, room: &Arc<Room>, proposal: Proposal);
}

/// The log of a server that runs alone: the order is that of the room's lock, and the answer comes in place.
#[derive(Debug, Default, Clone, Copy)]
pub struct EmbeddedLog;

impl Log for EmbeddedLog {
    fn submit(&self, room: &Arc<Room>, proposal: Proposal) {
        room.apply_next(proposal);
    }
}
