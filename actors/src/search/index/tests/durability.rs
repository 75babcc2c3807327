use std::time::Duration;
use std::{fs, path::Path};

use super::*;

#[test]
fn deleted_documents_vanish() {
    let mut index = given([post(1, "", "rust"), post(2, "", "rust")]);
    index.index([deleted(post(1, "", "rust"))]);
    assert_eq!(index.find("rust"), [2]);
}

#[test]
fn the_comments_of_a_deleted_post_go_with_it() {
    let under = |post, comment| Document { post_id: Some(Uuid::from_u128(post)), ..comment };
    let mut index = given([post(1, "", "rust"), under(1, comment(2, "rust")), under(9, comment(3, "rust"))]);
    index.apply([under(1, comment(4, "rust"))]);
    index.index([deleted(post(1, "", "rust"))]);
    assert_eq!(index.find("rust"), [3]);
}

#[test]
fn a_newer_version_replaces_the_older() {
    let mut index = given([post(1, "", "rust")]);
    index.index([Document { version: 2, ..post(1, "", "tokio") }]);
    assert_eq!(index.find("rust"), []);
    assert_eq!(index.find("tokio"), [1]);
}

#[test]
fn within_a_batch_the_newest_version_wins() {
    let index = given([
        Document { version: 2, ..post(1, "", "second") },
        Document { version: 3, ..post(1, "", "third") },
        Document { version: 1, ..post(1, "", "first") },
    ]);
    assert_eq!(index.find("third first second"), [1]);
    assert_eq!(index.hits("").items[0].version, 3);
}

#[test]
fn an_older_version_never_overwrites_a_newer_one() {
    let mut index = partition();
    index.apply([Document { version: 5, ..post(1, "", "new") }]);
    index.apply([Document { version: 4, ..post(1, "", "old") }]);
    index.index([]);
    index.index([Document { version: 4, ..post(1, "", "old") }]);
    assert_eq!(index.hits("").items[0].version, 5);
}

/// What is younger than all that is there is not looked for.
#[test]
fn a_document_is_replaced_by_its_newer_version_whatever_its_age() {
    let id = |n: u128| n << 64;
    let mut index = given([post(id(2), "", "rust")]);
    index.index([post(id(1), "", "rust"), post(id(3), "", "rust")]);
    index.index([1, 2, 3].map(|n| Document { version: 2, ..post(id(n), "", "tokio") }));
    assert_eq!(index.find("rust"), []);
    let mut index = index.reopen();
    index.index([1, 2, 3].map(|n| Document { version: 3, ..post(id(n), "", "axum") }));
    assert_eq!(index.find("tokio"), []);
    assert_eq!(index.find_sorted("axum"), [1, 2, 3].map(id));
}

#[test]
fn things_of_different_kinds_may_share_an_id() {
    let index = given([post(1, "", "rust"), comment(1, "rust")]);
    assert_eq!(index.hits("rust").total, 2);
}

#[test]
fn nothing_is_found_before_its_commit() {
    let mut index = partition();
    index.apply([post(1, "", "rust")]);
    assert_eq!(index.find("rust"), []);
}

/// More text than the writer's memory between two commits, as in a rebuild.
#[test]
fn a_long_way_to_the_commit_is_written_out_in_parts_and_shown_at_once() {
    let mut index = given([post(100, "", "rust")]);
    let long = format!("rust{}", " ".repeat(3_000_000));
    index.apply((1..=8).map(|id| post(id, "", &long)));
    index.apply([deleted(post(1, "", "rust")), deleted(post(100, "", "rust"))]);
    assert_eq!(index.find("rust"), [100]);
    index.index([]);
    assert_eq!(index.find_sorted("rust"), (2..=8).collect::<Vec<_>>());
}

#[test]
fn readers_see_a_commit_as_soon_as_it_returns() {
    let mut index = partition();
    let reader = index.partition.reader();
    index.index([post(1, "", "rust")]);
    assert_eq!(reader.search(&search("rust")).unwrap().total, 1);
}

#[test]
fn the_position_survives_a_reopening() {
    let index = given([post(1, "", "rust")]);
    let position = index.position();
    let index = index.reopen();
    assert_eq!(index.partition.position(), &position);
    assert_eq!(index.find("rust"), [1]);
}

/// The process dies after some documents were applied and before their commit.
#[test]
fn after_a_crash_the_index_goes_on_from_its_last_commit() {
    let mut index = given([post(1, "", "rust")]);
    let committed = index.position();
    index.apply([post(2, "", "rust"), deleted(post(1, "", "rust"))]);
    drop(index.partition);
    index.partition = open(&index.dir);
    assert_eq!(index.partition.position(), &committed);
    assert_eq!(index.find("rust"), [1]);
    index.index([post(2, "", "rust"), deleted(post(1, "", "rust"))]);
    assert_eq!(index.find("rust"), [2]);
}

