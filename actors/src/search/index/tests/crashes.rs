//! Whatever happens to the process or to the machine, the index is the documents, each once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{outage::Left, *};

impl Fixture {
    /// Kind, id and version of everything that can be found, in order.
    fn entries(&self) -> Vec<(Kind, u128, u64)> {
        let all = self.partition.search(&Search { limit: LIMIT_MAX, ..search("") }).unwrap();
        assert_eq!(usize::try_from(all.total), Ok(all.items.len()), "it fits one page");
        let mut entries: Vec<_> = all.items.iter().map(|hit| (hit.kind, hit.id.as_u128(), hit.version)).collect();
        entries.sort_unstable();
        entries
    }
}

/// What was broken: a new writer's first deletion bears the stamp of the last commit. A merge of what that commit left
/// takes it to be contained in a segment with deletions of that commit, and applies it to the others only.
#[test]
fn the_first_deletion_after_a_crash_outlives_the_merge_that_the_crash_interrupted() {
    let mut index = partition();
    index.partition.hold_merges();
    index.index((1..=5).map(|id| post(id, "", "rust")));
    index.index((11..=14).map(|id| post(id, "", "rust")));
    index.index([deleted(post(11, "", "rust")), deleted(post(12, "", "rust"))]);
    let mut index = index.crash();
    index.index([deleted(post(13, "", "rust")), post(20, "", "rust")]);
    index.partition.settle();
    assert_eq!(index.find_sorted("rust"), [1, 2, 3, 4, 5, 14, 20]);
}

/// The same, as a full disk shows it: the index is built anew after a failure, with more text than the writer's memory.
#[test]
fn a_reset_after_a_failure_forgets_everything_whatever_merges_meanwhile() {
    let mut index = partition();
    index.partition.hold_merges();
    index.index((1..=5).map(|id| post(id, "", "rust")));
    index.index((11..=14).map(|id| post(id, "", "rust")));
    index.index([deleted(post(11, "", "rust")), deleted(post(12, "", "rust"))]);
    index.partition.recover().unwrap();
    index.partition.reset().unwrap();
    let long = format!("rust{}", " ".repeat(3_000_000));
    index.index((1..=8).map(|id| post(id, "", &long)));
    index.partition.settle();
    assert_eq!(index.find_sorted("rust"), (1..=8).collect::<Vec<_>>());
}

/// The process dies when the files of a commit are written and the commit itself is not. What was broken: the same commit,
/// done again, found the names of its files taken.
#[test]
fn a_commit_that_a_crash_cut_short_is_done_again() {
    let mut index = given([post(1, "", "rust"), post(2, "", "rust"), post(3, "", "rust")]).crash();
    index.partition.hold_merges();
    let change = [deleted(post(1, "", "rust")), post(4, "", "rust")];
    index.index(change.clone());
    // The list is what a commit writes last.
    let log = std::fs::OpenOptions::new().write(true).open(index.dir.path().join(".recent")).unwrap();
    log.set_len(log.metadata().unwrap().len() - 1).unwrap();
    let mut index = index.crash();
    assert_eq!(index.find_sorted("rust"), [1, 2, 3]);
    index.index(change);
    assert_eq!(index.find_sorted("rust"), [2, 3, 4]);
}

#[test]
fn after_an_outage_the_index_begins_again_at_its_checkpoint() {
    for left in [Left::OnlySynced, Left::NamesAndHalves] {
        let mut index = given([post(1, "", "rust"), post(2, "", "rust")]);
        index.checkpoint();
        let checkpoint = index.position();
        index.index([post(3, "", "rust"), deleted(post(1, "", "rust"))]);
        let mut index = index.outage(left);
        assert_eq!(index.partition.position(), &checkpoint, "{left:?}");
        assert_eq!(index.find_sorted("rust"), [1, 2], "{left:?}");
        index.index([post(3, "", "rust"), deleted(post(1, "", "rust"))]);
        assert_eq!(index.find_sorted("rust"), [2, 3], "{left:?}");
    }
}

#[test]
fn an_outage_before_the_first_checkpoint_leaves_an_index_to_build_anew() {
    for left in [Left::OnlySynced, Left::NamesAndHalves] {
        let index = given([post(1, "", "rust")]).outage(left);
        assert_eq!(index.partition.position(), &Position::default(), "{left:?}");
    }
}

