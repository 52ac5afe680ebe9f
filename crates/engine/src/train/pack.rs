//! Which datums make up a micro-batch.

use tinsmith_backend::StepKind;
use tinsmith_model::memory::StepShape;

/// The piece of work at the head of one run's queue.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// Tokens of each datum that is still to run, in order.
    pub(crate) lengths: Vec<usize>,
    /// Only work of one kind shares a micro-batch.
    pub(crate) kind: Kind,
    /// Of the run's adapter.
    pub(crate) rank: usize,
}

/// What must agree within a micro-batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Kind {
    pub(crate) forward_only: bool,
    pub(crate) per_row: usize,
}

/// How many datums of each head run now.
///
/// One datum of each head in turn, from the first head on, while whole datums fit into `tokens_max` and
/// `fits` holds for the whole; the first datum always runs, alone if it must.
pub(crate) fn pack(
    heads: &[Head],
    tokens_max: usize,
    fits: impl Fn(&StepShape) -> bool,
) -> Vec<usize> {
    let mut counts = vec![0; heads.len()];
    let Some(kind) = heads.first().map(|head| head.kind) else { return counts };
    let mut open: Vec<bool> = heads.iter().map(|head| head.kind == kind).collect();
    let kind = if kind.forward_only { StepKind::Forward } else { StepKind::ForwardBackward };
    let mut step =
        StepShape { tokens: 0, sequences: 0, longest: 0, rank: 0, kind, recompute: false };
    while open.contains(&true) {
        for (index, head) in heads.iter().enumerate() {
            if !open[index] {
                continue;
            }
            let Some(length) = head.lengths.get(counts[index]) else {
                open[index] = false;
                continue;
            };
            let more = StepShape {
                tokens: step.tokens + length,
                sequences: step.sequences + 1,
                longest: step.longest.max(*length),
                rank: step.rank.max(head.rank),
                kind,
                recompute: false,
            };
            if step.tokens == 0 || more.tokens <= tokens_max && fits(&more) {
                counts[index] += 1;
                step = more;
            } else {
                // The datums of a run stay in order: none behind this one may pass it.
                open[index] = false;
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: Kind = Kind { forward_only: false, per_row: 1 };

    fn head(lengths: &[usize]) -> Head {
        Head { lengths: lengths.to_vec(), kind: KIND, rank: 1 }
    }

    #[test]
    fn turns_are_fair() {
        let heads = [head(&[10; 8]), head(&[10; 2]), head(&[30, 10])];
        assert_eq!(pack(&heads, 80, |_| true), [2, 2, 2]);
        assert_eq!(pack(&heads, 70, |_| true), [2, 2, 1]);
        assert_eq!(pack(&heads, 5, |_| true), [1, 0, 0]);
        assert_eq!(pack(&heads, 1000, |_| true), [8, 2, 2]);
        assert_eq!(pack(&heads, 1000, |step| step.tokens <= 20), [1, 1, 0]);
    }

    #[test]
    fn kinds_do_not_mix() {
        let forward = Head { kind: Kind { forward_only: true, per_row: 1 }, ..head(&[1, 1]) };
        assert_eq!(pack(&[head(&[1]), forward.clone()], 9, |_| true), [1, 0]);
        assert_eq!(pack(&[forward, head(&[1])], 9, |_| true), [2, 0]);
    }

    proptest! {
        #[test]
        fn progress_and_limits(
            lengths in prop::collection::vec(prop::collection::vec(1usize..50, 1..6), 1..6),
            tokens_max in 1usize..100,
        ) {
            let heads: Vec<Head> = lengths.iter().map(|lengths| head(lengths)).collect();
            let counts = pack(&heads, tokens_max, |step| step.tokens <= 70);
            let taken: Vec<usize> = heads
                .iter()
                .zip(&counts)
                .flat_map(|(head, &count)| head.lengths[..count].to_vec())
                .collect();
            let tokens: usize = taken.iter().sum();
            prop_assert!(!taken.is_empty());
            prop_assert!(taken.len() == 1 || tokens <= tokens_max.min(70));
        }
    }
}