#[test]
fn a_reset_serves_the_old_documents_until_the_new_ones_are_committed() {
    let mut index = given([post(1, "", "rust"), post(2, "", "rust")]);
    index.partition.reset().unwrap();
    assert_eq!(index.partition.position(), &Position::default());
    index.apply([post(2, "", "tokio")]);
    assert_eq!(index.find_sorted("rust"), [1, 2]);
    index.index([post(3, "", "tokio")]);
    assert_eq!(index.find("rust"), []);
    assert_eq!(index.find_sorted("tokio"), [2, 3]);
}

/// What the documents table no longer has is older than what the index has; the rebuild must take it all the same.
#[test]
fn a_reset_forgets_versions_too() {
    let mut index = given([Document { version: 9, ..post(1, "", "old") }]);
    index.partition.reset().unwrap();
    index.index([post(1, "", "new")]);
    assert_eq!(index.find("new"), [1]);
}

/// What was broken: every document of the index was noted until the commit of its rebuild.
#[test]
fn a_rebuild_notes_nothing_of_what_comes_once() {
    let mut index = given([post(1, "", "old")]);
    let once_until = index.seq + 2;
    index.partition.reset_once_until(once_until).unwrap();
    index.apply([post(1, "", "first"), post(2, "", "first")]);
    assert_eq!((index.seq, index.partition.noted()), (once_until, 0));
    // One of them was stored anew meanwhile, and comes again.
    index.index([Document { version: 2, ..post(1, "", "second") }, post(3, "", "second")]);
    assert_eq!((index.find("old"), index.find("first")), (vec![], vec![2]));
    assert_eq!(index.find_sorted("second"), [1, 3]);
    index.index([Document { version: 2, ..post(2, "", "third") }]);
    assert_eq!((index.find("first"), index.find("third")), (vec![], vec![2]), "the rebuilt index knows what it has");
}

#[test]
fn a_reset_that_was_never_committed_leaves_everything_as_it_was() {
    let mut index = given([post(1, "", "rust")]);
    let committed = index.position();
    index.partition.reset().unwrap();
    index.apply([post(2, "", "rust")]);
    let index = index.reopen();
    assert_eq!(index.partition.position(), &committed);
    assert_eq!(index.find("rust"), [1]);
}

/// The folder disappears under the writer, as with a lost disk, and comes back.
#[test]
fn after_an_io_error_a_recovered_partition_resumes_from_its_last_commit() {
    let mut index = given([post(1, "", "rust")]);
    let committed = index.position();
    let (here, away) = (index.dir.path().to_owned(), index.dir.path().with_extension("away"));
    fs::rename(&here, &away).unwrap();
    let failed = index
        .partition
        .apply(&[(2, post(2, "", "rust"))])
        .and_then(|()| index.partition.commit(Position { applied_seq: 2, ..Position::default() }));
    assert!(matches!(failed, Err(PartitionError::Write(_))), "{failed:?}");
    assert!(matches!(index.partition.apply(&[]), Err(PartitionError::Failed)));
    fs::rename(&away, &here).unwrap();
    assert_eq!(index.partition.recover().unwrap(), &committed);
    assert_eq!(index.find("rust"), [1]);
    index.index([post(2, "", "rust")]);
    assert_eq!(index.find_sorted("rust"), [1, 2]);
}

/// Breaks every file of the folder whose name ends so.
fn damage(dir: &TempDir, suffix: &str, content: &[u8]) {
    let mut damaged = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(suffix) {
            fs::write(path, content).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "nothing ends in {suffix}");
}

#[test]
fn a_damaged_folder_is_built_anew() {
    for (suffix, content) in [("meta.json", &b"{"[..]), (".store", b"x"), (".idx", b"")] {
        let Fixture { dir, partition, .. } = given([post(1, "", "rust")]);
        partition.close().unwrap();
        damage(&dir, suffix, content);
        let mut index = Fixture { partition: open(&dir), dir, seq: 0 };
        assert_eq!(index.partition.position(), &Position::default(), "{suffix}");
        index.index([post(1, "", "rust")]);
        assert_eq!(index.reopen().find("rust"), [1], "{suffix}");
    }
}

#[test]
fn a_file_that_a_crash_left_behind_is_cleared_away() {
    let Fixture { dir, partition, .. } = given([post(1, "", "rust")]);
    partition.close().unwrap();
    let left = dir.path().join("0123456789abcdef0123456789abcdef.store");
    fs::write(&left, b"half of a segment").unwrap();
    let mut index = Fixture { partition: open(&dir), dir, seq: 0 };
    index.index([post(2, "", "rust")]);
    assert!(!left.exists());
    assert_eq!(index.find_sorted("rust"), [1, 2]);
}

