//! Pure. Who is linked to whom: decides when to dial, whom to admit, and what has to end first.
//!
//! Of two nodes the one with the lower name dials, so that two links never cross; a node that the others do not know
//! of dials everybody. A link is only begun when no session of that node lives here: ractor_cluster would refuse the
//! new one about half the time. Time is given as the time since the board was made.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use uuid::Uuid;

use super::greeting::{Instance, Rejection};

/// The first pause after a failure, and the longest one: a restart is noticed soon, and a node that is gone costs little.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A session that was told to end takes microseconds. If one takes this long, it is left to itself.
const PARTING_MAX: Duration = Duration::from_secs(5);

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Connect to a node and greet it.
    Dial { peer: Arc<str>, address: Arc<str>, attempt: u64 },
    /// Give an attempt up.
    Abandon { attempt: u64 },
    /// Make a session of a connection that we dialled.
    Open { token: u64 },
    /// Welcome whoever dialled us, and make a session of it.
    Admit { token: u64 },
    /// Tell whoever dialled us that there will be no link.
    Refuse { token: u64, rejection: Rejection },
    /// Drop a connection that we dialled.
    Discard { token: u64 },
    /// End a link and its session.
    Part { token: u64 },
}

/// All peers.
pub(super) struct Board {
    me: Arc<str>,
    dials_all: bool,
    /// How long a session may take from its beginning until it is ready.
    opening_max: Duration,
    peers: BTreeMap<Arc<str>, Peer>,
    attempts: u64,
    stopping: bool,
}

struct Peer {
    /// Where it is, if it is ours to know; without, it dialled us.
    address: Option<Arc<str>>,
    /// Attempts that failed since the last link.
    failures: u32,
    stage: Stage,
}

enum Stage {
    /// Nothing is under way. When to dial, if it is ours to do so.
    Apart {
        dial_at: Option<Duration>,
    },
    Dialling {
        attempt: u64,
    },
    /// A session is there; until when it has to be ready, if it is not yet.
    Together {
        line: Line,
        ready_by: Option<Duration>,
    },
    /// The session has to end before anything else happens.
    Parting {
        token: u64,
        until: Duration,
        next: Option<Guest>,
    },
}

#[derive(Clone, Copy)]
struct Line {
    token: u64,
    incarnation: Uuid,
    dialled: bool,
}

#[derive(Clone, Copy)]
struct Guest {
    token: u64,
    incarnation: Uuid,
}

impl Board {
    pub(super) fn new(me: Arc<str>, dials_all: bool, opening_max: Duration) -> Self {
        Self { me, dials_all, opening_max, peers: BTreeMap::new(), attempts: 0, stopping: false }
    }

    /// The nodes that there are, with their addresses. A link to one that is no longer among them stays until it ends.
    pub(super) fn set_peers(&mut self, peers: impl IntoIterator<Item = (Arc<str>, Arc<str>)>, now: Duration) -> Vec<Action> {
        let wanted: BTreeMap<_, _> = peers.into_iter().filter(|(name, _)| *name != self.me).collect();
        let mut actions = Vec::new();
        for (name, peer) in &mut self.peers {
            if wanted.contains_key(name) {
                continue;
            }
            peer.address = None;
            match peer.stage {
                Stage::Dialling { attempt } => {
                    actions.push(Action::Abandon { attempt });
                    peer.stage = Stage::Apart { dial_at: None };
                }
                Stage::Apart { .. } => peer.stage = Stage::Apart { dial_at: None },
                Stage::Together { .. } | Stage::Parting { .. } => {}
            }
        }
        for (name, address) in wanted {
            let dials = self.dials(&name);
            let peer = self.peers.entry(name).or_insert_with(Peer::stranger);
            if peer.address.as_ref() == Some(&address) {
                continue;
            }
            peer.address = Some(address);
            // News about where it is: whatever failed before failed elsewhere.
            peer.failures = 0;
            match peer.stage {
                Stage::Apart { .. } => peer.stage = Stage::Apart { dial_at: dials.then_some(now) },
                Stage::Dialling { attempt } => {
                    actions.push(Action::Abandon { attempt });
                    peer.stage = Stage::Apart { dial_at: Some(now) };
                }
                Stage::Together { .. } | Stage::Parting { .. } => {}
            }
        }
        self.forget_strangers();
        actions
    }

