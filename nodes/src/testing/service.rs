//! One service alone on a real Postgres, in process: the context ring.

use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use rookery_actors::{
    ids::{Incarnation, ShardId},
    runtime::{Granted, Runtime, Settings},
    service::Service,
};
use tokio_postgres::{Config, NoTls, error::SqlState};
use uuid::Uuid;

use crate::ownership::{LeaseSettings, Membership, Ownership};

/// A service that owns all shards of its database.
pub struct TestService<S: Service> {
    /// The service.
    pub runtime: Runtime<S>,
    ownership: Ownership,
    root: ActorCell,
}

/// The lease of production.
pub const LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_millis(2500), renew_every: Duration::from_millis(500) };

impl<S: Service> TestService<S> {
    /// Starts a service as node `node` and waits until it serves what it should.
    ///
    /// # Panics
    /// If the database does not answer.
    pub async fn start(service: S, config: Config, node: &str, settings: Settings) -> Self {
        Self::start_with(service, config, node, settings, LEASE).await
    }

    /// The same with another lease.
    ///
    /// # Panics
    /// If the database does not answer.
    pub async fn start_with(service: S, config: Config, node: &str, settings: Settings, lease: LeaseSettings) -> Self {
        Self::join(service, config, Membership::new(node, lease), settings).await
    }

    /// The same with everything that a member may want.
    ///
    /// # Panics
    /// If the database does not answer.
    pub async fn join(service: S, config: Config, membership: Membership, settings: Settings) -> Self {
        let runtime = Runtime::new(service, config, Incarnation(Uuid::new_v4()), settings);
        let (root, _) = Actor::spawn(None, Root, ()).await.expect("an actor can be started");
        runtime.start(root.get_cell());
        let ownership = Ownership::start(runtime.clone(), membership).await.expect("the directory answers");
        Self { runtime, ownership, root: root.get_cell() }
    }

    /// The supervisors of its shards: to see them fall.
    pub fn shard_supervisors(&self) -> Vec<ActorCell> {
        self.root.get_children()
    }

    /// The membership: to watch it, to poke it, to drain it.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Answers what waits, gives everything up and signs off.
    ///
    /// # Panics
    /// If a record of the log has an older epoch than the one before it: it was committed past its fence.
    pub async fn stop(self) {
        self.runtime.stop().await;
        self.ownership.leave().await;
        // A story may have taken the database away.
        let Ok(client) = self.runtime.database().get().await else { return };
        let fallen = "SELECT shard, seq, epoch FROM (
                          SELECT shard, seq, epoch, lag(epoch) OVER (PARTITION BY shard ORDER BY seq) AS before FROM outbox) o
                      WHERE epoch < before";
        if let Ok(rows) = client.query(fallen, &[]).await {
            let fallen: Vec<(i16, i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
            assert!(fallen.is_empty(), "epochs fall at (shard, seq, epoch): {fallen:?}");
        }
    }
}

/// Gives a shard to somebody else behind its owner's back, alive or dead: what no statement of the product does, and what an
/// owner finds that was stopped for long.
///
/// # Panics
/// If the database does not answer.
pub async fn rob(config: &Config, shard: ShardId, to: Incarnation) -> Granted {
    const ROB: &str = "WITH taken AS (
             UPDATE shard SET epoch = epoch + 1, owner = $2, target = NULL WHERE id = $1 RETURNING id, epoch)
         INSERT INTO outbox (shard, seq, epoch, batch, key, type, at)
         SELECT id, COALESCE((SELECT max(seq) FROM outbox WHERE shard = $1), 0) + 1, epoch, gen_random_uuid(),
                '00000000-0000-0000-0000-000000000000', 'epoch', now()
         FROM taken RETURNING seq, epoch";
    let (client, connection) = config.connect(NoTls).await.expect("the database answers");
    tokio::spawn(connection);
    loop {
        match client.query_one(ROB, &[&shard.as_i16(), &to.0]).await {
            Ok(row) => return Granted { shard, seq: row.get(0), epoch: row.get(1), called_back: false },
            // Its owner has committed in between.
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {}
            Err(error) => panic!("the shard cannot be taken: {error}"),
        }
    }
}

/// The top of the tree: hears of everything and survives it.
struct Root;

struct Silence;

impl ractor::Message for Silence {}

impl Actor for Root {
    type Msg = Silence;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Silence>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Silence>,
        _: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
