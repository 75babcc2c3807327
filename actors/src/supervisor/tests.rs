use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::*;

/// Does as it is told.
struct Fragile {
    stops: Arc<Mutex<Vec<&'static str>>>,
    name: &'static str,
}

enum Tell {
    Panic,
    Fail,
    StopCleanly,
}

impl Message for Tell {}

impl Actor for Fragile {
    type Msg = Tell;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Tell>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, myself: ActorRef<Tell>, tell: Tell, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match tell {
            Tell::Panic => panic!("told to panic"),
            Tell::Fail => Err("told to fail".into()),
            Tell::StopCleanly => {
                myself.stop(None);
                Ok(())
            }
        }
    }

    async fn post_stop(&self, _: ActorRef<Tell>, (): &mut ()) -> Result<(), ActorProcessingErr> {
        self.stops.lock().unwrap().push(self.name);
        Ok(())
    }
}

/// Makes specs of fragile children and sees what becomes of them.
#[derive(Clone, Default)]
struct Nursery {
    starts: Arc<AtomicUsize>,
    stops: Arc<Mutex<Vec<&'static str>>>,
}

impl Nursery {
    fn child(&self, name: &'static str) -> ChildSpec {
        let nursery = self.clone();
        ChildSpec::new(name, move |supervisor| {
            let nursery = nursery.clone();
            async move {
                nursery.starts.fetch_add(1, Ordering::SeqCst);
                let stops = nursery.stops.clone();
                let (child, _) = Actor::spawn_linked(None, Fragile { stops, name }, (), supervisor).await?;
                Ok(child.get_cell())
            }
        })
        .policy(QUICK)
    }

    /// Starts once, and never again.
    fn stillborn_after_one(&self, name: &'static str) -> ChildSpec {
        let nursery = self.clone();
        let spec = self.child(name);
        ChildSpec::new(name, move |supervisor| {
            let first = nursery.starts.load(Ordering::SeqCst) == 0;
            let started = (spec.start)(supervisor);
            async move { if first { started.await } else { Err(SpawnErr::StartupFailed("the disk is gone".into())) } }
        })
        .policy(QUICK)
    }

    fn starts(&self) -> usize {
        self.starts.load(Ordering::SeqCst)
    }
}

/// Long enough a window that no slow machine lets a test's failures fall out of it.
const QUICK: RestartPolicy = RestartPolicy {
    intensity: 3,
    window: Duration::from_secs(600),
    backoff_min: Duration::from_millis(1),
    backoff_max: Duration::from_millis(5),
};

const LONG: Duration = Duration::from_secs(600);

async fn supervise(children: Vec<ChildSpec>) -> SupervisorRef {
    SupervisorRef::spawn("test", children).await.expect("the children start").0
}

async fn eventually<T>(supervisor: &SupervisorRef, child: &str, wanted: impl Fn(&ChildStatus) -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Ok(status) = supervisor.child(child).await
                && let Some(found) = wanted(&status)
            {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.expect("the condition comes true")
}

async fn running(supervisor: &SupervisorRef, child: &str, restarts: u64) -> ActorCell {
    eventually(supervisor, child, |status| match &status.state {
        ChildState::Running(cell) if status.restarts == restarts => Some(cell.clone()),
        _ => None,
    })
    .await
}

async fn isolated(supervisor: &SupervisorRef, child: &str) {
    eventually(supervisor, child, |status| matches!(status.state, ChildState::Isolated).then_some(())).await;
}

fn tell(cell: &ActorCell, what: Tell) {
    cell.send_message(what).expect("the child takes messages");
}

/// Fails every incarnation of the child that its restart intensity allows.
async fn storm(supervisor: &SupervisorRef, child: &str) {
    for restarts in 0..=u64::from(QUICK.intensity) {
        tell(&running(supervisor, child, restarts).await, Tell::Panic);
    }
}

#[tokio::test]
async fn a_child_that_panics_comes_back() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada")]).await;
    tell(&running(&supervisor, "ada", 0).await, Tell::Panic);
    running(&supervisor, "ada", 1).await;
    assert_eq!(nursery.starts(), 2);
}

#[tokio::test]
async fn a_child_that_returns_an_error_comes_back() {
    let supervisor = supervise(vec![Nursery::default().child("ada")]).await;
    tell(&running(&supervisor, "ada", 0).await, Tell::Fail);
    running(&supervisor, "ada", 1).await;
}

#[tokio::test]
async fn a_child_that_is_killed_comes_back() {
    let supervisor = supervise(vec![Nursery::default().child("ada")]).await;
    running(&supervisor, "ada", 0).await.kill();
    running(&supervisor, "ada", 1).await;
}

#[tokio::test]
async fn a_restart_waits_for_its_back_off() {
    let patient = RestartPolicy { backoff_min: LONG, backoff_max: LONG, ..QUICK };
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada").policy(patient)]).await;
    tell(&running(&supervisor, "ada", 0).await, Tell::Panic);
    eventually(&supervisor, "ada", |status| matches!(status.state, ChildState::Restarting).then_some(())).await;
    assert_eq!(nursery.starts(), 1);
}

