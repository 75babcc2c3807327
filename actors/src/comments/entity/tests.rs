//! Pure. Sentences about a thread, and the thread against a naive one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};
use uuid::Uuid;

use super::*;

const ADA: UserId = UserId(Uuid::from_u128(1));
const BOB: UserId = UserId(Uuid::from_u128(2));
const FIRST: CommentId = CommentId(Uuid::from_u128(101));
const REPLY: CommentId = CommentId(Uuid::from_u128(102));

fn body(text: &str) -> CommentBody {
    CommentBody::parse(text).unwrap()
}

fn text(author: UserId) -> Text {
    Text { author, body: body("Well said."), created_at: Timestamp::UNIX_EPOCH, updated_at: Timestamp::UNIX_EPOCH }
}

fn by(author: UserId) -> Facts {
    Facts { text: Some(text(author)), ..Facts::default() }
}

fn given(events: &[Event]) -> Option<Thread> {
    let mut state = None;
    for event in events {
        Thread::evolve(&mut state, event);
    }
    state
}

fn written(id: CommentId, parent: Option<CommentId>, depth: u8) -> Event {
    Event::Added { id, parent, depth, text: text(ADA) }
}

fn add(id: CommentId, parent: Option<CommentId>) -> Command {
    Command::Add { id, author: ADA, body: body("Well said."), parent, at: Timestamp::UNIX_EPOCH }
}

fn edit_by(editor: UserId, text: &str, if_version: Option<i64>) -> Command {
    Command::Edit { comment: FIRST, editor, body: body(text), if_version, at: Timestamp::UNIX_EPOCH }
}

fn delete_by(by: UserId, moderator: bool) -> Command {
    Command::Delete { comment: FIRST, by, moderator, if_version: None, at: Timestamp::UNIX_EPOCH }
}

fn deleted(id: CommentId, left: Deletion) -> Event {
    Event::Deleted { id, text: text(ADA), at: Timestamp::UNIX_EPOCH, left }
}

fn like(on: bool) -> Command {
    Command::Like { comment: FIRST, user: BOB, on }
}

fn import(ids: &[(CommentId, Option<CommentId>)]) -> Command {
    let imported = |&(id, parent)| Imported { id, author: ADA, body: body("From afar."), parent, at: Timestamp::UNIX_EPOCH };
    Command::Import { comments: ids.iter().map(imported).collect() }
}

fn decide(events: &[Event], command: &Command, facts: &Facts) -> Result<Vec<Event>, Rejection> {
    Thread::decide(given(events).as_ref(), command, facts)
}

#[test]
fn a_post_without_comments_takes_the_first_one() {
    assert_eq!(decide(&[], &add(FIRST, None), &Facts::default()), Ok(vec![written(FIRST, None, 0)]));
}

#[test]
fn an_import_leaves_alone_what_was_deleted() {
    let facts = Facts { deleted: HashSet::from([FIRST]), ..Facts::default() };
    assert_eq!(decide(&[], &import(&[(FIRST, None)]), &facts), Ok(vec![]));
    let third = CommentId(Uuid::from_u128(103));
    let events = decide(&[], &import(&[(FIRST, None), (third, None)]), &facts).unwrap();
    assert!(matches!(events[..], [Event::Added { id, .. }] if id == third), "{events:?}");
    assert_eq!(decide(&[], &import(&[(FIRST, None), (REPLY, Some(FIRST))]), &facts), Err(Rejection::NoSuchParent));
}

#[test]
fn a_reply_stands_one_level_below_what_it_answers() {
    let reply = decide(&[written(FIRST, None, 0)], &add(REPLY, Some(FIRST)), &Facts::default());
    assert_eq!(reply, Ok(vec![written(REPLY, Some(FIRST), 1)]));
}

#[test]
fn a_reply_to_what_is_not_there_is_refused() {
    assert_eq!(decide(&[], &add(REPLY, Some(FIRST)), &Facts::default()), Err(Rejection::NoSuchParent));
}

#[test]
fn a_reply_to_a_tombstone_is_refused() {
    let thread = [written(FIRST, None, 0), written(REPLY, Some(FIRST), 1), deleted(FIRST, Deletion::Tombstone)];
    let late = add(CommentId(Uuid::from_u128(103)), Some(FIRST));
    assert_eq!(decide(&thread, &late, &Facts::default()), Err(Rejection::Deleted));
}

