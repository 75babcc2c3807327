//! Pure. What a member makes of the others' renewals: who has fallen silent, and who has been there long enough.
//!
//! Times are those of the observer's own clock, since a moment of its choice.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use rookery_actors::{
    ids::Incarnation,
    runtime::{MemberRow, MemberState},
};

use super::LeaseSettings;

/// Renewals that are to be seen of a member before it is given shards: one that dies at its start moves nothing.
const SETTLED_AFTER: u32 = 2;
/// Renewals that may be late, or lost, before a member counts as asleep.
const AWAKE_FOR: u32 = 3;
/// Every death of a node within this time doubles them: a flapping node is given shards less and less often.
const DEATHS_COUNT_FOR: Duration = Duration::from_secs(60);
/// After so many leases without any sign of life, nobody serves the service: a restart or a takeover takes less.
const UNSERVED_AFTER: u32 = 2;
/// As often at most; after that a node that stays must wait for about half a minute.
const DOUBLINGS_MAX: usize = 5;

/// How the members' renewals look from here.
#[derive(Debug)]
pub(super) struct Sightings {
    lease: LeaseSettings,
    seen: HashMap<Incarnation, Sighting>,
    deaths: HashMap<String, Vec<Duration>>,
    /// For how long we have looked and seen neither a renewal nor a new member.
    quiet: Duration,
    last_look: Option<Duration>,
}

#[derive(Debug)]
struct Sighting {
    node: String,
    /// How long it serves after a renewal, by its own word.
    lease: Option<Duration>,
    state: MemberState,
    renewed: i64,
    renewals: u32,
    /// For how long we have looked and seen no renewal; only time in which our own polls worked counts.
    silent: Duration,
    last_look: Duration,
}

impl Sightings {
    pub(super) fn new(lease: LeaseSettings) -> Self {
        Self { lease, seen: HashMap::new(), deaths: HashMap::new(), quiet: Duration::ZERO, last_look: None }
    }

    /// Takes in everybody who is not dead, as a poll that worked found them.
    pub(super) fn look(&mut self, members: &[MemberRow], now: Duration) {
        // A poll that came late tells nothing about the time before it.
        let gap_max = self.lease.renew_every * 2;
        let mut sign_of_life = false;
        for member in members {
            let sighting = self.seen.entry(member.incarnation).or_insert_with(|| {
                sign_of_life = true;
                Sighting {
                    node: member.node.clone(),
                    lease: member.lease,
                    state: member.state,
                    renewed: member.renewed,
                    renewals: 0,
                    silent: Duration::ZERO,
                    last_look: now,
                }
            });
            if sighting.renewed == member.renewed {
                sighting.silent += now.saturating_sub(sighting.last_look).min(gap_max);
            } else {
                sign_of_life = true;
                sighting.renewals = sighting.renewals.saturating_add(1);
                (sighting.renewed, sighting.silent) = (member.renewed, Duration::ZERO);
            }
            (sighting.state, sighting.last_look) = (member.state, now);
        }
        let gap = now.saturating_sub(self.last_look.unwrap_or(now)).min(gap_max);
        self.quiet = if sign_of_life { Duration::ZERO } else { self.quiet + gap };
        self.last_look = Some(now);
        let there: HashSet<Incarnation> = members.iter().map(|member| member.incarnation).collect();
        for (_, gone) in self.seen.extract_if(|incarnation, _| !there.contains(incarnation)) {
            // Who drained has left in order.
            if gone.state == MemberState::Live {
                self.deaths.entry(gone.node).or_default().push(now);
            }
        }
        self.deaths.retain(|_, deaths| {
            deaths.retain(|death| now.saturating_sub(*death) < DEATHS_COUNT_FOR);
            !deaths.is_empty()
        });
    }

    /// A poll failed: nobody's silence was seen since the last one that worked.
    pub(super) fn blink(&mut self, now: Duration) {
        for sighting in self.seen.values_mut() {
            (sighting.silent, sighting.last_look) = (Duration::ZERO, now);
        }
        // What was seen before stays true: a member that lives shows itself in the next look that works.
        self.last_look = Some(now);
    }

