//! Histories made from a real order are accepted, and broken ones are not.

use proptest::{collection::vec, prelude::*, sample::Index, strategy::ValueTree, test_runner::TestRunner};

use super::*;
use crate::chaos::models::Seen;

const POST: Uuid = Uuid::from_u128(7);

/// What a client means to do to a post.
#[derive(Clone, Debug)]
enum Wish {
    Edit { right_version: bool },
    EditWhatever,
    Delete,
    Like { user: usize, on: bool },
    Read { user: usize },
}

/// How long before its effect it is called, how long after it returns, and whether it returns.
#[derive(Clone, Debug)]
struct Timing {
    before: u64,
    after: u64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Returns,
    OpenAndDone,
    OpenAndLost,
}

fn wish(deletes: u32) -> impl Strategy<Value = Wish> {
    let user = || 0..4_usize;
    prop_oneof![
        3 => any::<bool>().prop_map(|right_version| Wish::Edit { right_version }),
        1 => Just(Wish::EditWhatever),
        deletes => Just(Wish::Delete),
        4 => (user(), any::<bool>()).prop_map(|(user, on)| Wish::Like { user, on }),
        4 => user().prop_map(|user| Wish::Read { user }),
    ]
}

fn timing(open: u32) -> impl Strategy<Value = Timing> {
    let fate = prop_oneof![20 => Just(Fate::Returns), open => Just(Fate::OpenAndDone), open => Just(Fate::OpenAndLost)];
    (0..60_u64, 0..60_u64, fate).prop_map(|(before, after, fate)| Timing { before, after, fate })
}

fn wishes(deletes: u32, open: u32) -> impl Strategy<Value = Vec<(Wish, Timing)>> {
    vec((wish(deletes), timing(open)), 1..80)
}

/// The post as it really is.
#[derive(Clone)]
struct Truth {
    seen: Seen,
    likes: BTreeSet<usize>,
    gone: bool,
}

/// Carries wishes out one after the other, ten ticks apart; what clients see of it, spread by the timings.
fn carried_out(wishes: &[(Wish, Timing)]) -> (History, Truth) {
    let mut truth = Truth { seen: Seen { version: 1, text: "t0".into(), likes: 0 }, likes: BTreeSet::new(), gone: false };
    let mut history = published();
    for (n, (wish, timing)) in wishes.iter().enumerate() {
        let (effect, before) = (200 + 10 * n as u64, truth.clone());
        let mut ops = carry_out(&mut truth, wish, format!("t{}", n + 1).into());
        if timing.fate != Fate::Returns {
            ops = ops.iter().filter_map(opened).collect();
        }
        if timing.fate == Fate::OpenAndLost {
            truth = before;
        }
        let returned = (timing.fate == Fate::Returns).then_some(effect + timing.after);
        for op in ops {
            history.post(POST, Call { client: n % 16, op, invoked: effect - timing.before, returned });
        }
    }
    (history, truth)
}

fn carry_out(truth: &mut Truth, wish: &Wish, text: Arc<str>) -> Vec<PostOp> {
    let gone = truth.gone;
    vec![match wish {
        Wish::Read { .. } if gone => PostOp::Read(None),
        Wish::Read { user } => {
            return vec![
                PostOp::Read(Some(truth.seen.clone())),
                PostOp::Liked { user: *user, liked: truth.likes.contains(user) },
            ];
        }
        Wish::Edit { .. } | Wish::EditWhatever if gone => PostOp::Edit { if_version: Some(1), text, end: End::Gone },
        Wish::Edit { right_version: false } => PostOp::Edit { if_version: Some(truth.seen.version + 7), text, end: End::Changed },
        Wish::Edit { .. } | Wish::EditWhatever => {
            let if_version = matches!(wish, Wish::Edit { .. }).then_some(truth.seen.version);
            truth.seen = Seen { version: truth.seen.version + 1, text: text.clone(), likes: truth.seen.likes };
            PostOp::Edit { if_version, text, end: End::Done(truth.seen.clone()) }
        }
        Wish::Delete => {
            truth.gone = true;
            PostOp::Delete { if_version: None, end: if gone { End::Gone } else { End::Done(()) } }
        }
        Wish::Like { user, on } if gone => PostOp::Like { user: *user, on: *on, end: End::Gone },
        Wish::Like { user, on } => {
            if *on {
                truth.likes.insert(*user)
            } else {
                truth.likes.remove(user)
            };
            truth.seen.likes = truth.likes.len() as i64;
            PostOp::Like { user: *user, on: *on, end: End::Done(()) }
        }
    }]
}