#[test]
fn a_comment_on_its_way_finds_the_thread_of_a_deleted_post_closed() {
    assert_eq!(decide(&[Event::Closed], &add(FIRST, None), &Facts::default()), Err(Rejection::Closed));
}

#[test]
fn what_was_decided_before_the_post_went_does_not_open_its_thread_again() {
    let thread = given(&[Event::Closed, written(FIRST, None, 0)]);
    assert!(thread.is_some_and(|thread| thread.tree().is_none()));
}

#[test]
fn only_the_author_may_edit() {
    let edit = edit_by(BOB, "Changed.", None);
    assert_eq!(decide(&[written(FIRST, None, 0)], &edit, &by(ADA)), Err(Rejection::NotAuthor));
}

#[test]
fn an_edit_of_what_has_changed_meanwhile_is_refused() {
    let edited = Event::Edited { id: FIRST, text: text(ADA) };
    let edit = edit_by(ADA, "Changed.", Some(1));
    let rejection = decide(&[written(FIRST, None, 0), edited], &edit, &by(ADA));
    assert_eq!(rejection, Err(Rejection::VersionMismatch { version: 2 }));
}

#[test]
fn an_edit_that_changes_nothing_is_no_event() {
    let edit = edit_by(ADA, "Well said.", None);
    assert_eq!(decide(&[written(FIRST, None, 0)], &edit, &by(ADA)), Ok(vec![]));
}

#[test]
fn an_edit_keeps_when_the_comment_was_written() {
    let at = Timestamp::from_second(60).unwrap();
    let edit = Command::Edit { comment: FIRST, editor: ADA, body: body("Changed."), if_version: Some(1), at };
    let changed = Text { body: body("Changed."), updated_at: at, ..text(ADA) };
    let edited = decide(&[written(FIRST, None, 0)], &edit, &by(ADA));
    assert_eq!(edited, Ok(vec![Event::Edited { id: FIRST, text: changed }]));
}

#[test]
fn a_moderator_may_delete_what_others_wrote() {
    let thread = [written(FIRST, None, 0)];
    assert_eq!(decide(&thread, &delete_by(BOB, false), &by(ADA)), Err(Rejection::NotAuthor));
    let gone = deleted(FIRST, Deletion::Removed(vec![FIRST.0]));
    assert_eq!(decide(&thread, &delete_by(BOB, true), &by(ADA)), Ok(vec![gone]));
}

#[test]
fn a_deleted_comment_with_replies_stays_as_a_tombstone() {
    let thread = [written(FIRST, None, 0), written(REPLY, Some(FIRST), 1)];
    assert_eq!(decide(&thread, &delete_by(ADA, false), &by(ADA)), Ok(vec![deleted(FIRST, Deletion::Tombstone)]));
}

#[test]
fn a_tombstone_is_not_edited() {
    let thread = [written(FIRST, None, 0), written(REPLY, Some(FIRST), 1), deleted(FIRST, Deletion::Tombstone)];
    assert_eq!(decide(&thread, &edit_by(ADA, "Back.", None), &Facts::default()), Err(Rejection::Deleted));
}

#[test]
fn a_second_like_of_the_same_user_counts_nothing() {
    let thread = [written(FIRST, None, 0)];
    let liked = |liked| Facts { liked, ..Facts::default() };
    assert_eq!(decide(&thread, &like(true), &liked(false)), Ok(vec![Event::Liked { id: FIRST, user: BOB }]));
    assert_eq!(decide(&thread, &like(true), &liked(true)), Ok(vec![]));
    assert_eq!(decide(&thread, &like(false), &liked(false)), Ok(vec![]));
}

#[test]
fn an_import_may_hold_a_comment_and_the_reply_to_it() {
    let events = decide(&[], &import(&[(FIRST, None), (REPLY, Some(FIRST))]), &Facts::default()).unwrap();
    let thread = given(&events).unwrap();
    assert_eq!(thread.tree().and_then(|tree| tree.get(REPLY.0)).map(|info| info.depth), Some(1));
}

