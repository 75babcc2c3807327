//! Loads entities many at a time: whoever misses while a load is under way rides with the next one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{Notify, Semaphore, oneshot};
use uuid::Uuid;

use super::{Inner, vital};
use crate::{
    entity::Failure,
    episodes,
    service::{LoadError, Service},
};

pub(crate) struct Loader<E> {
    waiting: Mutex<Vec<Waiting<E>>>,
    arrived: Notify,
    slots: Arc<Semaphore>,
}

struct Waiting<E> {
    id: Uuid,
    done: oneshot::Sender<Result<Option<E>, Failure>>,
}

impl<E> Loader<E> {
    pub(crate) fn new(loads_max: usize) -> Self {
        Self { waiting: Mutex::default(), arrived: Notify::new(), slots: Arc::new(Semaphore::new(loads_max)) }
    }

    /// The committed state of an entity, from SQL.
    pub(crate) async fn load(&self, id: Uuid) -> Result<Option<E>, Failure> {
        let (done, loaded) = oneshot::channel();
        self.waiting.lock().expect("no panic under this lock").push(Waiting { id, done });
        self.arrived.notify_one();
        loaded.await.unwrap_or_else(|_| Err(Failure::Unavailable("shutting down".to_owned())))
    }

    /// Waits for a place among the loading statements, for one that loads something else than entities.
    pub(crate) async fn place(&self) -> tokio::sync::OwnedSemaphorePermit {
        Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed")
    }
}

pub(crate) fn start<S: Service>(inner: &Arc<Inner<S>>) {
    let weak = Arc::downgrade(inner);
    vital::spawn(inner, "the loader of entities", async move {
        while let Some(inner) = weak.upgrade() {
            let slot = inner.loader.place().await;
            let batch: Vec<Waiting<S::Entity>> = {
                let mut waiting = inner.loader.waiting.lock().expect("no panic under this lock");
                let count = waiting.len().min(inner.settings.load_batch_max);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                drop(slot);
                inner.loader.arrived.notified().await;
                continue;
            }
            tokio::spawn(async move {
                load(&inner, batch).await;
                drop(slot);
                inner.loader.arrived.notify_one();
            });
        }
    });
}

/// Loads these, in as many statements as it takes to keep one's fault from the others.
async fn load<S: Service>(inner: &Inner<S>, batch: Vec<Waiting<S::Entity>>) {
    let mut groups = vec![batch];
    while let Some(mut batch) = groups.pop() {
        let ids: Vec<Uuid> = batch.iter().map(|waiting| waiting.id).collect();
        let loaded: Result<HashMap<Uuid, S::Entity>, LoadError> = match inner.database.get().await {
            Ok(client) => inner.service.load(&client, &ids).await,
            Err(failure) => {
                refuse(batch, &failure);
                continue;
            }
        };
        match loaded {
            Ok(mut found) => {
                for Waiting { id, done } in batch {
                    let _ = done.send(Ok(found.remove(&id)));
                }
            }
            Err(error) if error.is_own_fault() && batch.len() > 1 => {
                let rest = batch.split_off(batch.len() / 2);
                groups.extend([rest, batch]);
            }
            Err(error) => {
                let failure = Failure::from(error);
                if let Failure::Refused(reason) = &failure {
                    episodes::error("an entity cannot be loaded", S::NAME, format_args!("{ids:?}: {reason}"));
                }
                refuse(batch, &failure);
            }
        }
    }
}

fn refuse<E>(batch: Vec<Waiting<E>>, failure: &Failure) {
    for Waiting { done, .. } in batch {
        let _ = done.send(Err(failure.clone()));
    }
}
