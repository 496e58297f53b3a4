//! A log that behaves as badly as one across a network may.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chinwag::core::{Log, Proposal, Room};
use tokio::{sync::mpsc, time::sleep};

use crate::Seeded;

/// Proposals get their places in order, and come back late, some of them twice, and shuffled.
pub(crate) struct LateLog(mpsc::Sender<(Arc<Room>, Proposal)>);

impl LateLog {
    pub(crate) fn start(seed: u64) -> Arc<Self> {
        let (log, proposals) = mpsc::channel(10_000);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the server, which holds the sending end"
        )]
        tokio::spawn(run(Seeded(seed), proposals));
        Arc::new(Self(log))
    }
}

impl Log for LateLog {
    fn submit(&self, room: &Arc<Room>, proposal: Proposal) {
        let taken = self.0.try_send((Arc::clone(room), proposal));
        assert!(taken.is_ok(), "a script proposes little");
    }
}

async fn run(mut dice: Seeded, mut proposals: mpsc::Receiver<(Arc<Room>, Proposal)>) {
    let mut places: HashMap<String, u64> = HashMap::new();
    let mut repeats: Vec<(Arc<Room>, u64, Proposal)> = Vec::new();
    while let Some(first) = proposals.recv().await {
        sleep(Duration::from_millis(dice.next() % 4)).await;
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some((room, proposal)) = next {
            let place = places.entry(room.name().to_owned()).or_insert(0);
            *place += 1;
            batch.push((room, *place, proposal));
            next = proposals.try_recv().ok();
        }
        for last in (1..batch.len()).rev() {
            let other = usize::try_from(dice.next() % (last as u64 + 1)).unwrap();
            batch.swap(last, other);
        }
        for (room, place, proposal) in batch {
            room.apply(place, proposal.clone());
            if dice.next().is_multiple_of(3) {
                repeats.push((room, place, proposal));
            }
        }
        if dice.next().is_multiple_of(2) {
            for (room, place, proposal) in repeats.drain(..) {
                room.apply(place, proposal);
            }
        }
    }
}
