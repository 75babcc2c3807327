//! A replica that copies what another makes.

use super::{outage::Left, *};

/// As over a link: a commit, and then its files piece by piece.
fn copy(from: &Snapshot, to: &mut Fixture) {
    let commit = from.commit();
    to.partition.begin_copying().unwrap();
    let missing = to.partition.missing(commit).unwrap();
    for file in &missing {
        let mut offset = 0;
        while offset < commit.length(*file) {
            let piece = from.piece(*file, offset, 1_000).unwrap();
            to.partition.receive(commit, *file, &piece).unwrap();
            offset += piece.len() as u64;
        }
    }
    to.partition.install(commit, &missing).unwrap();
}

fn snapshot(index: &Fixture) -> Snapshot {
    index.partition.segments().snapshot().unwrap()
}

fn files(index: &Fixture) -> Vec<String> {
    index.partition.segments().folder.names().unwrap()
}

/// Another replica of the same partition, with nothing in it, on another disk.
fn replica() -> Fixture {
    let dir = TempDir::new().unwrap();
    Fixture { partition: open(&dir), dir, seq: 0 }
}

#[test]
fn a_copy_finds_what_the_other_finds_and_knows_how_far_it_has_come() {
    let mut index = given([post(1, "", "rust"), post(2, "", "rust")]);
    index.index([post(3, "", "rust"), deleted(post(1, "", "rust"))]);
    let mut replica = replica();
    copy(&snapshot(&index), &mut replica);
    assert_eq!(replica.find_sorted("rust"), [2, 3]);
    assert_eq!(replica.partition.position(), index.partition.position());
}

/// An index, a replica with a copy of it, the commit after that, and the files of it that the replica lacks.
fn one_commit_behind() -> (Fixture, Fixture, Snapshot, Vec<usize>) {
    let mut index = given([post(1, "", "rust")]);
    let mut replica = replica();
    copy(&snapshot(&index), &mut replica);
    index.index([post(2, "", "rust")]);
    let next = snapshot(&index);
    let missing = replica.partition.missing(next.commit()).unwrap();
    (index, replica, next, missing)
}

#[test]
fn only_what_is_new_is_copied() {
    let (_index, mut replica, next, missing) = one_commit_behind();
    assert_eq!(2 * missing.len(), next.commit().files.len(), "of two segments one is there");
    copy(&next, &mut replica);
    assert_eq!(replica.find_sorted("rust"), [1, 2]);
}

/// Its maker is gone.
#[test]
fn a_copy_goes_on_by_itself_from_where_it_was() {
    let mut index = given([post(1, "", "rust"), post(2, "", "rust")]);
    index.index([deleted(post(1, "", "rust"))]);
    let mut replica = replica();
    copy(&snapshot(&index), &mut replica);
    let position = index.position();
    drop(index);
    assert_eq!(replica.partition.recover().unwrap(), &position);
    replica.index([post(3, "", "rust"), deleted(post(2, "", "rust"))]);
    assert_eq!(replica.find_sorted("rust"), [3]);
    assert_eq!(replica.reopen().find_sorted("rust"), [3]);
}

#[test]
fn files_are_readable_as_long_as_somebody_copies_them() {
    let mut index = given([post(1, "", "rust"), post(2, "", "rust")]);
    let before = snapshot(&index);
    (3..=20).for_each(|id| index.index([post(id, "", "rust")]));
    index.partition.settle();
    let mut replica = replica();
    copy(&before, &mut replica);
    assert_eq!(replica.find_sorted("rust"), [1, 2]);
}

/// Both go on from one commit, and give the same name to what they delete.
#[test]
fn a_file_of_another_content_under_the_same_name_is_replaced() {
    let mut index = given((1..=7).map(|id| post(id, "", "rust")));
    let mut replica = replica();
    copy(&snapshot(&index), &mut replica);
    for index in [&mut index, &mut replica] {
        index.partition.recover().unwrap();
        index.partition.hold_merges();
    }
    replica.index([deleted(post(1, "", "rust")), post(9, "", "rust")]);
    index.index([deleted(post(2, "", "rust")), post(8, "", "rust")]);
    let names = |index: &Fixture| files(index).into_iter().filter(|name| name.ends_with(".del")).collect::<Vec<_>>();
    assert_eq!(names(&index), names(&replica), "the test is about equal names");
    assert_eq!(names(&index).len(), 1);
    let reader = replica.partition.reader();
    copy(&snapshot(&index), &mut replica);
    assert_eq!(replica.find_sorted("rust"), [1, 3, 4, 5, 6, 7, 8]);
    assert_eq!(reader.search(&search("rust")).unwrap().total, 7);
    assert_eq!(replica.reopen().find_sorted("rust"), [1, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_copy_that_is_cut_short_leaves_the_one_before() {
    let (_index, mut replica, next, missing) = one_commit_behind();
    replica.partition.receive(next.commit(), missing[0], b"half of").unwrap();
    let mut replica = replica.crash();
    assert_eq!(replica.find_sorted("rust"), [1]);
    copy(&next, &mut replica);
    assert_eq!(replica.find_sorted("rust"), [1, 2]);
}

#[test]
fn a_file_that_came_in_part_is_not_installed() {
    let index = given([post(1, "", "rust")]);
    let mut replica = replica();
    let snapshot = snapshot(&index);
    replica.partition.begin_copying().unwrap();
    let missing = replica.partition.missing(snapshot.commit()).unwrap();
    missing.iter().for_each(|file| replica.partition.receive(snapshot.commit(), *file, b"half of").unwrap());
    assert!(replica.partition.install(snapshot.commit(), &missing).is_err());
    assert_eq!(replica.find("rust"), []);
}

#[test]
fn a_copy_keeps_no_files_that_nobody_needs() {
    let mut index = partition();
    let mut replica = replica();
    for id in 1..=20 {
        index.index([post(id, "", "rust")]);
        copy(&snapshot(&index), &mut replica);
    }
    index.partition.settle();
    copy(&snapshot(&index), &mut replica);
    assert_eq!(files(&replica), files(&index));
    // Nor when it goes on by itself, although it learned of them from another.
    replica.partition.recover().unwrap();
    (21..=40).for_each(|id| replica.index([post(id, "", "rust")]));
    replica.partition.settle();
    assert!(files(&replica).len() <= 8 * 6 + 1, "{:?}", files(&replica));
}

#[test]
fn a_checkpoint_of_a_copy_outlives_an_outage() {
    let index = given([post(1, "", "rust")]);
    let mut replica = replica();
    copy(&snapshot(&index), &mut replica);
    replica.checkpoint();
    let replica = replica.outage(Left::OnlySynced);
    assert_eq!(replica.find("rust"), [1]);
    assert_eq!(replica.partition.position(), index.partition.position());
}