#[test]
fn an_index_of_another_format_is_built_anew() {
    let Fixture { dir, partition, .. } = given([post(1, "", "rust")]);
    partition.close().unwrap();
    let meta = dir.path().join("meta.json");
    let format = |number: u32| format!(r#"{{\"format\":{number}"#);
    let newer = fs::read_to_string(&meta).unwrap().replace(&format(schema::FORMAT), &format(999));
    fs::write(&meta, newer).unwrap();
    let partition = open(&dir);
    assert_eq!(partition.position(), &Position::default());
    assert_eq!(partition.search(&search("rust")).unwrap().total, 0);
}

#[test]
fn an_index_with_other_fields_is_built_anew() {
    let dir = TempDir::new().unwrap();
    tantivy::Index::create_in_dir(dir.path(), tantivy::schema::Schema::builder().build()).unwrap();
    assert_eq!(open(&dir).position(), &Position::default());
}

#[test]
fn a_folder_in_use_is_refused_and_left_as_it_is() {
    let index = given([post(1, "", "rust")]);
    let impatient = Settings { lock_wait: Duration::from_millis(20), ..Settings::default() };
    let second = Partition::open(index.dir.path(), impatient);
    assert!(matches!(second, Err(PartitionError::Locked { .. })));
    assert_eq!(index.find("rust"), [1]);
}

#[test]
fn a_folder_is_taken_over_as_soon_as_its_owner_lets_go() {
    let index = given([post(1, "", "rust")]);
    let path = index.dir.path().to_owned();
    let waiting = std::thread::spawn(move || Partition::open(&path, Settings::default()).unwrap());
    index.partition.close().unwrap();
    assert_eq!(waiting.join().unwrap().search(&search("rust")).unwrap().total, 1);
}

/// What was deleted leaves the files, and not only the answers: its segment is written anew, and the old files go.
#[test]
fn a_purge_takes_deleted_texts_out_of_the_files() {
    let mut index = given((1..=30).map(|id| post(id, "", "something that stays")));
    index.index([post(77, "", "incriminating")]);
    index.index([deleted(post(77, "", "incriminating")), deleted(post(3, "", ""))]);
    index.checkpoint();
    let with_deletes = |index: &Fixture| {
        let metas = tantivy::Index::open_in_dir(index.dir.path()).unwrap().searchable_segment_metas().unwrap();
        metas.iter().filter(|segment| segment.has_deletes()).count()
    };
    assert!(with_deletes(&index) > 0, "nothing was to be purged");
    index.partition.purge().unwrap();
    index.partition.settle();
    index.checkpoint();
    assert_eq!(with_deletes(&index), 0);
    assert!(!index.partition.refresh().unwrap(), "it is searched as it is");
    let view = index.partition.reader().view();
    for segment in view.searcher.segment_readers() {
        for field in &view.layout.words {
            let term = tantivy::Term::from_field_text(*field, "incriminating");
            assert_eq!(segment.inverted_index(*field).unwrap().doc_freq(&term).unwrap(), 0, "the dictionary has the word");
        }
    }
    let listed = tantivy::Index::open_in_dir(index.dir.path()).unwrap().load_metas().unwrap().list_segment_files();
    for folder in [index.dir.path().to_owned(), index.dir.path().join(".checkpoint")] {
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name();
            let is_of_segment = name.to_str().is_some_and(|name| name.len() > 32 && !name.starts_with('.'));
            assert!(!is_of_segment || listed.contains(Path::new(&name)), "{name:?} is left of what was purged");
        }
    }
    assert_eq!(index.hits("something").total, 29);
}

/// An index of the release before is searched and kept up, until one of ours has taken its place.
#[test]
fn an_index_of_the_layout_before_serves() {
    outage::new_disk();
    let dir = TempDir::new().unwrap();
    assert!(Partition::open_former(&dir.path().join("none"), Settings::default()).unwrap().is_none());
    let former = schema::layout(schema::FORMER).unwrap();
    let partition = Partition::open_as(dir.path(), Settings::default(), &former).unwrap();
    let mut index = Fixture { dir, partition, seq: 0 };
    index.index([
        post(1, "Memory safety", "of databases"),
        post(2, "", "東京都 databases, memory and safety"),
        Document { tags: vec!["lang".into()], ..comment(3, "a question") },
    ]);
    let Fixture { dir, partition, seq } = index;
    partition.close().unwrap();
    let partition = Partition::open_former(dir.path(), Settings::default()).unwrap().expect("it is there");
    let mut index = Fixture { dir, partition, seq };
    index.index([post(4, "Database", "that came later"), deleted(comment(3, ""))]);
    assert_eq!(index.find("database")[0], 4, "a title weighs more");
    assert_eq!(index.find_sorted("databse"), [1, 2, 4]);
    assert_eq!(index.find("\"memory safety\""), [1]);
    assert_eq!(index.find("東京"), [2]);
    assert_eq!(index.find_sorted("mem*"), [1, 2]);
    assert_eq!(index.find("memory -databases"), []);
    assert_eq!(index.find("question"), []);
    assert_eq!(index.partition.suggest("dat", 5).unwrap()[0].text, "database");
    assert!(index.hits("databases").items[1].highlight.body.as_deref().is_some_and(|body| body.contains("<mark>")));
    // Nor are commits of the one layout copied to the other.
    let commit = index.partition.segments().snapshot().unwrap().commit().clone();
    assert!(commit.is_of(schema::FORMER) && !commit.is_of(schema::FORMAT));
    // One of ours does not take it for its own, and begins anew.
    index.partition.close().unwrap();
    let ours = Partition::open(index.dir.path(), Settings::default()).unwrap();
    assert_eq!(ours.position().applied_seq, 0);
}
