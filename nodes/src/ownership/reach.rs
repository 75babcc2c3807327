//! Pure. Whether a member reaches enough of the others to be of use to them.
//!
//! Postgres does not tell: whoever reaches it renews, and keeps shards that nobody can ask for. So a member that knows
//! itself on the smaller side of a cut gives way. Of two equal sides neither does, for neither is the better one.

use std::collections::HashMap;

use rookery_actors::{
    ids::Incarnation,
    runtime::{MemberRow, MemberState},
};

/// Renewals that are to be seen of a member since it was last in reach: one that is dead does not renew, and to give shards
/// to the dead would be worse than to keep them.
const RENEWALS: i64 = 2;
/// The same for one that was never in reach: at a start links take a moment.
const RENEWALS_AT_FIRST: i64 = 10;

/// Whom a member reaches.
#[derive(Debug, Default)]
pub(super) struct Reach {
    others: HashMap<Incarnation, Sight>,
    cut_off: bool,
}

/// What was last seen of another member.
#[derive(Clone, Copy, Debug)]
enum Sight {
    /// When it had renewed so often.
    Linked(i64),
    /// Since it had renewed so often; whether it was in reach before.
    Missed(i64, bool),
}

impl Reach {
    /// Takes in the other members, as a poll found them, and whether there is a link to them.
    pub(super) fn look<'a>(&mut self, others: impl Iterator<Item = (&'a MemberRow, bool)>) {
        let mut seen = HashMap::new();
        let (mut reached, mut alive, mut settled) = (0, 0, 0);
        for (member, linked) in others {
            let sight = match self.others.get(&member.incarnation) {
                _ if linked => Sight::Linked(member.renewed),
                Some(Sight::Linked(renewed)) => Sight::Missed(*renewed, true),
                Some(missed) => *missed,
                None => Sight::Missed(member.renewed, false),
            };
            seen.insert(member.incarnation, sight);
            let (since, renewals) = match sight {
                Sight::Linked(_) => {
                    reached += 1;
                    continue;
                }
                Sight::Missed(since, true) => (since, RENEWALS),
                Sight::Missed(since, false) => (since, RENEWALS_AT_FIRST),
            };
            if member.renewed - since >= renewals {
                alive += 1;
                // Somebody has to stay: who gives way already is nobody to give way to.
                settled += usize::from(member.state == MemberState::Live);
            }
        }
        self.others = seen;
        let missing = if self.cut_off { alive } else { settled };
        self.cut_off = 2 * (reached + 1) < 1 + reached + missing;
    }

    /// Whether most of the others are alive and out of reach.
    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    struct Others {
        members: Vec<MemberRow>,
        linked: Vec<bool>,
        reach: Reach,
    }

    impl Others {
        fn of(count: u128) -> Self {
            let member = |n| MemberRow {
                incarnation: Incarnation(Uuid::from_u128(n)),
                node: format!("n{n}"),
                address: None,
                renewed: 7,
                state: MemberState::Live,
                lease: None,
            };
            let members: Vec<MemberRow> = (0..count).map(member).collect();
            Self { linked: vec![true; members.len()], members, reach: Reach::default() }
        }

        /// So many polls, before each of which these have renewed.
        fn polls(&mut self, count: usize, awake: &[usize]) -> bool {
            for _ in 0..count {
                awake.iter().for_each(|at| self.members[*at].renewed += 1);
                self.reach.look(self.members.iter().zip(self.linked.iter().copied()));
            }
            self.reach.is_cut_off()
        }
    }

    #[test]
    fn who_reaches_neither_of_two_is_cut_off_once_both_are_seen_to_live() {
        let mut others = Others::of(2);
        others.linked = vec![false; 2];
        assert!(!others.polls(10, &[0, 1]), "at a start links take a moment");
        assert!(others.polls(1, &[0, 1]), "but not for ever");
        others.linked = vec![true; 2];
        assert!(!others.polls(3, &[0, 1]));
        others.linked = vec![false; 2];
        assert!(!others.polls(1, &[0, 1]), "one renewal may have come before the link went");
        assert!(others.polls(1, &[0, 1]));
        others.linked = vec![true, false];
        assert!(!others.polls(1, &[0, 1]), "one in reach, and those are two of three");
    }

    #[test]
    fn nobody_gives_way_to_the_dead() {
        let mut others = Others::of(2);
        others.polls(1, &[0, 1]);
        others.linked = vec![false; 2];
        assert!(!others.polls(9, &[]));
        assert!(!others.polls(9, &[1]), "of the two that are left, neither is the better one");
    }

    #[test]
    fn the_smaller_side_gives_way_and_of_two_equal_ones_neither() {
        for (others, linked, cut_off) in [(1, 0, false), (4, 1, true), (4, 2, false), (3, 1, false), (3, 0, true)] {
            let mut table = Others::of(others);
            table.polls(1, &[]);
            table.linked.iter_mut().skip(linked).for_each(|linked| *linked = false);
            let all: Vec<usize> = (0..table.members.len()).collect();
            assert_eq!(table.polls(4, &all), cut_off, "{linked} of {others} are in reach");
        }
    }

    #[test]
    fn nobody_gives_way_to_those_who_do_and_nobody_comes_back_because_they_do() {
        let mut others = Others::of(2);
        others.polls(1, &[0, 1]);
        others.linked = vec![false; 2];
        others.members[0].state = MemberState::Draining;
        assert!(!others.polls(9, &[0, 1]));
        others.members[0].state = MemberState::Live;
        assert!(others.polls(1, &[0, 1]));
        others.members[0].state = MemberState::Draining;
        assert!(others.polls(9, &[0, 1]));
    }
}
