//! Pure. Who holds a replica of which index partition, and whom to ask for which.

use std::{cmp::Reverse, collections::BTreeMap};

use xxhash_rust::xxh3::xxh3_64;

use crate::{ids::ShardId, runtime::NodeName};

/// Replicas of a partition: one may go, and while another is built there is still one that serves.
pub(crate) const REPLICAS: usize = 2;

/// The nodes that should hold a replica of each partition, by rendezvous hashing (Thaler & Ravishankar, 1998) with bounded
/// loads: partitions are so few that by hashing alone one node would often have all of them and another none. The first of
/// them makes the segments of both, so that is shared out as well.
pub(crate) fn placement(partitions: u16, nodes: &[NodeName]) -> Vec<Vec<NodeName>> {
    let load_max = (usize::from(partitions) * REPLICAS).div_ceil(nodes.len().max(1));
    let mut loads: BTreeMap<&NodeName, usize> = BTreeMap::new();
    let mut firsts: BTreeMap<&NodeName, usize> = BTreeMap::new();
    let holders = (0..partitions).map(|partition| {
        let mut ranked: Vec<&NodeName> = nodes.iter().collect();
        ranked.sort_by_key(|node| {
            let full = loads.get(node).is_some_and(|load| *load >= load_max);
            (full, Reverse(score(partition, node)), *node)
        });
        ranked.truncate(REPLICAS);
        for node in &ranked {
            *loads.entry(node).or_default() += 1;
        }
        // Stable: of equals the one that hashing prefers.
        ranked.sort_by_key(|node| firsts.get(node).copied().unwrap_or(0));
        if let Some(first) = ranked.first() {
            *firsts.entry(first).or_default() += 1;
        }
        ranked.into_iter().cloned().collect()
    });
    holders.collect()
}

fn score(partition: u16, node: &NodeName) -> u64 {
    let mut key = partition.to_le_bytes().to_vec();
    // Apart from the hashing of shards, or the owner of a partition would be the first of its holders by accident.
    key.extend_from_slice(b"index/");
    key.extend_from_slice(node.as_bytes());
    xxh3_64(&key)
}

/// The partitions that a node has, and whether they have caught up since they were opened.
pub(crate) type Holdings = Vec<(ShardId, bool)>;

/// Who is asked for what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Partitions that are searched here.
    pub(crate) here: Vec<ShardId>,
    /// Partitions that others are asked for, in one question each.
    pub(crate) there: BTreeMap<NodeName, Vec<ShardId>>,
    /// Partitions that nobody has.
    pub(crate) nowhere: Vec<ShardId>,
}

/// Whom to ask for these partitions: ourselves if we can, else as few others as possible. What has not caught up is asked
/// only where nobody has more. `turn` decides among equals, so that they share the work.
pub(crate) fn plan(partitions: &[ShardId], here: &Holdings, others: &BTreeMap<NodeName, Holdings>, turn: usize) -> Plan {
    let mut plan = Plan::default();
    let mut left = partitions.to_vec();
    for caught_up in [true, false] {
        let has = |holdings: &Holdings, partition: &ShardId| holdings.contains(&(*partition, caught_up));
        let (ours, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|partition| has(here, partition));
        plan.here.extend(ours);
        left = rest;
        while !left.is_empty() {
            let count = others.len().max(1);
            let in_turn = others.iter().cycle().skip(turn % count).take(others.len());
            let parts = in_turn.map(|(node, holdings)| {
                (node, left.iter().copied().filter(|partition| has(holdings, partition)).collect::<Vec<_>>())
            });
            // The last of equals: of `in_turn`, any may come last.
            let Some((node, part)) = parts.filter(|(_, part)| !part.is_empty()).max_by_key(|(_, part)| part.len()) else {
                break;
            };
            left.retain(|partition| !part.contains(partition));
            plan.there.entry(node.clone()).or_default().extend(part);
        }
    }
    plan.nowhere = left;
    plan
}