    /// Does what has become due. `chance`: from 0 to 1, spreads the pauses.
    pub(super) fn tick(&mut self, now: Duration, chance: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut overdue = Vec::new();
        for (name, peer) in &mut self.peers {
            match (&peer.stage, &peer.address) {
                (Stage::Apart { dial_at: Some(at) }, Some(address)) if *at <= now && !self.stopping => {
                    self.attempts += 1;
                    let (peer_name, address, attempt) = (Arc::clone(name), Arc::clone(address), self.attempts);
                    peer.stage = Stage::Dialling { attempt };
                    actions.push(Action::Dial { peer: peer_name, address, attempt });
                }
                (Stage::Together { line, ready_by: Some(by) }, _) if *by <= now => {
                    peer.failures += 1;
                    actions.push(peer.part(line.token, now, None));
                }
                (Stage::Parting { token, until, .. }, _) if *until <= now => overdue.push(*token),
                _ => {}
            }
        }
        for token in overdue {
            actions.extend(self.ended(token, now, chance));
        }
        actions
    }

    /// When [`Board::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Duration> {
        let moments = self.peers.values().filter_map(|peer| match peer.stage {
            Stage::Apart { dial_at } => dial_at.filter(|_| !self.stopping),
            Stage::Together { ready_by, .. } => ready_by,
            Stage::Parting { until, .. } => Some(until),
            Stage::Dialling { .. } => None,
        });
        moments.min()
    }

    /// An attempt reached its node, or did not.
    pub(super) fn dialled(
        &mut self,
        name: &str,
        attempt: u64,
        reached: Option<(u64, Uuid)>,
        now: Duration,
        chance: f64,
    ) -> Vec<Action> {
        let dials = self.dials(name);
        let peer = self
            .peers
            .get_mut(name)
            .filter(|peer| matches!(peer.stage, Stage::Dialling { attempt: current } if current == attempt));
        match (peer, reached) {
            (Some(peer), Some((token, incarnation))) => {
                let line = Line { token, incarnation, dialled: true };
                peer.stage = Stage::Together { line, ready_by: Some(now + self.opening_max) };
                vec![Action::Open { token }]
            }
            (Some(peer), None) => {
                peer.failures += 1;
                peer.rest(dials, now, chance);
                vec![]
            }
            // Overtaken by events.
            (None, Some((token, _))) => vec![Action::Discard { token }],
            (None, None) => vec![],
        }
    }

    /// Somebody who has proven to be this node wants a link.
    pub(super) fn knocked(&mut self, guest: &Instance, token: u64, now: Duration) -> Vec<Action> {
        let refuse = |rejection| vec![Action::Refuse { token, rejection }];
        if self.stopping {
            return refuse(Rejection::Stopping);
        }
        if guest.name == self.me {
            return refuse(Rejection::Namesake);
        }
        // Ours is the one that both sides keep.
        let rightful = self.me < guest.name;
        let opening_max = self.opening_max;
        let peer = self.peers.entry(Arc::clone(&guest.name)).or_insert_with(Peer::stranger);
        let guest = Guest { token, incarnation: guest.incarnation };
        match &mut peer.stage {
            Stage::Apart { .. } => vec![peer.admit(guest, now + opening_max)],
            Stage::Dialling { .. } if rightful => refuse(Rejection::Simultaneous),
            Stage::Dialling { attempt } => {
                let abandon = Action::Abandon { attempt: *attempt };
                vec![abandon, peer.admit(guest, now + opening_max)]
            }
            // It has not noticed yet that it is linked; if the link is broken, the next heartbeats show it.
            Stage::Together { line, .. } if rightful && line.dialled && line.incarnation == guest.incarnation => {
                refuse(Rejection::Linked)
            }
            // Whoever dials has no link, or is another life of that node: what we hold is stale.
            Stage::Together { line, .. } => {
                let stale = line.token;
                vec![peer.part(stale, now, Some(guest))]
            }
            Stage::Parting { next, .. } => match next.replace(guest) {
                Some(former) => vec![Action::Refuse { token: former.token, rejection: Rejection::Simultaneous }],
                None => vec![],
            },
        }
    }

    /// A session is ready; whether it is one that we know.
    pub(super) fn ready(&mut self, token: u64) -> bool {
        let known = self.peers.values_mut().find(|peer| peer.token() == Some(token));
        match known {
            Some(Peer { failures, stage: Stage::Together { ready_by, .. }, .. }) => {
                *failures = 0;
                *ready_by = None;
                true
            }
            _ => false,
        }
    }

    /// A link is of no use any more: its session shall end.
    pub(super) fn give_up(&mut self, token: u64, now: Duration) -> Vec<Action> {
        let peer = self.peers.values_mut().find(|peer| peer.token() == Some(token));
        match peer {
            Some(peer) if matches!(peer.stage, Stage::Together { .. }) => vec![peer.part(token, now, None)],
            _ => vec![],
        }
    }

    /// A session has ended, for whatever reason.
    pub(super) fn ended(&mut self, token: u64, now: Duration, chance: f64) -> Vec<Action> {
        let opening_max = self.opening_max;
        let Some((name, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.token() == Some(token)) else {
            return vec![];
        };
        let dials = (self.dials_all || self.me < *name) && !self.stopping;
        let next = match &mut peer.stage {
            Stage::Parting { next, .. } => next.take(),
            Stage::Together { ready_by: Some(_), .. } => {
                peer.failures += 1;
                None
            }
            _ => None,
        };
        let action = match next {
            Some(guest) => Some(peer.admit(guest, now + opening_max)),
            None => {
                peer.rest(dials, now, chance);
                None
            }
        };
        self.forget_strangers();
        action.into_iter().collect()
    }

    /// Nothing new begins; what there is ends.
    pub(super) fn stop(&mut self, now: Duration) -> Vec<Action> {
        self.stopping = true;
        let mut actions = Vec::new();
        for peer in self.peers.values_mut() {
            match &mut peer.stage {
                Stage::Apart { dial_at } => *dial_at = None,
                Stage::Dialling { attempt } => {
                    actions.push(Action::Abandon { attempt: *attempt });
                    peer.stage = Stage::Apart { dial_at: None };
                }
                Stage::Together { line, .. } => {
                    let token = line.token;
                    actions.push(peer.part(token, now, None));
                }
                Stage::Parting { next, .. } => {
                    let refuse = |guest: Guest| Action::Refuse { token: guest.token, rejection: Rejection::Stopping };
                    actions.extend(next.take().map(refuse));
                }
            }
        }
        actions
    }

    /// Whether no session is left.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.values().all(|peer| matches!(peer.stage, Stage::Apart { .. }))
    }

    /// How often dialling a node has failed since it was last linked.
    pub(super) fn failures(&self, name: &str) -> u32 {
        self.peers.get(name).map_or(0, |peer| peer.failures)
    }

    /// The nodes that we know of, with the addresses that we know.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&Arc<str>, Option<&Arc<str>>)> {
        self.peers.iter().map(|(name, peer)| (name, peer.address.as_ref()))
    }

    fn dials(&self, peer: &str) -> bool {
        self.dials_all || *self.me < *peer
    }

    /// Who dialled us and is in nobody's list is remembered as long as the link.
    fn forget_strangers(&mut self) {
        self.peers.retain(|_, peer| peer.address.is_some() || !matches!(peer.stage, Stage::Apart { .. }));
    }
}

