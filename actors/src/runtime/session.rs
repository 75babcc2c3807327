//! A connection on which a lane of the committer sends its batches.

use std::collections::{HashMap, hash_map::Entry};

use tokio_postgres::Statement;

use super::{
    ConnectError, Connection, Inner,
    commit_batch::{Batch, Shape, statement},
    directory::SessionTag,
};
use crate::service::Service;

/// Shapes for which a session keeps a statement: far more than a service at work has; the others go by the whole.
const SHAPES_MAX: usize = 64;

/// A lane's session with its statements.
pub(crate) struct Session {
    pub(super) client: Connection,
    statements: HashMap<Shape, Statement>,
    pub(crate) tag: SessionTag,
}

impl Session {
    pub(crate) async fn open<S: Service>(inner: &Inner<S>) -> Result<Self, ConnectError> {
        let incarnation = inner.incarnation();
        let client = inner.database.session(&format!("{}:{incarnation}", S::NAME)).await?;
        // A lock that a stopped client holds fails us instead of holding us (rule 4). One statement is one
        // transaction, so there is nothing idle in between (PITFALLS: a batch is one statement).
        let limits = "SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '1s'";
        // A plan is made once for each shape, and lasts: not for the arrays at hand, which would take longer to plan for than they
        // take, and by the keys, also of a table that is still small enough to be read whole.
        let plans = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";
        client.batch_execute(&format!("{limits}; {plans}")).await?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Self { client, statements: HashMap::new(), tag: SessionTag { incarnation, pid } })
    }

    /// Sends a batch by the statement of its shape.
    pub(super) async fn execute<S: Service>(&mut self, batch: &Batch<S>) -> Result<u64, tokio_postgres::Error> {
        let mut shape = batch.shape();
        if self.statements.len() >= SHAPES_MAX && !self.statements.contains_key(&shape) {
            shape = Shape::WHOLE;
        }
        let statement = match self.statements.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.client.prepare(&statement::<S>(shape)).await?),
        };
        batch.execute(&self.client, statement, shape).await
    }
}
