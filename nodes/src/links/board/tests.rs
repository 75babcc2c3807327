use super::*;

const NOW: Duration = Duration::from_secs(100);
const OPENING: Duration = Duration::from_secs(5);

/// A board of `n2` with what it said to do so far.
struct Play {
    board: Board,
    now: Duration,
}

fn n2() -> Play {
    named("n2", false)
}

fn named(me: &str, dials_all: bool) -> Play {
    Play { board: Board::new(me.into(), dials_all, OPENING), now: NOW }
}

impl Play {
    /// The nodes of the list, each at an address of its own, and what is done at once.
    fn with(mut self, peers: &[&str]) -> Self {
        self.peers(peers);
        self
    }

    fn peers(&mut self, peers: &[&str]) -> Vec<Action> {
        let list = peers.iter().map(|name| (Arc::from(*name), Arc::from(format!("{name}:7400"))));
        self.board.set_peers(list, self.now)
    }

    fn tick(&mut self) -> Vec<Action> {
        self.board.tick(self.now, 1.0)
    }

    /// Lets time pass until something is due, and does it.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.board.due().expect("something is due");
        self.tick()
    }

    fn dialled(&mut self, name: &str, attempt: u64, token: u64) -> Vec<Action> {
        self.board.dialled(name, attempt, Some((token, Uuid::from_u128(1))), self.now, 1.0)
    }

    fn failed(&mut self, name: &str, attempt: u64) -> Vec<Action> {
        self.board.dialled(name, attempt, None, self.now, 1.0)
    }

    fn knocked(&mut self, name: &str, token: u64) -> Vec<Action> {
        self.knocked_again(name, token, 1)
    }

    fn knocked_again(&mut self, name: &str, token: u64, life: u128) -> Vec<Action> {
        let guest = Instance { name: name.into(), incarnation: Uuid::from_u128(life) };
        self.board.knocked(&guest, token, self.now)
    }

    fn ended(&mut self, token: u64) -> Vec<Action> {
        self.board.ended(token, self.now, 1.0)
    }
}

fn dial(peer: &str, attempt: u64) -> Action {
    Action::Dial { peer: peer.into(), address: format!("{peer}:7400").into(), attempt }
}

fn refuse(token: u64, rejection: Rejection) -> Action {
    Action::Refuse { token, rejection }
}

#[test]
fn the_lower_name_dials() {
    assert_eq!(n2().with(&["n1", "n2", "n3"]).tick(), [dial("n3", 1)]);
}

#[test]
fn a_node_that_nobody_knows_of_dials_everybody() {
    assert_eq!(named("z", true).with(&["n1", "n3"]).tick(), [dial("n1", 1), dial("n3", 2)]);
}

#[test]
fn a_dialled_node_becomes_a_session() {
    let mut play = n2().with(&["n3"]);
    play.tick();
    assert_eq!(play.dialled("n3", 1, 7), [Action::Open { token: 7 }]);
    assert!(play.board.ready(7));
    assert_eq!(play.board.due(), None);
}