    /// Whether no member has shown a sign of life for so long that none will take up what is asked for meanwhile.
    pub(super) fn is_unserved(&self) -> bool {
        self.quiet >= self.lease.ttl * UNSERVED_AFTER
    }

    /// Whether nothing was heard of a member for longer than its lease can last by any clock.
    ///
    /// Its lease and not ours: while the length is changed node by node, the two differ.
    pub(super) fn is_silent(&self, member: Incarnation) -> bool {
        self.seen.get(&member).is_some_and(|sighting| {
            let lease = sighting.lease.unwrap_or(self.lease.ttl);
            sighting.silent >= lease.mul_f64(1.1)
        })
    }

    /// The members that may be given shards, one per node: alive, not draining, and settled. If nobody is settled yet,
    /// those that are not: at the beginning somebody must begin. And `me`, for nobody gives away what it has because it
    /// does not know itself well enough.
    pub(super) fn eligible<'a>(&self, members: &'a [MemberRow], me: Option<Incarnation>) -> Vec<&'a MemberRow> {
        let live = || members.iter().filter(|member| member.state == MemberState::Live);
        let anybody = !live().any(|member| self.is_settled(member));
        let may = |member: &&MemberRow| anybody || Some(member.incarnation) == me || self.is_settled(member);
        let candidates: Vec<&MemberRow> = live().filter(may).collect();
        let mut of_node: HashMap<&str, &MemberRow> = HashMap::new();
        for member in candidates {
            // A node that came back before its former self was found dead is there twice; the one that renews is it.
            let quieter = |there: &&MemberRow| self.silence(there) >= self.silence(member);
            if of_node.get(member.node.as_str()).is_none_or(quieter) {
                of_node.insert(&member.node, member);
            }
        }
        let mut eligible: Vec<&MemberRow> = of_node.into_values().collect();
        eligible.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        eligible
    }

    /// Whether a member has renewed lately. One that has not may be asleep: what it has it keeps until it is found dead,
    /// but it is given nothing.
    pub(super) fn is_awake(&self, member: Incarnation) -> bool {
        self.seen.get(&member).is_some_and(|sighting| sighting.silent < self.lease.renew_every * AWAKE_FOR)
    }

    /// Whether we have looked for long enough to know who is settled: before, the others look like newcomers, one earlier
    /// than the other, and what they should have would change with every look.
    pub(super) fn is_acquainted(&self, me: Incarnation) -> bool {
        self.seen.get(&me).is_some_and(|sighting| sighting.renewals >= 2 * SETTLED_AFTER)
    }

    fn is_settled(&self, member: &MemberRow) -> bool {
        let deaths = self.deaths.get(&member.node).map_or(0, Vec::len);
        let wanted = SETTLED_AFTER << deaths.min(DOUBLINGS_MAX);
        self.seen.get(&member.incarnation).is_some_and(|sighting| sighting.renewals >= wanted)
    }

    fn silence(&self, member: &MemberRow) -> Duration {
        self.seen.get(&member.incarnation).map_or(Duration::MAX, |sighting| sighting.silent)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_millis(2_500), renew_every: Duration::from_millis(500) };

    /// A table of members, and a clock.
    struct Table {
        sightings: Sightings,
        members: Vec<MemberRow>,
        now: Duration,
        next: u128,
    }

    impl Table {
        fn new() -> Self {
            Self { sightings: Sightings::new(LEASE), members: Vec::new(), now: Duration::ZERO, next: 1 }
        }

        fn join(&mut self, node: &str) -> Incarnation {
            self.join_with(node, None)
        }

        fn join_with(&mut self, node: &str, lease: Option<Duration>) -> Incarnation {
            let incarnation = Incarnation(Uuid::from_u128(self.next));
            self.next += 1;
            let node = node.to_owned();
            self.members.push(MemberRow { incarnation, node, address: None, renewed: 0, state: MemberState::Live, lease });
            incarnation
        }

        fn state(&mut self, incarnation: Incarnation, state: MemberState) {
            match state {
                MemberState::Dead => self.members.retain(|member| member.incarnation != incarnation),
                state => self.members.iter_mut().filter(|m| m.incarnation == incarnation).for_each(|m| m.state = state),
            }
        }

        /// Polls, after everybody but these has renewed.
        fn tick(&mut self, silent: &[Incarnation]) {
            self.now += LEASE.renew_every;
            for member in self.members.iter_mut().filter(|member| !silent.contains(&member.incarnation)) {
                member.renewed += 1;
            }
            self.sightings.look(&self.members, self.now);
        }

        fn ticks(&mut self, count: usize, silent: &[Incarnation]) {
            for _ in 0..count {
                self.tick(silent);
            }
        }

        fn eligible(&self) -> Vec<String> {
            self.sightings.eligible(&self.members, None).into_iter().map(|member| member.node.clone()).collect()
        }
    }

    #[test]
    fn who_does_not_renew_for_longer_than_its_lease_is_silent() {
        let mut table = Table::new();
        let (one, two) = (table.join("n1"), table.join("n2"));
        table.tick(&[]);
        table.ticks(5, &[two]);
        assert!(!table.sightings.is_silent(two), "2.5 s are a lease, and its margin is a tenth");
        table.tick(&[two]);
        assert!(table.sightings.is_silent(two) && !table.sightings.is_silent(one));
    }

    /// What was broken: the observer's own lease counted, and a member with a longer one served on after it was buried.
    #[test]
    fn a_member_is_silent_by_its_own_lease_and_not_by_the_observers() {
        let mut table = Table::new();
        let (longer, shorter) = (table.join_with("n1", Some(LEASE.ttl * 2)), table.join_with("n2", Some(LEASE.ttl / 5)));
        table.tick(&[]);
        table.ticks(2, &[longer, shorter]);
        assert!(table.sightings.is_silent(shorter));
        table.ticks(8, &[longer, shorter]);
        assert!(!table.sightings.is_silent(longer), "5 s are its lease, and its margin is a tenth");
        table.tick(&[longer, shorter]);
        assert!(table.sightings.is_silent(longer));
    }

    #[test]
    fn a_service_whose_members_have_all_been_silent_for_two_leases_is_unserved() {
        let mut table = Table::new();
        let one = table.join("n1");
        table.ticks(4, &[]);
        table.ticks(9, &[one]);
        assert!(!table.sightings.is_unserved(), "a restart within two leases is a pause");
        table.tick(&[one]);
        assert!(table.sightings.is_unserved(), "its row is still there, for nobody is left to declare it dead");
        table.join("n1");
        table.tick(&[one]);
        assert!(!table.sightings.is_unserved(), "whoever joins is about to serve");
    }

    #[test]
    fn a_service_without_members_is_unserved_after_two_leases_and_an_outage_of_postgres_makes_none_so() {
        let mut table = Table::new();
        table.ticks(10, &[]);
        assert!(!table.sightings.is_unserved(), "the first look tells nothing about the time before");
        table.tick(&[]);
        assert!(table.sightings.is_unserved());
        table.sightings.blink(table.now);
        assert!(table.sightings.is_unserved(), "a poll that failed brings nobody back");

        let mut table = Table::new();
        let one = table.join("n1");
        table.tick(&[]);
        for _ in 0..100 {
            table.now += LEASE.renew_every;
            table.sightings.blink(table.now);
        }
        table.tick(&[one]);
        assert!(!table.sightings.is_unserved(), "while nobody can renew, nobody is seen not to");
    }

    #[test]
    fn time_in_which_we_did_not_look_is_nobodys_silence() {
        let mut table = Table::new();
        let one = table.join("n1");
        table.tick(&[]);
        table.now += Duration::from_secs(100);
        table.tick(&[one]);
        assert!(!table.sightings.is_silent(one));
        table.ticks(4, &[one]);
        table.sightings.blink(table.now);
        table.tick(&[one]);
        assert!(!table.sightings.is_silent(one), "a poll has failed in between");
    }

    #[test]
    fn who_sleeps_is_given_nothing_more_and_loses_nothing_yet() {
        let mut table = Table::new();
        table.join("n1");
        let two = table.join("n2");
        table.ticks(4, &[]);
        table.ticks(2, &[two]);
        assert!(table.sightings.is_awake(two));
        table.tick(&[two]);
        assert!(!table.sightings.is_awake(two) && !table.sightings.is_silent(two));
        assert_eq!(table.eligible(), ["n1", "n2"]);
    }

    #[test]
    fn whoever_has_just_come_does_not_know_the_others() {
        let mut table = Table::new();
        let one = table.join("n1");
        table.ticks(4, &[]);
        assert!(!table.sightings.is_acquainted(one));
        table.tick(&[]);
        assert!(table.sightings.is_acquainted(one));
    }

    #[test]
    fn a_new_member_is_given_shards_once_it_has_renewed_twice() {
        let mut table = Table::new();
        table.join("n1");
        table.ticks(4, &[]);
        table.join("n2");
        table.ticks(2, &[]);
        assert_eq!(table.eligible(), ["n1"]);
        table.tick(&[]);
        assert_eq!(table.eligible(), ["n1", "n2"]);
    }

    #[test]
    fn at_the_beginning_nobody_needs_to_be_settled() {
        let mut table = Table::new();
        table.join("n1");
        assert_eq!(table.eligible(), ["n1"]);
    }

    #[test]
    fn nobody_gives_away_what_it_has_because_it_is_new_itself() {
        let mut table = Table::new();
        table.join("n1");
        table.ticks(4, &[]);
        let two = table.join("n2");
        table.tick(&[]);
        let eligible = table.sightings.eligible(&table.members, Some(two));
        assert_eq!(eligible.len(), 2);
    }

    #[test]
    fn who_drains_is_given_nothing() {
        let mut table = Table::new();
        let one = table.join("n1");
        table.join("n2");
        table.ticks(4, &[]);
        table.state(one, MemberState::Draining);
        table.tick(&[]);
        assert_eq!(table.eligible(), ["n2"]);
    }

    #[test]
    fn a_node_that_keeps_dying_must_stay_longer_each_time() {
        let mut table = Table::new();
        table.join("n1");
        table.ticks(4, &[]);
        let mut waits = Vec::new();
        for _ in 0..3 {
            let flapping = table.join("n2");
            let mut wait = 0;
            while table.eligible().len() < 2 {
                table.tick(&[]);
                wait += 1;
            }
            waits.push(wait);
            table.state(flapping, MemberState::Dead);
            table.tick(&[]);
        }
        // The first look shows that it is there, the next ones that it renews.
        assert_eq!(waits, [3, 5, 9]);
    }

    #[test]
    fn a_node_that_left_in_order_is_welcome_at_once() {
        let mut table = Table::new();
        table.join("n1");
        for _ in 0..3 {
            let two = table.join("n2");
            table.ticks(3, &[]);
            assert_eq!(table.eligible(), ["n1", "n2"]);
            table.state(two, MemberState::Draining);
            table.tick(&[]);
            table.state(two, MemberState::Dead);
            table.tick(&[]);
        }
    }

    #[test]
    fn a_node_that_is_there_twice_is_the_one_that_renews() {
        let mut table = Table::new();
        let former = table.join("n1");
        table.ticks(4, &[]);
        let now = table.join("n1");
        table.ticks(4, &[former]);
        let eligible = table.sightings.eligible(&table.members, None);
        assert_eq!(eligible.iter().map(|member| member.incarnation).collect::<Vec<_>>(), [now]);
    }
}
