//! Tasks without which a service cannot go on: if one panics, the service gives up on this node, and does not go on
//! without it in silence.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::{Inner, Runtime};
use crate::service::Service;

/// Spawns a task of a service; if it panics, whoever runs the service hears of it ([`Runtime::failed`]).
pub(crate) fn spawn<S: Service>(
    inner: &Arc<Inner<S>>,
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let failed = inner.failed.clone();
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            tracing::error!(service.name = S::NAME, "{what} failed, the service gives up on this node");
            failed.send_replace(true);
        }
    })
}

impl<S: Service> Runtime<S> {
    /// Spawns a task without which the service cannot go on here: if it panics, the service gives up ([`Runtime::failed`]).
    pub fn spawn_vital(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        spawn(&self.inner, what, task)
    }
}