#[test]
fn pauses_grow_with_every_failure_and_end_with_a_link() {
    let mut play = n2().with(&["n3"]);
    let mut pauses = Vec::new();
    for attempt in 1..=8 {
        assert_eq!(play.wait(), [dial("n3", attempt)]);
        play.failed("n3", attempt);
        pauses.push((play.board.due().unwrap() - play.now).as_millis());
    }
    assert_eq!(pauses, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
    play.wait();
    play.dialled("n3", 9, 7);
    play.board.ready(7);
    play.ended(7);
    assert_eq!(play.board.due().unwrap() - play.now, PAUSE_MIN);
}

#[test]
fn chance_takes_up_to_half_of_a_pause_away() {
    assert_eq!(pause(1, 0.0) * 2, pause(1, 1.0));
}

#[test]
fn a_new_address_is_dialled_at_once() {
    let mut play = n2().with(&["n3"]);
    play.tick();
    play.failed("n3", 1);
    assert_eq!(play.tick(), []);
    play.board.set_peers([("n3".into(), "elsewhere:7400".into())], play.now);
    assert_eq!(play.tick(), [Action::Dial { peer: "n3".into(), address: "elsewhere:7400".into(), attempt: 2 }]);
}

#[test]
fn the_same_list_again_changes_nothing() {
    let mut play = n2().with(&["n3"]);
    play.tick();
    play.failed("n3", 1);
    let due = play.board.due();
    assert_eq!(play.peers(&["n3"]), []);
    assert_eq!(play.board.due(), due);
}

#[test]
fn who_leaves_the_list_is_not_dialled_any_more() {
    let mut play = n2().with(&["n3"]);
    play.tick();
    assert_eq!(play.peers(&[]), [Action::Abandon { attempt: 1 }]);
    assert_eq!(play.board.due(), None);
    assert_eq!(play.dialled("n3", 1, 7), [Action::Discard { token: 7 }]);
}

#[test]
fn a_link_outlives_the_list_and_is_then_forgotten() {
    let mut play = n2().with(&["n3"]);
    play.tick();
    play.dialled("n3", 1, 7);
    play.board.ready(7);
    assert_eq!(play.peers(&[]), []);
    assert_eq!(play.ended(7), []);
    assert_eq!(play.board.peers().count(), 0);
}

#[test]
fn whoever_dials_us_is_admitted_listed_or_not() {
    let mut play = n2().with(&["n1"]);
    assert_eq!(play.knocked("n1", 7), [Action::Admit { token: 7 }]);
    assert_eq!(play.knocked("gateway", 8), [Action::Admit { token: 8 }]);
}

#[test]
fn a_namesake_is_refused() {
    assert_eq!(n2().knocked("n2", 7), [refuse(7, Rejection::Namesake)]);
}

#[test]
fn a_stale_session_ends_before_its_successor_begins() {
    let mut play = n2();
    play.knocked("n1", 7);
    play.board.ready(7);
    assert_eq!(play.knocked("n1", 8), [Action::Part { token: 7 }]);
    assert_eq!(play.ended(7), [Action::Admit { token: 8 }]);
}

#[test]
fn of_two_that_wait_for_a_stale_session_the_later_one_is_admitted() {
    let mut play = n2();
    play.knocked("n1", 7);
    play.knocked("n1", 8);
    assert_eq!(play.knocked("n1", 9), [refuse(8, Rejection::Simultaneous)]);
    assert_eq!(play.ended(7), [Action::Admit { token: 9 }]);
}

#[test]
fn when_both_dial_the_lower_name_keeps_its_attempt() {
    let mut lower = named("n1", true).with(&["n2"]);
    lower.tick();
    assert_eq!(lower.knocked("n2", 7), [refuse(7, Rejection::Simultaneous)]);
    let mut higher = named("n2", true).with(&["n1"]);
    higher.tick();
    assert_eq!(higher.knocked("n1", 7), [Action::Abandon { attempt: 1 }, Action::Admit { token: 7 }]);
}

#[test]
fn a_late_knock_does_not_end_the_link_that_won() {
    let mut play = named("n1", true).with(&["n2"]);
    play.tick();
    play.dialled("n2", 1, 7);
    assert_eq!(play.knocked("n2", 8), [refuse(8, Rejection::Linked)]);
}

#[test]
fn another_life_of_a_node_replaces_the_link_that_we_dialled() {
    let mut play = named("n1", false).with(&["n2"]);
    play.tick();
    play.dialled("n2", 1, 7);
    play.board.ready(7);
    assert_eq!(play.knocked_again("n2", 8, 2), [Action::Part { token: 7 }]);
}

#[test]
fn a_session_that_is_not_ready_in_time_ends() {
    let mut play = n2();
    play.knocked("n1", 7);
    assert_eq!(play.board.due(), Some(NOW + OPENING));
    assert_eq!(play.wait(), [Action::Part { token: 7 }]);
    assert!(!play.board.ready(7));
}

#[test]
fn a_faulty_link_ends_and_is_dialled_anew_by_whoever_has_to() {
    let mut play = n2().with(&["n1", "n3"]);
    play.tick();
    play.dialled("n3", 1, 7);
    play.board.ready(7);
    play.knocked("n1", 8);
    play.board.ready(8);
    for token in [7, 8] {
        assert_eq!(play.board.give_up(token, play.now), [Action::Part { token }]);
        assert_eq!(play.board.give_up(token, play.now), []);
        assert_eq!(play.ended(token), []);
    }
    assert_eq!(play.wait(), [dial("n3", 2)]);
    assert_eq!(play.board.due(), None);
}

#[test]
fn a_session_that_does_not_end_is_left_to_itself() {
    let mut play = n2().with(&["n3"]);
    play.tick();
    play.dialled("n3", 1, 7);
    play.board.give_up(7, play.now);
    assert_eq!(play.wait(), []);
    assert_eq!(play.wait(), [dial("n3", 2)]);
}

#[test]
fn a_board_that_stops_ends_everything_and_begins_nothing() {
    let mut play = n2().with(&["n3", "n4"]);
    play.tick();
    play.dialled("n3", 1, 7);
    assert_eq!(play.board.stop(play.now), [Action::Part { token: 7 }, Action::Abandon { attempt: 2 }]);
    assert_eq!(play.knocked("n1", 9), [refuse(9, Rejection::Stopping)]);
    play.ended(7);
    assert!(play.board.is_empty());
    assert_eq!(play.board.due(), None);
}