#[test]
fn what_was_closed_in_order_outlives_an_outage() {
    let index = given([post(1, "", "rust")]);
    let closed = index.position();
    let index = index.reopen().outage(Left::OnlySynced);
    assert_eq!(index.partition.position(), &closed);
    assert_eq!(index.find("rust"), [1]);
}

/// Merges and deletions make the files of a checkpoint superfluous to everybody else.
#[test]
fn a_checkpoint_keeps_its_files_whatever_becomes_of_the_index() {
    let mut index = partition();
    (1..=4).for_each(|id| index.index([post(id, "", "rust")]));
    index.checkpoint();
    let checkpoint = index.position();
    (5..=20).for_each(|id| index.index([post(id, "", "rust"), deleted(post(id - 4, "", "rust"))]));
    index.partition.settle();
    let index = index.outage(Left::OnlySynced);
    assert_eq!(index.partition.position(), &checkpoint);
    assert_eq!(index.find_sorted("rust"), [1, 2, 3, 4]);
}

#[test]
fn a_checkpoint_that_a_crash_cut_short_leaves_the_one_before() {
    let mut index = given([post(1, "", "rust")]);
    index.checkpoint();
    let checkpoint = index.position();
    index.index([post(2, "", "rust")]);
    drop(index.partition.checkpoints().begin().unwrap().expect("there is something new"));
    // The commit outlives the process, as ever.
    let index = index.crash();
    assert_eq!(index.find_sorted("rust"), [1, 2]);
    let index = index.outage(Left::OnlySynced);
    assert_eq!(index.partition.position(), &checkpoint);
    assert_eq!(index.find("rust"), [1]);
}

#[test]
fn a_checkpoint_of_what_is_on_the_disk_is_none() {
    let mut index = given([post(1, "", "rust")]);
    index.checkpoint();
    assert!(index.partition.checkpoints().begin().unwrap().is_none());
}

/// As on a full disk.
#[test]
fn a_checkpoint_that_cannot_be_written_stops_nothing() {
    let mut index = given([post(1, "", "rust")]);
    let in_the_way = index.dir.path().join(".checkpoint");
    std::fs::write(&in_the_way, "").unwrap();
    assert!(matches!(index.partition.checkpoints().begin(), Err(CheckpointError::Write(_))));
    index.index([post(2, "", "rust")]);
    assert_eq!(index.find_sorted("rust"), [1, 2]);
    let index = index.reopen();
    assert_eq!(index.find_sorted("rust"), [1, 2]);
}

#[test]
fn where_the_boot_of_the_machine_is_unknown_only_the_checkpoint_is_trusted() {
    let mut index = given([post(1, "", "rust")]);
    index.checkpoint();
    let checkpoint = index.position();
    index.index([post(2, "", "rust")]);
    let Fixture { dir, partition, seq } = index;
    drop(partition);
    checkpoint::settle(dir.path(), None).unwrap();
    let index = Fixture { partition: open(&dir), dir, seq };
    assert_eq!(index.partition.position(), &checkpoint);
}

/// An id whose first half is not that of all others: what is younger than the index is not looked for there.
fn aged(n: u128) -> u128 {
    (n % 3) << 64 | n
}

/// The documents table of one partition, and the log of its changes.
#[derive(Default)]
struct Documents {
    rows: BTreeMap<(Kind, u128), (u64, Document)>,
    seq: u64,
}

const POSTS: u128 = 6;
const COMMENTS: u128 = 12;

impl Documents {
    fn change(&mut self, change: &Change) {
        let (id, fresh) = match change.of {
            Of::Post(n) => (aged(n), post(aged(n), "", "rust")),
            Of::Comment(n) => {
                let id = aged(100 + n);
                (id, Document { post_id: Some(Uuid::from_u128(aged(n % POSTS))), ..comment(id, "rust") })
            }
        };
        let version = self.rows.get(&(fresh.kind, id)).map_or(0, |(_, document)| document.version) + 1;
        // What is gone stays so.
        let gone = change.deletes || self.is_gone(fresh.kind, id);
        self.seq += 1;
        self.rows.insert((fresh.kind, id), (self.seq, Document { version, deleted: gone, ..fresh }));
    }

    fn is_gone(&self, kind: Kind, id: u128) -> bool {
        self.rows.get(&(kind, id)).is_some_and(|(_, document)| document.deleted)
    }