#[test]
fn an_import_that_is_repeated_adds_what_is_missing() {
    let again = import(&[(FIRST, None), (REPLY, Some(FIRST)), (REPLY, Some(FIRST))]);
    let events = decide(&[written(FIRST, None, 0)], &again, &Facts::default()).unwrap();
    assert!(matches!(&events[..], [Event::Added { id: REPLY, .. }]), "{events:?}");
}

#[test]
fn an_import_without_a_parent_adds_nothing() {
    let orphan = import(&[(FIRST, None), (REPLY, Some(CommentId(Uuid::nil())))]);
    assert_eq!(decide(&[], &orphan, &Facts::default()), Err(Rejection::NoSuchParent));
}

/// A thread as a plain list with everything in it.
#[derive(Clone, Debug, Default)]
struct Model {
    comments: BTreeMap<CommentId, Entry>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    parent: Option<CommentId>,
    text: Text,
    version: i64,
    likes: BTreeSet<UserId>,
    deleted: bool,
}

impl Model {
    fn depth(&self, id: CommentId) -> u8 {
        self.comments[&id].parent.map_or(0, |parent| self.depth(parent) + 1)
    }

    fn replies(&self, id: CommentId) -> impl Iterator<Item = &Entry> {
        self.comments.values().filter(move |entry| entry.parent == Some(id))
    }

    fn live(&mut self, id: CommentId) -> Result<&mut Entry, Rejection> {
        match self.comments.get_mut(&id) {
            None => Err(Rejection::NoSuchComment),
            Some(entry) if entry.deleted => Err(Rejection::Deleted),
            Some(entry) => Ok(entry),
        }
    }

    fn changeable(
        &mut self,
        id: CommentId,
        who: UserId,
        moderator: bool,
        if_version: Option<i64>,
    ) -> Result<&mut Entry, Rejection> {
        let entry = self.live(id)?;
        if entry.text.author != who && !moderator {
            return Err(Rejection::NotAuthor);
        }
        if if_version.is_some_and(|seen| seen != entry.version) {
            return Err(Rejection::VersionMismatch { version: entry.version });
        }
        Ok(entry)
    }

    /// Does what the command asks, as the rules read when told in a few words; says whether anything changed.
    fn apply(&mut self, command: &Command) -> Result<bool, Rejection> {
        if self.closed {
            return Err(Rejection::Closed);
        }
        match command.clone() {
            Command::Add { id, author, body, parent, at } => {
                if self.comments.contains_key(&id) {
                    return Err(Rejection::Exists);
                }
                if let Some(parent) = parent {
                    self.live(parent).map_err(|no| if no == Rejection::NoSuchComment { Rejection::NoSuchParent } else { no })?;
                }
                let text = Text { author, body, created_at: at, updated_at: at };
                self.comments.insert(id, Entry { parent, text, version: 1, likes: BTreeSet::new(), deleted: false });
                Ok(true)
            }
            Command::Edit { comment, editor, body, if_version, at } => {
                let entry = self.changeable(comment, editor, false, if_version)?;
                let changed = entry.text.body != body;
                if changed {
                    entry.text = Text { body, updated_at: at, ..entry.text.clone() };
                    entry.version += 1;
                }
                Ok(changed)
            }
            Command::Delete { comment, by, moderator, if_version, .. } => {
                let entry = self.changeable(comment, by, moderator, if_version)?;
                entry.deleted = true;
                entry.version += 1;
                while let Some(bare) =
                    self.comments.iter().find(|(id, entry)| entry.deleted && self.replies(**id).next().is_none())
                {
                    let bare = *bare.0;
                    self.comments.remove(&bare);
                }
                Ok(true)
            }
            Command::Like { comment, user, on } => {
                let likes = &mut self.live(comment)?.likes;
                Ok(if on { likes.insert(user) } else { likes.remove(&user) })
            }
            Command::Import { .. } => unreachable!("the model is asked for one comment at a time"),
        }
    }

    /// What SQL would say to the thread's questions.
    fn facts(&self, command: &Command) -> Facts {
        let (id, user) = match command {
            Command::Edit { comment, editor: user, .. }
            | Command::Delete { comment, by: user, .. }
            | Command::Like { comment, user, .. } => (comment, user),
            Command::Add { .. } | Command::Import { .. } => return Facts::default(),
        };
        let entry = self.comments.get(id).filter(|entry| !entry.deleted);
        let liked = entry.is_some_and(|entry| entry.likes.contains(user));
        Facts { text: entry.map(|entry| entry.text.clone()), liked, ..Facts::default() }
    }
}

