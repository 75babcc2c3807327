//! Pure. What clients mean to do: decided by a seed alone, so that a run can be repeated.
//!
//! What comes of it depends on the cluster and the moment, and so on which post a slot holds by then; the wishes do not.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The size of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Clients at work at the same time.
    pub clients: usize,
    /// Users; fewer than clients, so that some act for the same user.
    pub users: usize,
    /// Posts that everybody works on; few, so that clients meet.
    pub slots: usize,
    /// Longest pause between two wishes of a client, in milliseconds.
    pub pause_ms_max: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 12, users: 6, slots: 8, pause_ms_max: 80 }
    }
}

impl Shape {
    /// For whom a client acts.
    pub fn user_of(self, client: usize) -> usize {
        client % self.users
    }

    /// Whose post a slot holds.
    pub fn author_of(self, slot: usize) -> usize {
        slot % self.users
    }
}

/// What a client means to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Read the post of a slot.
    Read(usize),
    /// List its comments.
    List(usize),
    /// Like it or no longer.
    Like(usize, bool),
    /// Edit one's own, as it was seen last or whatever it is by now.
    Edit(usize, Checked),
    /// Publish a new one and put it into a slot of one's own.
    Publish(usize),
    /// Delete one's own.
    Delete(usize),
    /// Comment on it, on the post itself or on the last comment.
    Comment(usize, Under),
    /// Delete a comment of one's own.
    Uncomment(usize),
    /// Follow a user or no longer.
    Follow(usize, bool),
}

/// Whether an edit names the version that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// With `If-Match`.
    Yes,
    /// Whatever the version is.
    No,
}

/// Where a comment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// Below the post.
    Post,
    /// Below the last comment.
    Comment,
}

/// A wish and the pause before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What.
    pub wish: Wish,
    /// After how long, in milliseconds.
    pub pause_ms: u64,
}

/// The wish of a client at a step.
pub fn turn(seed: u64, shape: Shape, client: usize, step: usize) -> Turn {
    let mut dice = Dice { seed, client: client as u64, step: step as u64, throws: 0 };
    let any = dice.below(shape.slots);
    // Only the author may edit and delete: a slot of the client's own user.
    let user = shape.user_of(client);
    let owned = shape.slots.saturating_sub(user).div_ceil(shape.users);
    let own = if owned == 0 { None } else { Some(user + shape.users * dice.below(owned)) };
    let wish = match (dice.below(100), own) {
        (0..34, _) => Wish::Read(any),
        (34..45, _) => Wish::List(any),
        (45..65, _) => Wish::Like(any, dice.below(2) == 0),
        (65..78, Some(own)) => Wish::Edit(own, if dice.below(8) == 0 { Checked::No } else { Checked::Yes }),
        (78..81, Some(own)) => Wish::Publish(own),
        (81, Some(own)) => Wish::Delete(own),
        (65..82, None) => Wish::Read(any),
        (82..93, _) => Wish::Comment(any, if dice.below(4) == 0 { Under::Comment } else { Under::Post }),
        (93..97, _) => Wish::Uncomment(any),
        _ => Wish::Follow(dice.below(shape.users), dice.below(2) == 0),
    };
    Turn { wish, pause_ms: dice.below(shape.pause_ms_max as usize + 1) as u64 }
}

/// Numbers that depend on nothing but their place.
struct Dice {
    seed: u64,
    client: u64,
    step: u64,
    throws: u64,
}

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        let mut place = [0; 24];
        for (bytes, number) in place.chunks_exact_mut(8).zip([self.client, self.step, self.throws]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        self.throws += 1;
        (xxh3_64_with_seed(&place, self.seed) % end.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(seed: u64) -> Vec<Turn> {
        let shape = Shape::default();
        (0..shape.clients).flat_map(|client| (0..200).map(move |step| turn(seed, shape, client, step))).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_wishes_and_another_one_others() {
        assert_eq!(turns(7), turns(7));
        assert_ne!(turns(7), turns(8));
    }

    #[test]
    fn every_wish_occurs() {
        let turns = turns(1);
        let kinds: std::collections::HashSet<_> = turns.iter().map(|turn| std::mem::discriminant(&turn.wish)).collect();
        assert_eq!(kinds.len(), 9);
    }

    #[test]
    fn nobody_edits_or_deletes_what_is_not_theirs() {
        let shape = Shape { clients: 9, users: 5, slots: 3, pause_ms_max: 0 };
        for client in 0..shape.clients {
            for step in 0..500 {
                if let Wish::Edit(slot, _) | Wish::Delete(slot) | Wish::Publish(slot) = turn(3, shape, client, step).wish {
                    assert!(slot < shape.slots);
                    assert_eq!(shape.author_of(slot), shape.user_of(client));
                }
            }
        }
    }
}
