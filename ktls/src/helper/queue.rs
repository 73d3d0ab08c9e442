//! Connections that are ready for their keys, in turns: one pair of workloads that opens thousands at once does not
//! keep the others waiting. Pure.

use std::collections::VecDeque;

/// Queues of `T`, one for each `K`; served in turns.
#[derive(Debug)]
pub(super) struct Queue<K, T> {
    turns: VecDeque<(K, VecDeque<T>)>,
    len: usize,
}

impl<K: PartialEq, T> Queue<K, T> {
    pub(super) const fn new() -> Self {
        Self {
            turns: VecDeque::new(),
            len: 0,
        }
    }

    /// Puts `item` behind the others of `key`.
    pub(super) fn push(&mut self, key: K, item: T) {
        self.len += 1;
        // Few pairs of workloads have something ready at a time.
        match self.turns.iter_mut().find(|(known, _)| *known == key) {
            Some((_, items)) => items.push_back(item),
            None => self.turns.push_back((key, VecDeque::from([item]))),
        }
    }

    /// Takes out at most `most`.
    pub(super) fn take(&mut self, most: usize) -> Vec<T> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((key, mut items)) = self.turns.pop_front()
        {
            taken.extend(items.pop_front());
            if !items.is_empty() {
                self.turns.push_back((key, items));
            }
        }
        self.len -= taken.len();
        taken
    }

    /// How many are in it.
    pub(super) const fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn() {
        let mut queue = Queue::new();
        for n in 0..1000 {
            queue.push("storm", n);
        }
        queue.push("other", 2000);
        assert_eq!(queue.take(3), [0, 2000, 1]);
        assert_eq!(queue.len(), 998);
        queue.push("other", 2001);
        assert_eq!(queue.take(2), [2, 2001]);
        assert_eq!(queue.take(5000).len(), 997);
        assert_eq!((queue.len(), queue.take(1)), (0, vec![]));
    }
}