/// A command whose comments are drawn from what is there when it comes.
#[derive(Clone, Debug)]
enum Step {
    Add { id: u8, parent: Option<Index>, by: u8 },
    Edit { comment: Index, by: u8, body: u8, seen: Option<i64> },
    Delete { comment: Index, by: u8, moderator: bool },
    Like { comment: Index, by: u8, on: bool },
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0..3_u8;
    prop_oneof![
        60 => (any::<u8>(), prop::option::weighted(0.8, any::<Index>()), user.clone())
            .prop_map(|(id, parent, by)| Step::Add { id, parent, by }),
        20 => (any::<Index>(), user.clone(), 0..3_u8, prop::option::weighted(0.3, 1..3_i64))
            .prop_map(|(comment, by, body, seen)| Step::Edit { comment, by, body, seen }),
        20 => (any::<Index>(), user.clone(), any::<bool>()).prop_map(|(comment, by, moderator)| Step::Delete { comment, by, moderator }),
        30 => (any::<Index>(), user, any::<bool>()).prop_map(|(comment, by, on)| Step::Like { comment, by, on }),
        1 => Just(Step::Close),
    ]
}

fn command(step: &Step, model: &Model) -> Option<Command> {
    // An id that was never there is as good a question as any other.
    let known: Vec<CommentId> = model.comments.keys().copied().chain([CommentId(Uuid::max())]).collect();
    let pick = |index: &Index| *index.get(&known);
    let user = |number: u8| UserId(Uuid::from_u128(u128::from(number)));
    let at = Timestamp::UNIX_EPOCH;
    Some(match step {
        Step::Add { id, parent, by } => Command::Add {
            id: CommentId(Uuid::from_u128(u128::from(*id))),
            author: user(*by),
            body: body("0"),
            parent: parent.as_ref().map(pick),
            at,
        },
        Step::Edit { comment, by, body: words, seen } => {
            Command::Edit { comment: pick(comment), editor: user(*by), body: body(&words.to_string()), if_version: *seen, at }
        }
        Step::Delete { comment, by, moderator } => {
            Command::Delete { comment: pick(comment), by: user(*by), moderator: *moderator, if_version: None, at }
        }
        Step::Like { comment, by, on } => Command::Like { comment: pick(comment), user: user(*by), on: *on },
        Step::Close => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_thread_does_what_a_plain_list_of_its_comments_does(steps in prop::collection::vec(step(), 0..120)) {
        let (mut model, mut thread) = (Model::default(), None);
        for step in &steps {
            let Some(command) = command(step, &model) else {
                model.closed = true;
                Thread::evolve(&mut thread, &Event::Closed);
                continue;
            };
            // Deeper than chance will go; the tree's own tests go there.
            let too_deep = matches!(&command, Command::Add { parent: Some(parent), .. }
                if model.comments.contains_key(parent) && model.depth(*parent) == DEPTH_MAX);
            prop_assume!(!too_deep);
            let decided = Thread::decide(thread.as_ref(), &command, &model.facts(&command));
            let expected = model.apply(&command);
            prop_assert_eq!(decided.as_ref().map(|events| !events.is_empty()).map_err(|no| *no), expected);
            for event in decided.iter().flatten() {
                Thread::evolve(&mut thread, event);
            }
        }
        match thread.as_ref().map(Thread::tree) {
            Some(None) => prop_assert!(model.closed),
            tree => {
                let empty = Tree::default();
                let tree = tree.flatten().unwrap_or(&empty);
                prop_assert_eq!(tree.total(), model.comments.len());
                prop_assert_eq!(tree.comment_count(), model.comments.values().filter(|entry| !entry.deleted).count());
                for (id, entry) in &model.comments {
                    let expected = Info {
                        id: id.0,
                        parent: entry.parent.map(|parent| parent.0),
                        depth: model.depth(*id),
                        like_count: entry.likes.len() as u32,
                        reply_count: model.replies(*id).filter(|reply| !reply.deleted).count() as u32,
                        version: entry.version as u32,
                        deleted: entry.deleted,
                    };
                    prop_assert_eq!(tree.get(id.0), Some(expected));
                }
            }
        }
    }
}
