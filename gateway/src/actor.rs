//! The gateway as a supervised actor.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::chain::Edge;
use crate::server::{self, Ending, Limits, Socket};

/// How often what no longer counts is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Serves HTTP as long as it lives; fails, and so is restarted by its supervisor, when the server does.
///
/// `stop()` ends it after the requests in flight; [`Socket::close`] before that refuses whoever else connects.
pub struct Gateway;

/// What a gateway starts with, each time it is started.
///
/// The socket belongs to whoever starts the gateway and outlives it: while it restarts, connections wait in the kernel.
#[derive(Clone)]
pub struct Arguments {
    /// The bound socket.
    pub socket: Socket,
    /// The routes; see [`crate::build()`].
    pub router: Router,
    /// The edge around them.
    pub edge: Arc<Edge>,
    /// Histograms of which are condensed from time to time.
    pub metrics: PrometheusHandle,
}

/// What a gateway is told.
pub enum Message {
    /// Its server ended although nobody asked it to.
    ServerEnded(io::Result<()>),
}

impl ractor::Message for Message {}

/// A running server.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    sweeper: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a failure nobody stops them in order.
        self.server.abort();
        self.sweeper.abort();
    }
}

impl Actor for Gateway {
    type Msg = Message;
    type State = Running;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, arguments: Arguments) -> Result<Running, ActorProcessingErr> {
        let Arguments { socket, router, edge, metrics } = arguments;
        let listener = socket.listener()?;
        let limits = Limits::from(&edge.config);
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
                if socket.is_closed() { Ending::Closed } else { Ending::HandedOn }
            };
            let ended = server::serve(listener, router, limits, stopped).await;
            // A gateway that is stopping takes no more messages.
            let _ = myself.cast(Message::ServerEnded(ended));
        });
        let sweeper = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP_EVERY);
            loop {
                ticks.tick().await;
                edge.sweep();
                metrics.run_upkeep();
            }
        });
        Ok(Running { stop: Some(stop), server, sweeper })
    }

    async fn handle(&self, _: ActorRef<Message>, message: Message, _: &mut Running) -> Result<(), ActorProcessingErr> {
        match message {
            Message::ServerEnded(Ok(())) => Err("the server ended by itself".into()),
            Message::ServerEnded(Err(error)) => Err(error.into()),
        }
    }

    async fn post_stop(&self, _: ActorRef<Message>, running: &mut Running) -> Result<(), ActorProcessingErr> {
        if let Some(stop) = running.stop.take() {
            let _ = stop.send(());
        }
        (&mut running.server).await?;
        Ok(())
    }
}
