//! A service of the tests alone: its entity counts, and falls over when it is told to. Its state is its log.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rookery_actors::{
    entity::{Entity, Failure},
    ids::ShardId,
    posts::service::Writes,
    runtime::{Connection, NewRecord, Pooled, Runtime, Unit},
    service::{Foreign, LoadError, Poison, Service},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) struct Tally(pub(crate) i64);

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Counts one.
    Add,
    /// Falls over while deciding.
    Trip,
    /// Counts one, and falls over once that is committed.
    AddAndTrip,
}

#[derive(Clone)]
pub(crate) enum Event {
    Added,
    AddedAndTripped,
}

impl Entity for Tally {
    type Command = Command;
    type Event = Event;
    type Rejection = ();
    type Facts = ();

    fn decide(_: Option<&Self>, command: &Command, (): &()) -> Result<Vec<Event>, ()> {
        Ok(match command {
            Command::Add => vec![Event::Added],
            Command::Trip => panic!("it was told to"),
            Command::AddAndTrip => vec![Event::AddedAndTripped],
        })
    }

    fn evolve(state: &mut Option<Self>, event: &Event) {
        let tally = state.get_or_insert(Tally(0));
        match event {
            Event::Added => tally.0 += 1,
            Event::AddedAndTripped => panic!("it was told to, after the commit"),
        }
    }
}

#[derive(Default)]
pub(crate) struct TallyService {
    /// Sequence numbers of foreign records in the order in which they were committed here, as the notes told.
    pub(crate) applied: Arc<Mutex<Vec<i64>>>,
    /// Kinds of records that are poison by now, and how often one was tried.
    pub(crate) tried: Arc<Mutex<HashMap<i64, usize>>>,
    pub(crate) cured: Arc<Mutex<HashSet<i64>>>,
    /// So many of the next notes fall over when they are told: in the middle of the committer's work, after the commit.
    pub(crate) falls: Arc<AtomicUsize>,
}

impl Service for TallyService {
    const NAME: &'static str = "posts";
    type Entity = Tally;
    type Writes = Writes;
    type Reply = i64;
    type Note = i64;
    type Need = ();
    type Query = Uuid;
    type Answer = Option<i64>;

    async fn load(&self, client: &Connection, ids: &[Uuid]) -> Result<HashMap<Uuid, Tally>, LoadError> {
        let rows = client.query("SELECT key, count(*) FROM outbox WHERE key = ANY($1) GROUP BY key", &[&ids]).await?;
        Ok(rows.iter().map(|row| (row.get(0), Tally(row.get(1)))).collect())
    }

    fn need(&self, _: Uuid, _: Option<&Tally>, _: &Command) -> Option<()> {
        None
    }

    async fn look_up(&self, _: Pooled, _: Uuid, (): ()) -> Result<(), LoadError> {
        Ok(())
    }

    fn creates(_: &Command) -> bool {
        false
    }

    fn write(&self, _: ShardId, id: Uuid, _: Option<&Tally>, events: &[Event], unit: &mut Unit<Self>) {
        for _ in events {
            unit.records.push(NewRecord { key: id, kind: "tally.added", payload: "{}".into(), traceparent: None });
        }
    }

    fn reply(_: Uuid, state: Option<&Tally>, events: &[Event]) -> i64 {
        state.map_or(0, |tally| tally.0) + events.len() as i64
    }

    fn refused(_: &str) -> Option<()> {
        None
    }

    fn weight(_: Option<&Tally>) -> usize {
        8
    }

    fn noted(&self, seq: i64) {
        let falls = self.falls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |falls| falls.checked_sub(1));
        assert!(falls.is_err(), "it was told to, after the commit and before memory follows");
        self.applied.lock().unwrap().push(seq);
    }

    fn concerns(&self, foreign: &Foreign<'_>) -> Result<Vec<Uuid>, Poison> {
        Ok(vec![foreign.record.key])
    }

    async fn answer(runtime: &Runtime<Self>, id: &Uuid, deadline: Instant) -> Result<Option<i64>, Failure> {
        runtime.read(*id, deadline, |tally| tally.map(|tally| tally.0)).await
    }

    fn is_lendable(answer: &Option<i64>) -> bool {
        answer.is_some()
    }

    fn project(&self, foreign: &Foreign<'_>, id: Uuid, unit: &mut Unit<Self>) -> Result<(), Poison> {
        let seq = foreign.record.seq;
        *self.tried.lock().unwrap().entry(seq).or_default() += 1;
        match &*foreign.record.kind {
            "poison" if !self.cured.lock().unwrap().contains(&seq) => Err(Poison("it is poison".to_owned())),
            kind => {
                let event = if kind == "trip" { Event::AddedAndTripped } else { Event::Added };
                // What a rule lets pass and Postgres does not.
                let payload = if kind == "nul" { "\0" } else { "{}" };
                unit.effects.push((id, event));
                unit.notes.push(seq);
                unit.records.push(NewRecord { key: id, kind: "tally.added", payload: payload.into(), traceparent: None });
                Ok(())
            }
        }
    }
}