    fn is_doomed(&self, document: &Document) -> bool {
        document.post_id.is_some_and(|post| self.is_gone(Kind::Post, post.as_u128()))
    }

    /// As a follower reads them.
    fn after(&self, applied: u64) -> Vec<(u64, Document)> {
        let mut rows: Vec<_> = self.rows.values().filter(|(seq, document)| *seq > applied && !self.is_doomed(document)).collect();
        rows.sort_unstable_by_key(|(seq, _)| *seq);
        rows.into_iter().cloned().collect()
    }

    /// What is to be found.
    fn entries(&self) -> Vec<(Kind, u128, u64)> {
        let rows = self.rows.values().map(|(_, document)| document);
        let found = rows.filter(|document| !document.deleted && !self.is_doomed(document));
        found.map(|document| (document.kind, document.id.as_u128(), document.version)).collect()
    }
}

#[derive(Clone, Debug)]
struct Change {
    of: Of,
    deletes: bool,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Post(u128),
    Comment(u128),
}

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<Change>),
    Follow,
    /// Half of a step of following, and then the process dies.
    FollowAndCrash,
    /// From now on no merge begins: the next crash finds them undone.
    HoldMerges,
    Crash,
    Reopen,
    Recover,
    Settle,
    Rebuild,
    RebuildAndCrash,
    Checkpoint,
    /// Half of a checkpoint, and then the process dies, or soon the machine.
    BeginCheckpoint,
    Outage(Left),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let of = prop_oneof![(0..POSTS).prop_map(Of::Post), (0..COMMENTS).prop_map(Of::Comment)];
    let change = (of, prop::bool::weighted(0.15)).prop_map(|(of, deletes)| Change { of, deletes });
    prop::collection::vec(change, 1..6)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => changes().prop_map(Step::Change),
        6 => Just(Step::Follow),
        1 => Just(Step::FollowAndCrash),
        2 => Just(Step::HoldMerges),
        2 => Just(Step::Crash),
        1 => Just(Step::Reopen),
        1 => Just(Step::Recover),
        1 => Just(Step::Settle),
        1 => Just(Step::Rebuild),
        1 => Just(Step::RebuildAndCrash),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::BeginCheckpoint),
        1 => Just(Step::Outage(Left::OnlySynced)),
        1 => Just(Step::Outage(Left::NamesAndHalves)),
    ];
    prop::collection::vec(step, 8..28)
}

/// Reads what is new, and maybe commits it.
fn follow(index: &mut Fixture, documents: &Documents, commit: bool) {
    let rows = documents.after(index.partition.position().applied_seq);
    index.partition.apply(&rows).unwrap();
    if commit {
        let position = Position { applied_seq: documents.seq, ..Position::default() };
        index.partition.commit(position).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_index_is_its_documents_through_crashes_outages_and_rebuilds(steps in steps()) {
        let (mut index, mut documents) = (partition(), Documents::default());
        for step in steps {
            match step {
                Step::Change(changes) => changes.iter().for_each(|change| documents.change(change)),
                Step::Follow => {
                    follow(&mut index, &documents, true);
                    prop_assert_eq!(index.entries(), documents.entries());
                }
                Step::FollowAndCrash => {
                    follow(&mut index, &documents, false);
                    index = index.crash();
                }
                Step::HoldMerges => index.partition.hold_merges(),
                Step::Crash => index = index.crash(),
                Step::Reopen => index = index.reopen(),
                Step::Recover => drop(index.partition.recover().unwrap()),
                Step::Settle => index.partition.settle(),
                Step::Rebuild => {
                    index.partition.reset().unwrap();
                    follow(&mut index, &documents, true);
                    prop_assert_eq!(index.entries(), documents.entries());
                }
                Step::RebuildAndCrash => {
                    index.partition.reset().unwrap();
                    follow(&mut index, &documents, false);
                    index = index.crash();
                }
                Step::Checkpoint => index.checkpoint(),
                Step::BeginCheckpoint => drop(index.partition.checkpoints().begin().unwrap()),
                Step::Outage(left) => index = index.outage(left),
            }
        }
        follow(&mut index, &documents, true);
        prop_assert_eq!(index.entries(), documents.entries());
        // Merges that were still running have ended.
        index.partition.settle();
        prop_assert_eq!(index.entries(), documents.entries());
    }
}