/// Which other node makes the segments of a partition, so that they are copied here; none: we make them. The first of those
/// who hold it in the order of placement, who has caught up if anybody has. All see the same as soon as they have heard of
/// each other; until then two make segments of their own, which harms nobody.
pub(crate) fn maker(
    partition: ShardId,
    placed: &[NodeName],
    (me, caught_up): (&NodeName, bool),
    others: &BTreeMap<NodeName, Holdings>,
) -> Option<NodeName> {
    let held = |holdings: &Holdings| holdings.iter().find(|(held, _)| *held == partition).map(|(_, caught_up)| *caught_up);
    let holders = others.iter().filter_map(|(node, holdings)| Some((node, held(holdings)?))).chain([(me, caught_up)]);
    let rank = |node: &NodeName| placed.iter().position(|holder| holder == node).unwrap_or(usize::MAX);
    let first = holders.min_by_key(|(node, caught_up)| (!caught_up, rank(node), *node)).map(|(node, _)| node);
    first.filter(|first| *first != me).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<NodeName> {
        (1..=count).map(|n| format!("n{n}").into()).collect()
    }

    fn holdings(partitions: &[u16]) -> Holdings {
        partitions.iter().map(|partition| (ShardId(*partition), true)).collect()
    }

    #[test]
    fn the_making_of_segments_is_shared_out() {
        for (nodes, most) in [(1, 4), (2, 2), (3, 2), (4, 1), (8, 1)] {
            let placed = placement(4, &names(nodes));
            let first_of = |node: &NodeName| placed.iter().filter(|holders| holders[0] == *node).count();
            assert_eq!(names(nodes).iter().map(first_of).max(), Some(most), "{nodes} nodes: {placed:?}");
        }
    }

    fn ids(partitions: &[u16]) -> Vec<ShardId> {
        partitions.iter().copied().map(ShardId).collect()
    }

    #[test]
    fn two_nodes_hold_everything() {
        assert!(placement(16, &names(2)).iter().all(|holders| holders.len() == 2));
        assert!(placement(16, &names(1)).iter().all(|holders| holders.len() == 1));
    }

    #[test]
    fn every_node_holds_its_share_and_no_more() {
        for (partitions, count) in [(4, 3), (4, 4), (4, 8), (16, 5)] {
            let nodes = names(count);
            let placement = placement(partitions, &nodes);
            let share = (usize::from(partitions) * REPLICAS).div_ceil(count);
            for node in &nodes {
                let load = placement.iter().filter(|holders| holders.contains(node)).count();
                assert!(load <= share + 1, "{node} of {count} has {load} of {partitions}");
            }
            assert!(placement.iter().all(|holders| holders.len() == REPLICAS && holders[0] != holders[1]));
        }
    }

    #[test]
    fn a_node_that_joins_takes_little_more_than_its_share() {
        let (before, after) = (placement(64, &names(4)), placement(64, &names(5)));
        let moved =
            |(before, after): (&Vec<NodeName>, &Vec<NodeName>)| after.iter().filter(|node| !before.contains(node)).count();
        let moved: usize = before.iter().zip(&after).map(moved).sum();
        // 128 replicas, a fifth of which is the new node's.
        assert!(moved <= 45, "{moved}");
    }

    #[test]
    fn who_has_everything_asks_nobody() {
        let others = BTreeMap::from([("n2".into(), holdings(&[0, 1]))]);
        let plan = plan(&ids(&[0, 1]), &holdings(&[0, 1]), &others, 0);
        assert_eq!(plan, Plan { here: ids(&[0, 1]), ..Plan::default() });
    }

    #[test]
    fn as_few_nodes_as_possible_are_asked_and_each_once() {
        let others = BTreeMap::from([
            ("n2".into(), holdings(&[0, 1])),
            ("n3".into(), holdings(&[1, 2, 3])),
            ("n4".into(), holdings(&[0, 3])),
        ]);
        let plan = plan(&ids(&[0, 1, 2, 3]), &holdings(&[]), &others, 0);
        assert_eq!(plan.there.get("n3"), Some(&ids(&[1, 2, 3])));
        assert_eq!((plan.there.len(), plan.here.len(), plan.nowhere.len()), (2, 0, 0));
    }

    #[test]
    fn equals_take_turns() {
        let others = BTreeMap::from([("n2".into(), holdings(&[0])), ("n3".into(), holdings(&[0]))]);
        let asked = |turn| plan(&ids(&[0]), &holdings(&[]), &others, turn).there.into_keys().next().unwrap();
        assert_ne!(asked(0), asked(1));
    }

    #[test]
    fn what_has_not_caught_up_is_asked_only_where_nobody_has_more() {
        let others = BTreeMap::from([("n2".into(), holdings(&[0]))]);
        let here = vec![(ShardId(0), false), (ShardId(1), false)];
        let plan = plan(&ids(&[0, 1, 2]), &here, &others, 0);
        assert_eq!(plan.there.get("n2"), Some(&ids(&[0])));
        assert_eq!((plan.here, plan.nowhere), (ids(&[1]), ids(&[2])));
    }

    #[test]
    fn of_two_replicas_one_makes_the_segments_and_the_other_copies_them() {
        let placed = names(2);
        let both = |other: &NodeName| BTreeMap::from([(other.clone(), holdings(&[0]))]);
        assert_eq!(maker(ShardId(0), &placed, (&placed[0], true), &both(&placed[1])), None);
        assert_eq!(maker(ShardId(0), &placed, (&placed[1], true), &both(&placed[0])), Some(placed[0].clone()));
    }

    #[test]
    fn a_replica_whose_other_is_gone_makes_its_own_segments() {
        let placed = names(2);
        assert_eq!(maker(ShardId(0), &placed, (&placed[1], true), &BTreeMap::new()), None);
        let elsewhere = BTreeMap::from([(placed[0].clone(), holdings(&[1]))]);
        assert_eq!(maker(ShardId(0), &placed, (&placed[1], true), &elsewhere), None);
    }

    #[test]
    fn who_has_just_begun_copies_from_who_has_caught_up() {
        let placed = names(2);
        let other = BTreeMap::from([(placed[1].clone(), holdings(&[0]))]);
        assert_eq!(maker(ShardId(0), &placed, (&placed[0], false), &other), Some(placed[1].clone()));
        let other = BTreeMap::from([(placed[0].clone(), vec![(ShardId(0), false)])]);
        assert_eq!(maker(ShardId(0), &placed, (&placed[1], true), &other), None);
    }
}