/// The same with nobody knowing how it ended; a read that nobody heard of is none.
fn opened(op: &PostOp) -> Option<PostOp> {
    Some(match op.clone() {
        PostOp::Publish { text, .. } => PostOp::Publish { text, end: End::Open },
        PostOp::Edit { if_version, text, .. } => PostOp::Edit { if_version, text, end: End::Open },
        PostOp::Delete { if_version, .. } => PostOp::Delete { if_version, end: End::Open },
        PostOp::Like { user, on, .. } => PostOp::Like { user, on, end: End::Open },
        PostOp::Read(_) | PostOp::Liked { .. } => return None,
    })
}

fn call<Op>(op: Op, invoked: u64, returned: u64) -> Call<Op> {
    Call { client: 0, op, invoked, returned: Some(returned) }
}

fn published() -> History {
    let mut history = History::default();
    history.post(POST, call(PostOp::Publish { text: "t0".into(), end: End::Done(()) }, 0, 1));
    history
}

/// After everything that has returned.
fn afterwards(history: &mut History, op: PostOp) {
    let calls = history.of_post(POST).iter();
    let end = calls.map(|call| call.returned.unwrap_or(call.invoked)).max().unwrap_or(0);
    history.post(POST, call(op, end + 1, end + 2));
}

/// What was seen of the post in answers that have returned.
fn seen(history: &History) -> Vec<(u64, Seen)> {
    history.of_post(POST).iter().filter_map(|call| call.returned.zip(call.op.seen().cloned())).collect()
}

fn violated(history: &History) -> bool {
    history.check().iter().any(|violation| violation.proved)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_really_happened_is_accepted(wishes in wishes(1, 2)) {
        prop_assert_eq!(carried_out(&wishes).0.check(), []);
    }

    #[test]
    fn a_stale_read_is_rejected(wishes in wishes(0, 2), pick in any::<Index>()) {
        let (mut history, truth) = carried_out(&wishes);
        let mut older = seen(&history);
        older.retain(|(_, seen)| seen.version < truth.seen.version);
        prop_assume!(!older.is_empty() && older.iter().any(|(_, seen)| seen.version > 1));
        afterwards(&mut history, PostOp::Read(Some(truth.seen)));
        afterwards(&mut history, PostOp::Read(Some(pick.get(&older).1.clone())));
        prop_assert!(violated(&history));
    }

    #[test]
    fn no_reader_sees_less_than_one_before(wishes in wishes(0, 2), pick in any::<Index>()) {
        let (mut history, _) = carried_out(&wishes);
        let mut edited = seen(&history);
        edited.retain(|(_, seen)| seen.version > 1);
        prop_assume!(!edited.is_empty());
        let (returned, _) = pick.get(&edited);
        let first = PostOp::Read(Some(Seen { version: 1, text: "t0".into(), likes: 0 }));
        history.post(POST, call(first, returned + 1, returned + 2));
        prop_assert!(violated(&history));
    }

    #[test]
    fn a_lost_update_is_rejected(wishes in wishes(0, 2), pick in any::<Index>()) {
        let (mut history, _) = carried_out(&wishes);
        let mut edited = seen(&history);
        edited.retain(|(_, seen)| seen.version > 1);
        prop_assume!(!edited.is_empty());
        // Somebody else was told that theirs is this version.
        let (_, seen) = pick.get(&edited).clone();
        let twin = Seen { text: "twin".into(), ..seen };
        let edit = PostOp::Edit { if_version: Some(twin.version - 1), text: "twin".into(), end: End::Done(twin) };
        history.post(POST, call(edit, 0, 1_000_000));
        prop_assert!(violated(&history));
    }

    #[test]
    fn a_like_that_counts_twice_is_rejected(wishes in wishes(0, 0)) {
        let (mut history, truth) = carried_out(&wishes);
        // Four users did what they did.
        for user in 0..4 {
            afterwards(&mut history, PostOp::Like { user, on: true, end: End::Done(()) });
        }
        afterwards(&mut history, PostOp::Read(Some(Seen { likes: 4, ..truth.seen.clone() })));
        prop_assert_eq!(history.check(), []);
        afterwards(&mut history, PostOp::Read(Some(Seen { likes: 5, ..truth.seen })));
        prop_assert!(violated(&history));
    }

    #[test]
    fn a_lost_like_is_rejected(wishes in wishes(0, 0)) {
        let (mut history, truth) = carried_out(&wishes);
        afterwards(&mut history, PostOp::Like { user: 9, on: true, end: End::Done(()) });
        afterwards(&mut history, PostOp::Read(Some(Seen { likes: truth.seen.likes + 1, ..truth.seen })));
        prop_assert_eq!(history.check(), []);
        afterwards(&mut history, PostOp::Liked { user: 9, liked: false });
        prop_assert!(violated(&history));
    }

    #[test]
    fn a_resurrected_post_is_rejected(wishes in wishes(0, 1)) {
        let (mut history, truth) = carried_out(&wishes);
        afterwards(&mut history, PostOp::Delete { if_version: None, end: End::Done(()) });
        prop_assert_eq!(history.check(), []);
        afterwards(&mut history, PostOp::Read(Some(truth.seen)));
        prop_assert!(violated(&history));
    }
}