impl Peer {
    fn stranger() -> Self {
        Self { address: None, failures: 0, stage: Stage::Apart { dial_at: None } }
    }

    fn token(&self) -> Option<u64> {
        match &self.stage {
            Stage::Together { line, .. } => Some(line.token),
            Stage::Parting { token, .. } => Some(*token),
            Stage::Apart { .. } | Stage::Dialling { .. } => None,
        }
    }

    fn admit(&mut self, Guest { token, incarnation }: Guest, ready_by: Duration) -> Action {
        self.stage = Stage::Together { line: Line { token, incarnation, dialled: false }, ready_by: Some(ready_by) };
        Action::Admit { token }
    }

    fn part(&mut self, token: u64, now: Duration, next: Option<Guest>) -> Action {
        self.stage = Stage::Parting { token, until: now + PARTING_MAX, next };
        Action::Part { token }
    }

    fn rest(&mut self, dials: bool, now: Duration, chance: f64) {
        let dial_at = (dials && self.address.is_some()).then(|| now + pause(self.failures, chance));
        self.stage = Stage::Apart { dial_at };
    }
}

/// Doubles with every failure; half of it is chance, so that a hundred nodes do not dial a restarted one in step.
fn pause(failures: u32, chance: f64) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    full.mul_f64(0.5 + 0.5 * chance)
}

#[cfg(test)]
mod tests;
