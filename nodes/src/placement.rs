//! Pure. Which member should own a shard: a hint, for Postgres decides who does.

use rookery_actors::ids::ShardId;
use xxhash_rust::xxh3::xxh3_64;

/// The member that should own a shard, by rendezvous hashing (Thaler & Ravishankar, 1998).
///
/// Adding a member moves about 1/n of the shards, all of them to it. `None`: there are no members.
pub fn owner<'a>(shard: ShardId, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    members.into_iter().max_by_key(|member| (score(shard, member), *member))
}

fn score(shard: ShardId, member: &str) -> u64 {
    let mut key = Vec::with_capacity(member.len() + 2);
    key.extend_from_slice(&shard.0.to_le_bytes());
    key.extend_from_slice(member.as_bytes());
    xxh3_64(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u16 = 4_096;

    fn owners(members: &[&'static str]) -> Vec<&'static str> {
        (0..SHARDS).map(|shard| owner(ShardId(shard), members.iter().copied()).expect("there are members")).collect()
    }

    #[test]
    fn a_new_member_takes_its_share_and_nobody_else_gets_anything() {
        let before = owners(&["n1", "n2", "n3"]);
        let after = owners(&["n1", "n2", "n3", "n4"]);
        let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == "n4"));
        let share = moved.len() as f64 / f64::from(SHARDS);
        assert!((0.2..0.3).contains(&share), "{share}");
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        assert_eq!(owners(&["n1", "n2", "n3"]), owners(&["n3", "n1", "n2"]));
    }

    #[test]
    fn without_members_nobody_should_own_anything() {
        assert_eq!(owner(ShardId(0), []), None);
    }
}