/// Many clients on one post for long, with a dozen operations left open on the way.
#[test]
fn a_long_history_with_open_operations_is_decided() {
    let mut random = TestRunner::deterministic();
    let long = vec((wish(0), timing(0)), 10_000..=10_000);
    let (mut history, _) = carried_out(&long.new_tree(&mut random).unwrap().current());
    for n in 0..12 {
        let like = PostOp::Like { user: 20 + n, on: true, end: End::Open };
        let edit = PostOp::Edit { if_version: Some(1 + n as i64), text: "never".into(), end: End::Open };
        for op in [like, edit] {
            history.post(POST, Call { client: 20 + n, op, invoked: 200 + 8_000 * n as u64, returned: None });
        }
    }
    assert_eq!(history.check(), []);
}

#[test]
fn a_thread_that_is_not_found_after_its_post_was_deleted_is_no_word_of_the_thread() {
    let mut history = published();
    history.thread(POST, call(ThreadOp::Add { comment: "c".into(), end: End::Done(()) }, 2, 3));
    history.post(POST, call(PostOp::Delete { if_version: None, end: End::Done(()) }, 4, 5));
    history.thread(POST, call(ThreadOp::List(None), 6, 7));
    // The thread has not heard yet.
    history.thread(POST, call(ThreadOp::Delete { comment: "c".into(), end: End::Done(()) }, 8, 9));
    assert_eq!(history.check(), []);
}

#[test]
fn a_thread_that_is_not_found_while_its_post_is_there_is_a_violation() {
    let mut history = published();
    history.thread(POST, call(ThreadOp::List(None), 6, 7));
    assert!(violated(&history));
}

#[test]
fn open_operations_and_posts_without_an_id_are_counted() {
    let mut history = published();
    history.post(POST, Call { client: 1, op: PostOp::Like { user: 1, on: true, end: End::Open }, invoked: 3, returned: None });
    history.unplaced("b".into());
    assert_eq!(history.count(), (3, 2));
}

#[test]
fn the_pause_is_between_acknowledged_writes() {
    let mut history = published();
    history.post(POST, call(PostOp::Read(None), 50, 60));
    history.post(POST, call(PostOp::Like { user: 1, on: true, end: End::Done(()) }, 90, 101));
    assert_eq!(history.worst_pause_ns(), 100);
}
