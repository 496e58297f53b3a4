//! Whether one member was sent every number once, in order.

use std::ops::Range;

/// Gaps remembered per member. Beyond it the oldest gap is given up: its numbers stay lost, and one
/// that comes after all counts as repeated.
const GAPS: usize = 64;

/// What one number was to the member that got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, or one further on: what it skipped is lost until it comes.
    New,
    /// Skipped before and come after all: reordered.
    Late,
    /// Come before, or from before the member was there.
    Repeated,
}

/// The numbers that one member was sent.
#[derive(Debug)]
pub struct Sequence {
    next: u64,
    gaps: Vec<Range<u64>>,
    given_up: u64,
    repeated: u64,
    reordered: u64,
}

impl Sequence {
    /// A member whose first event is `last + 1`, as `init` tells.
    #[must_use]
    pub fn after(last: u64) -> Self {
        Self {
            next: last.saturating_add(1),
            gaps: Vec::new(),
            given_up: 0,
            repeated: 0,
            reordered: 0,
        }
    }

    /// The number that should come next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes note of `seq`.
    pub fn arrive(&mut self, seq: u64) -> Arrival {
        if seq >= self.next {
            if seq > self.next {
                self.skip(self.next..seq);
            }
            self.next = seq.saturating_add(1);
            return Arrival::New;
        }
        let Some(at) = self.gaps.iter().position(|gap| gap.contains(&seq)) else {
            self.repeated += 1;
            return Arrival::Repeated;
        };
        let gap = self.gaps.remove(at);
        for rest in [gap.start..seq, seq + 1..gap.end] {
            if !rest.is_empty() {
                self.skip(rest);
            }
        }
        self.reordered += 1;
        Arrival::Late
    }

    /// Numbers up to and including `last` that never came.
    #[must_use]
    pub fn lost(&self, last: u64) -> u64 {
        let gaps: u64 = self.gaps.iter().map(|gap| gap.end - gap.start).sum();
        self.given_up + gaps + last.saturating_add(1).saturating_sub(self.next)
    }

    /// Numbers that came again.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Numbers that came after a higher one.
    #[must_use]
    pub fn reordered(&self) -> u64 {
        self.reordered
    }

    fn skip(&mut self, gap: Range<u64>) {
        if self.gaps.len() == GAPS {
            let oldest = self.gaps.remove(0);
            self.given_up += oldest.end - oldest.start;
        }
        self.gaps.push(gap);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn told(last: u64, numbers: impl IntoIterator<Item = u64>) -> Sequence {
        let mut sequence = Sequence::after(last);
        for seq in numbers {
            sequence.arrive(seq);
        }
        sequence
    }

    #[test]
    fn a_dense_sequence_has_no_fault() {
        let sequence = told(7, 8..=20);
        assert_eq!(
            (sequence.lost(20), sequence.repeated(), sequence.reordered()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_gap_is_lost_and_so_is_the_tail() {
        let sequence = told(0, [1, 2, 5]);
        assert_eq!(sequence.lost(5), 2);
        assert_eq!(sequence.lost(8), 5);
    }

    #[test]
    fn a_number_that_comes_late_is_reordered_and_not_lost() {
        let sequence = told(0, [1, 4, 2, 3, 5]);
        assert_eq!(
            (sequence.lost(5), sequence.repeated(), sequence.reordered()),
            (0, 0, 2)
        );
    }

    #[test]
    fn a_number_that_comes_twice_is_repeated() {
        let mut sequence = told(0, [1, 2]);
        assert_eq!(sequence.arrive(2), Arrival::Repeated);
        assert_eq!(sequence.repeated(), 1);
    }

    #[test]
    fn a_number_from_before_the_join_is_repeated() {
        assert_eq!(told(10, [10]).repeated(), 1);
    }

    #[test]
    fn gaps_are_bounded_and_stay_lost() {
        let odd = (1..=1001).step_by(2);
        let sequence = told(0, odd);
        assert_eq!(sequence.gaps.len(), GAPS);
        assert_eq!(sequence.lost(1001), 500);
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_everything_seen(numbers in prop::collection::vec(1_u64..60, 0..200)) {
            let mut sequence = Sequence::after(0);
            let mut seen = BTreeSet::new();
            let (mut repeated, mut late) = (0, 0);
            for seq in numbers {
                let highest = seen.last().copied().unwrap_or(0);
                if !seen.insert(seq) {
                    repeated += 1;
                } else if seq < highest {
                    late += 1;
                }
                sequence.arrive(seq);
            }
            prop_assert_eq!(sequence.repeated(), repeated);
            prop_assert_eq!(sequence.reordered(), late);
            prop_assert_eq!(sequence.lost(60), 60 - seen.len() as u64);
        }
    }
}
