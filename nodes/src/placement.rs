//! Pure. Which member should own a shard: a hint, for Postgres decides who does.

use std::{cmp::Reverse, collections::BinaryHeap};

use rookery_actors::ids::ShardId;
use xxhash_rust::xxh3::xxh3_64;

/// What a member may have above the mean, in percent of it. Less moves more when a member comes or goes, more leaves the
/// fullest member with more to do than the others (docs/placement.md has the figures).
const SPARE_PERCENT: usize = 5;

/// Who should own which shard, by rendezvous hashing (Thaler & Ravishankar, 1998) with bounded loads (Mirrokni et al., 2016).
///
/// Every shard ranks the members by a hash of both, and wants the first. A member that more want than it may have keeps
/// those with the highest hashes, and the others go to their next choice. Both sides rank by the same numbers, so this is
/// the one stable matching (Gale & Shapley, 1962): it depends on the names of the members and the number of shards alone,
/// and a member that comes or goes moves little more than its own share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    members: Vec<String>,
    owners: Vec<usize>,
}

impl Placement {
    /// Places `shards` shards on these members; their order does not matter, nor whether one is named twice.
    pub fn new(members: impl IntoIterator<Item = impl Into<String>>, shards: u16) -> Self {
        let mut members: Vec<String> = members.into_iter().map(Into::into).collect();
        members.sort_unstable();
        members.dedup();
        let owners = if members.is_empty() { Vec::new() } else { matched(&members, usize::from(shards)) };
        Self { members, owners }
    }

    /// The member that should own a shard; `None`: there are no members.
    pub fn owner(&self, shard: ShardId) -> Option<&str> {
        self.owners.get(shard.index()).map(|member| self.members[*member].as_str())
    }

    /// The members, sorted.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// How many shards are placed.
    pub fn shards(&self) -> usize {
        self.owners.len()
    }

    /// What a member gets at most.
    pub fn load_max(shards: usize, members: usize) -> usize {
        (shards * (100 + SPARE_PERCENT)).div_ceil(100 * members)
    }
}

/// One shard's bid for a member. Ties go by number, so that all agree.
type Bid = (u64, usize);

fn matched(members: &[String], shards: usize) -> Vec<usize> {
    let names: Vec<u64> = members.iter().map(|name| xxh3_64(name.as_bytes())).collect();
    let load_max = Placement::load_max(shards, members.len());
    let mut kept: Vec<BinaryHeap<Reverse<Bid>>> = vec![BinaryHeap::new(); members.len()];
    for shard in 0..shards {
        // Whoever is turned away bids for the best of what is left to it, below the bid that failed.
        let (mut bidder, mut below) = (shard, None);
        loop {
            let (score, member) = best(bidder, &names, below);
            kept[member].push(Reverse((score, bidder)));
            if kept[member].len() <= load_max {
                break;
            }
            let Reverse((score, turned_away)) = kept[member].pop().expect("something was just pushed");
            (bidder, below) = (turned_away, Some((score, member)));
        }
    }
    let mut owners = vec![0; shards];
    for (member, kept) in kept.iter().enumerate() {
        for Reverse((_, shard)) in kept {
            owners[*shard] = member;
        }
    }
    owners
}

/// A shard's highest bid below one that failed: a scan, for bids that fail are few, and to sort them all is not.
fn best(shard: usize, names: &[u64], below: Option<Bid>) -> Bid {
    let shard = mixed(shard as u64 + 1);
    let bids = names.iter().enumerate().map(|(member, name)| (mixed(name ^ shard), member));
    let left = bids.filter(|bid| below.is_none_or(|below| *bid < below));
    left.max().expect("all members together may have more than all shards")
}

/// Spreads the bits of a number over all of it (the finaliser of SplitMix64).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("n{n}")).collect()
    }

    fn placed(count: usize, shards: u16) -> Placement {
        Placement::new(names(count), shards)
    }

    fn loads(placement: &Placement) -> Vec<usize> {
        let mut loads = vec![0; placement.members.len()];
        for owner in &placement.owners {
            loads[*owner] += 1;
        }
        loads
    }

    /// Shards whose owner is another one.
    fn moved(before: &Placement, after: &Placement) -> usize {
        let shards = u16::try_from(before.owners.len()).expect("shards are numbered by u16");
        (0..shards).map(ShardId).filter(|shard| before.owner(*shard) != after.owner(*shard)).count()
    }

    #[test]
    fn no_member_gets_more_than_its_share_and_a_twentieth() {
        for count in 1..=40 {
            let placement = placed(count, 256);
            let max = loads(&placement).into_iter().max().expect("there are members");
            assert!(max <= Placement::load_max(256, count), "{count} members: {max}");
        }
    }

    #[test]
    fn a_member_that_comes_or_goes_moves_little_more_than_its_share() {
        for count in 1..=12 {
            let (before, after) = (placed(count, 256), placed(count + 1, 256));
            let (moved, share) = (moved(&before, &after), 256 / (count + 1));
            assert!(moved <= share + share / 2, "from {count} members to one more: {moved} moved, its share is {share}");
        }
    }

    #[test]
    fn a_member_that_comes_back_gets_back_what_it_had() {
        let all = placed(3, 256);
        let without = Placement::new(["n1", "n3"], 256);
        assert_ne!(all, without);
        assert_eq!(placed(3, 256), all);
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        assert_eq!(Placement::new(["n3", "n1", "n2", "n1"], 256), placed(3, 256));
    }

    #[test]
    fn every_node_of_every_release_agrees() {
        // What rolls out beside what runs must not want to move anything.
        assert_eq!(placed(3, 12).owners, [0, 2, 2, 2, 1, 1, 0, 2, 0, 1, 1, 2]);
    }

    #[test]
    fn a_thousand_members_share_4096_shards_and_a_join_moves_a_handful() {
        let (mut before, mut all_moved) = (placed(1_000, 4_096), 0);
        for count in 1_001..=1_003 {
            let after = placed(count, 4_096);
            let max = loads(&after).into_iter().max().expect("there are members");
            assert!(max <= 5, "the mean is 4.1, and a shard cannot be split");
            all_moved += moved(&before, &after);
            before = after;
        }
        assert!(all_moved <= 3 * 12, "three joins moved {all_moved}, and four each would be their share");
    }

    #[test]
    fn without_members_nobody_should_own_anything() {
        assert_eq!(Placement::new(Vec::<String>::new(), 8).owner(ShardId(0)), None);
    }

    #[test]
    fn there_may_be_fewer_shards_than_members() {
        let placement = placed(40, 4);
        assert!(loads(&placement).into_iter().all(|load| load <= 1));
        assert!((0..4).all(|shard| placement.owner(ShardId(shard)).is_some()));
    }
}