#[tokio::test]
async fn siblings_of_a_failed_child_do_not_notice() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada"), nursery.child("bob")]).await;
    let bob = running(&supervisor, "bob", 0).await.get_id();
    tell(&running(&supervisor, "ada", 0).await, Tell::Panic);
    running(&supervisor, "ada", 1).await;
    assert_eq!(running(&supervisor, "bob", 0).await.get_id(), bob);
}

#[tokio::test]
async fn a_clean_stop_is_not_a_failure() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada"), nursery.child("bob")]).await;
    let ada = running(&supervisor, "ada", 0).await;
    tell(&ada, Tell::StopCleanly);
    ada.wait(None).await.expect("no timeout is set");
    // The event travels ahead of this question, on a port of higher priority.
    assert!(matches!(supervisor.child("ada").await, Err(SupervisorError::Unknown { .. })));
    assert_eq!(nursery.starts(), 2);
}

#[tokio::test]
async fn a_permanent_child_comes_back_after_a_clean_stop() {
    let supervisor = supervise(vec![Nursery::default().child("ada").permanent()]).await;
    tell(&running(&supervisor, "ada", 0).await, Tell::StopCleanly);
    running(&supervisor, "ada", 1).await;
}

#[tokio::test]
async fn a_panic_storm_isolates_the_child_alone() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada").isolated_for(LONG), nursery.child("bob")]).await;
    storm(&supervisor, "ada").await;
    isolated(&supervisor, "ada").await;
    running(&supervisor, "bob", 0).await;
}

#[tokio::test]
async fn an_isolated_child_returns_when_it_is_revived() {
    let supervisor = supervise(vec![Nursery::default().child("ada").isolated_for(LONG)]).await;
    storm(&supervisor, "ada").await;
    isolated(&supervisor, "ada").await;
    supervisor.revive("ada").await.expect("ada is known");
    running(&supervisor, "ada", 3).await;
}

#[tokio::test]
async fn an_isolated_child_returns_after_its_cool_down() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada").isolated_for(Duration::from_millis(5))]).await;
    storm(&supervisor, "ada").await;
    eventually(&supervisor, "ada", |_| (nursery.starts() == 5).then_some(())).await;
}

#[tokio::test]
async fn a_child_that_cannot_start_again_exhausts_its_intensity() {
    let supervisor = supervise(vec![Nursery::default().stillborn_after_one("ada").isolated_for(LONG)]).await;
    tell(&running(&supervisor, "ada", 0).await, Tell::Panic);
    isolated(&supervisor, "ada").await;
}

#[tokio::test]
async fn exhausted_intensity_reaches_the_parent() {
    let nursery = Nursery::default();
    let root = supervise(vec![ChildSpec::supervisor("service", vec![nursery.child("ada")]).policy(QUICK)]).await;
    let service = running(&root, "service", 0).await;
    let service = SupervisorRef(service.into());
    storm(&service, "ada").await;
    running(&root, "service", 1).await;
    assert_eq!(nursery.starts(), 5, "the new supervisor starts its children anew");
}

#[tokio::test]
async fn a_child_can_be_added_while_running() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![]).await;
    supervisor.start_child(nursery.child("ada")).await.expect("ada starts");
    tell(&running(&supervisor, "ada", 0).await, Tell::Panic);
    running(&supervisor, "ada", 1).await;
}

#[tokio::test]
async fn two_children_cannot_share_a_name() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada")]).await;
    let refused = supervisor.start_child(nursery.child("ada")).await;
    assert!(matches!(refused, Err(SupervisorError::NameTaken { .. })));
}

#[tokio::test]
async fn a_stopped_child_stays_away() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada").permanent()]).await;
    let ada = running(&supervisor, "ada", 0).await;
    supervisor.stop_child("ada").await.expect("ada is known");
    ada.wait(None).await.expect("no timeout is set");
    assert!(supervisor.children().await.expect("the supervisor runs").is_empty());
}

#[tokio::test]
async fn children_stop_in_the_reverse_order_of_their_start() {
    let nursery = Nursery::default();
    let supervisor = supervise(vec![nursery.child("ada"), nursery.child("bob"), nursery.child("eve")]).await;
    supervisor.stop().await;
    assert_eq!(*nursery.stops.lock().unwrap(), ["eve", "bob", "ada"]);
}

#[tokio::test]
async fn a_child_that_does_not_start_stops_those_before_it() {
    let nursery = Nursery::default();
    let doomed = ChildSpec::new("eve", |_| async { Err(SpawnErr::StartupFailed("no".into())) });
    let refused = SupervisorRef::spawn("test", vec![nursery.child("ada"), doomed]).await;
    assert!(refused.is_err());
}
