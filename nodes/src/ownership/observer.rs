//! The membership of a node that is no member: it looks, never joins, and never owns.

use std::{sync::Arc, time::Duration};

use rookery_actors::{
    ids::Incarnation,
    runtime::{Database, Directory, DirectoryError},
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use uuid::Uuid;

use super::{
    LeaseSettings,
    looking::Looking,
    view::{Board, Contact},
};

/// Watches the directory of a service in whose shards this node has no part; ends when dropped.
pub struct Observer {
    task: JoinHandle<()>,
    board: Arc<Board>,
}

impl Observer {
    /// Begins to watch. The view is empty until the directory has answered.
    pub fn start(database: Database, service: &'static str, lease: LeaseSettings) -> Self {
        let board = Board::new();
        let task = tokio::spawn(watch(database, service, lease, Arc::clone(&board)));
        Self { task, board }
    }

    /// What it sees, and how to make it look now.
    pub fn contact(&self) -> Contact {
        self.board.contact()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(database: Database, service: &'static str, lease: LeaseSettings, board: Arc<Board>) {
    let mut looking = Looking::new(lease, Arc::clone(&board), None);
    let mut directory = None;
    let mut tick = tokio::time::interval(lease.renew_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = board.poked() => {}
        }
        let patience = lease.ttl * 4;
        let looked = tokio::time::timeout(patience, look(&database, service, &mut directory, &mut looking)).await;
        if let Err(error) = looked.unwrap_or(Err(DirectoryError::Timeout(patience))) {
            tracing::debug!(service.name = service, %error, "the directory cannot be watched");
            looking.blink();
            directory = None;
            // A poke must not make a loop of it.
            tokio::time::sleep(lease.renew_every.min(Duration::from_millis(200))).await;
        }
    }
}

async fn look(
    database: &Database,
    service: &'static str,
    directory: &mut Option<Directory>,
    looking: &mut Looking,
) -> Result<(), DirectoryError> {
    let open = match directory.take() {
        Some(open) => open,
        // Named like nobody who ever joined: whoever ends the sessions of the dead leaves it alone.
        None => Directory::open(database, service, Incarnation(Uuid::new_v4())).await?,
    };
    let (members, shards) = looking.ask(&open).await?;
    *directory = Some(open);
    looking.publish(members, shards);
    Ok(())
}
