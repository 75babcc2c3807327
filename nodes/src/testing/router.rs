//! Several nodes in one process: runtimes that reach each other without links, and tests that cut them off.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use rookery_actors::{
    ids::ShardId,
    runtime::{NodeName, Router, Runtime, SendError},
    service::Service,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// What a runtime shows to the others.
trait Served: Send + Sync {
    fn serves(&self, shard: ShardId) -> bool;
    fn serve(&self, question: Bytes) -> BoxFuture<'static, Bytes>;
}

impl<S: Service> Served for Runtime<S> {
    fn serves(&self, shard: ShardId) -> bool {
        self.head(shard).is_some()
    }

    fn serve(&self, question: Bytes) -> BoxFuture<'static, Bytes> {
        let runtime = self.clone();
        async move { Runtime::serve(&runtime, &question).await }.boxed()
    }
}

/// The nodes of a test, by name and service.
#[derive(Clone, Default)]
pub struct TestNetwork {
    shared: Arc<Shared>,
}

/// By node and service.
type ServedByName = HashMap<(NodeName, &'static str), Arc<dyn Served>>;

#[derive(Default)]
struct Shared {
    served: Mutex<ServedByName>,
    faults: Mutex<Faults>,
    sent: Mutex<HashMap<NodeName, usize>>,
    unserved: Mutex<HashSet<&'static str>>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Faults {
    away: HashSet<NodeName>,
    losing: HashSet<NodeName>,
    late: HashSet<NodeName>,
    /// Answers that are late, by who gave them.
    held: HashMap<NodeName, usize>,
}

impl TestNetwork {
    /// Connects a runtime under the name of its node.
    pub fn join<S: Service>(&self, node: &str, runtime: &Runtime<S>) {
        let name: NodeName = node.into();
        self.shared.served.lock().expect("no panic under this lock").insert((name, S::NAME), Arc::new(runtime.clone()));
        runtime.connect(Arc::new(TestRouter { shared: Arc::clone(&self.shared), me: node.into() }));
        self.changed();
    }

    /// Cuts a node off, or lets it back in: what is sent to it does not arrive.
    pub fn cut_off(&self, node: &str, on: bool) {
        self.fault(|faults| set(&mut faults.away, node, on));
    }

    /// Loses what a node answers, or no longer: it has heard the question.
    pub fn lose_answers(&self, node: &str, on: bool) {
        self.fault(|faults| set(&mut faults.losing, node, on));
    }

    /// Keeps what a node answers on its way, or lets all of it arrive.
    pub fn delay_answers(&self, node: &str, on: bool) {
        self.fault(|faults| set(&mut faults.late, node, on));
    }

    /// How many answers of a node are on their way for that reason.
    pub fn delayed(&self, node: &str) -> usize {
        self.shared.faults.lock().expect("no panic under this lock").held.get(node).copied().unwrap_or(0)
    }

    /// Says that no member of a service has lived for two leases, or that one does again.
    pub fn set_unserved(&self, service: &'static str, on: bool) {
        let mut unserved = self.shared.unserved.lock().expect("no panic under this lock");
        if on {
            unserved.insert(service);
        } else {
            unserved.remove(service);
        }
        drop(unserved);
        self.changed();
    }

    /// Tells everybody to look for owners anew.
    pub fn changed(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// How many questions were put to a node so far.
    pub fn sent_to(&self, node: &str) -> usize {
        self.shared.sent.lock().expect("no panic under this lock").get(node).copied().unwrap_or(0)
    }

    fn fault(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults.lock().expect("no panic under this lock"));
        self.changed();
    }
}

fn set(nodes: &mut HashSet<NodeName>, node: &str, on: bool) {
    if on {
        nodes.insert(node.into());
    } else {
        nodes.remove(node);
    }
}

struct TestRouter {
    shared: Arc<Shared>,
    me: NodeName,
}

impl TestRouter {
    fn others(&self, service: &'static str) -> Vec<(NodeName, Arc<dyn Served>)> {
        let served = self.shared.served.lock().expect("no panic under this lock");
        let mut others: Vec<_> = served
            .iter()
            .filter(|((node, name), _)| *name == service && *node != self.me)
            .map(|((node, _), served)| (Arc::clone(node), Arc::clone(served)))
            .collect();
        others.sort_by(|a, b| a.0.cmp(&b.0));
        others
    }

    /// Waits while answers of this node are delayed.
    async fn delay(&self, node: &NodeName) {
        if !self.has(|faults| &faults.late, node) {
            return;
        }
        let _held = Held::begin(&self.shared, node);
        let mut changes = self.shared.changes.subscribe();
        let _ = changes.wait_for(|_| !self.has(|faults| &faults.late, node)).await;
    }

    fn has(&self, nodes: impl Fn(&Faults) -> &HashSet<NodeName>, node: &NodeName) -> bool {
        nodes(&self.shared.faults.lock().expect("no panic under this lock")).contains(node)
    }
}

/// An answer that is late, until it arrives or nobody waits for it any more.
struct Held<'a>(&'a Shared, &'a NodeName);

impl<'a> Held<'a> {
    fn begin(shared: &'a Shared, node: &'a NodeName) -> Self {
        *shared.faults.lock().expect("no panic under this lock").held.entry(Arc::clone(node)).or_default() += 1;
        Self(shared, node)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.faults.lock().expect("no panic under this lock").held.entry(Arc::clone(self.1)).or_default() -= 1;
    }
}

impl Router for TestRouter {
    fn me(&self) -> NodeName {
        Arc::clone(&self.me)
    }

    fn owner(&self, service: &'static str, shard: ShardId) -> Option<NodeName> {
        self.others(service).into_iter().find(|(_, served)| served.serves(shard)).map(|(node, _)| node)
    }

    fn peers(&self, service: &'static str) -> Vec<NodeName> {
        self.others(service).into_iter().map(|(node, _)| node).collect()
    }

    fn is_unserved(&self, service: &'static str) -> bool {
        self.shared.unserved.lock().expect("no panic under this lock").contains(service)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn send(
        &self,
        node: NodeName,
        service: &'static str,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Bytes, SendError>> {
        async move {
            *self.shared.sent.lock().expect("no panic under this lock").entry(Arc::clone(&node)).or_default() += 1;
            let cut = |reason: &str| reason.to_owned();
            if self.has(|faults| &faults.away, &node) || self.has(|faults| &faults.away, &self.me) {
                return Err(SendError::Undelivered(cut("the node is cut off")));
            }
            let served = self.others(service).into_iter().find(|(name, _)| *name == node).map(|(_, served)| served);
            let served = served.ok_or_else(|| SendError::Undelivered(cut("there is no such node")))?;
            // As over a link: what was begun goes on, whoever waits for it.
            let answer = tokio::spawn(served.serve(question));
            let answer = timeout_at(deadline + Duration::from_secs(1), answer).await;
            self.delay(&node).await;
            if self.has(|faults| &faults.losing, &node) || self.has(|faults| &faults.away, &node) {
                return Err(SendError::Lost(cut("the answer was lost on its way")));
            }
            answer.ok().and_then(Result::ok).ok_or_else(|| SendError::Lost(cut("there was no answer in time")))
        }
        .boxed()
    }
}
