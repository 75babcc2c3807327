//! Segments that one replica makes and the other copies (ADR 0014).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::{
    Answer,
    index::{Commit, Segments, Snapshot},
};
use crate::{
    entity::Failure,
    event::Source,
    ids::{Seq, ShardId},
};

/// How long an offer holds that its index has caught up.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// How long the files of a commit are kept for whoever copies them, since they were last asked for.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Bytes of files in one answer: enough for the segment of a busy second, and far from what a link carries at once.
const PIECES_BYTES_MAX: usize = 1 << 20;

/// What another replica may copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offered {
    /// Grows with whatever is new.
    pub(crate) news: u64,
    /// Names the commit.
    pub(crate) commit: Uuid,
    /// The commit, unless whoever asks has it.
    pub(crate) files: Option<Commit>,
    /// What it contains, or the index whose it is.
    pub(crate) positions: Vec<(Source, Seq)>,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The file by its number in the commit.
    pub(crate) file: usize,
    /// Where it begins.
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

/// Bytes that travel as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// The segments of a replica that makes its own, for those that copy them.
#[derive(Clone)]
pub(crate) struct Offer(Arc<Inner>);

struct Inner {
    state: watch::Sender<Option<State>>,
    /// The last commits that were asked for, the newest at the end.
    kept: Mutex<Vec<Kept>>,
}

#[derive(Clone)]
struct State {
    news: u64,
    commit: Uuid,
    positions: HashMap<Source, Seq>,
    /// When the index had caught up.
    at: Instant,
    segments: Segments,
}

struct Kept {
    commit: Uuid,
    snapshot: Arc<Snapshot>,
    asked: Instant,
}

impl Default for Offer {
    fn default() -> Self {
        Self(Arc::new(Inner { state: watch::Sender::new(None), kept: Mutex::default() }))
    }
}

impl Offer {
    /// The index has caught up with these positions; `changed`: by a commit.
    pub(crate) fn publish(&self, segments: Segments, positions: &HashMap<Source, Seq>, changed: bool) {
        self.forget_old();
        self.0.state.send_if_modified(|state| match state {
            Some(state) if !changed && state.positions == *positions => {
                state.at = Instant::now();
                false
            }
            _ => {
                // Nobody takes the news of one life for those of another.
                let (news, commit) = match state {
                    Some(state) if !changed => (state.news + 1, state.commit),
                    Some(state) => (state.news + 1, Uuid::new_v4()),
                    None => (Uuid::new_v4().as_u64_pair().0 >> 1, Uuid::new_v4()),
                };
                *state = Some(State { news, commit, positions: positions.clone(), at: Instant::now(), segments });
                true
            }
        });
    }

    /// There are no segments to be had here any more.
    pub(crate) fn withdraw(&self) {
        self.0.state.send_if_modified(|state| state.take().is_some());
        self.forget_old();
    }

    /// What there is; waits a while for other news than those that are known.
    ///
    /// # Errors
    /// When nothing is offered here.
    pub(crate) async fn news(&self, shard: ShardId, seen: u64, known: Option<Uuid>, wait: Duration) -> Result<Answer, Failure> {
        let mut state = self.0.state.subscribe();
        let is_news = |state: &Option<State>| state.as_ref().is_none_or(|state| state.news != seen);
        // Not in time is no error.
        let _ = timeout_at(Instant::now() + wait, state.wait_for(is_news)).await;
        let state = state.borrow().clone().filter(|state| state.at.elapsed() < FRESH_FOR);
        let State { news, commit, positions, segments, .. } =
            state.ok_or_else(|| Failure::Unavailable(format!("no segments of search shard {shard} are made here")))?;
        let files = if known == Some(commit) { None } else { Some(self.snapshot(commit, segments).await?.commit().clone()) };
        Ok(Answer::Offered(Offered { news, commit, files, positions: positions.into_iter().collect() }))
    }

    /// Parts of files of a commit, from these places on, as much as travels well.
    ///
    /// # Errors
    /// When the commit is not kept any more, or cannot be read.
    pub(crate) async fn pieces(&self, commit: Uuid, wanted: Vec<(usize, u64)>) -> Result<Answer, Failure> {
        let gone = || Failure::Moved(format!("commit {commit} of an index is not kept any more"));
        let snapshot = self.kept(commit).ok_or_else(gone)?;
        let read = move || {
            let (mut pieces, mut left) = (Vec::new(), PIECES_BYTES_MAX);
            for (file, offset) in wanted {
                if left == 0 {
                    break;
                }
                let bytes = snapshot.piece(file, offset, left)?;
                left -= bytes.len();
                pieces.push(Piece { file, offset, bytes: Bytes(bytes) });
            }
            Ok::<_, std::io::Error>(pieces)
        };
        Ok(Answer::Pieces(spawn_blocking(read).await.expect("reading does not panic").map_err(unreadable)?))
    }

    async fn snapshot(&self, commit: Uuid, segments: Segments) -> Result<Arc<Snapshot>, Failure> {
        if let Some(snapshot) = self.kept(commit) {
            return Ok(snapshot);
        }
        let snapshot = spawn_blocking(move || segments.snapshot()).await.expect("reading does not panic").map_err(unreadable)?;
        let snapshot = Arc::new(snapshot);
        let kept = Kept { commit, snapshot: Arc::clone(&snapshot), asked: Instant::now() };
        self.0.kept.lock().expect("no panic under this lock").push(kept);
        Ok(snapshot)
    }

    fn kept(&self, commit: Uuid) -> Option<Arc<Snapshot>> {
        let mut kept = self.0.kept.lock().expect("no panic under this lock");
        let kept = kept.iter_mut().rfind(|kept| kept.commit == commit)?;
        kept.asked = Instant::now();
        Some(Arc::clone(&kept.snapshot))
    }

    fn forget_old(&self) {
        self.0.kept.lock().expect("no panic under this lock").retain(|kept| kept.asked.elapsed() < KEPT_FOR);
    }
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::Unavailable(format!("the segments of an index cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::Topic,
        search::index::{Document, Kind, Partition, Position, Settings},
    };

    const SHARD: ShardId = ShardId(0);

    fn positions(seq: Seq) -> HashMap<Source, Seq> {
        HashMap::from([(Source { topic: Topic::Posts, shard: SHARD }, seq)])
    }

    /// An index with so many documents more, which offers them.
    fn commit(partition: &mut Partition, offer: &Offer, seq: u64) {
        let document = Document {
            kind: Kind::Post,
            id: Uuid::from_u128(seq.into()),
            version: 1,
            author: None,
            tags: Vec::new(),
            title: None,
            body: "rust".to_owned(),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            post_id: None,
            deleted: false,
        };
        partition.apply(&[(seq, document)]).unwrap();
        partition.commit(Position { applied_seq: seq, ..Position::default() }).unwrap();
        offer.publish(partition.segments(), &positions(seq.cast_signed()), true);
    }

    async fn news(offer: &Offer, seen: u64, known: Option<Uuid>) -> Option<Offered> {
        match offer.news(SHARD, seen, known, Duration::from_millis(1)).await {
            Ok(Answer::Offered(offered)) => Some(offered),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_commit_is_told_once_and_positions_whenever_they_move() {
        let folder = tempfile::tempdir().unwrap();
        let mut partition = Partition::open(folder.path(), Settings::default()).unwrap();
        let offer = Offer::default();
        assert!(news(&offer, 0, None).await.is_none(), "nothing is offered");
        commit(&mut partition, &offer, 1);
        let first = news(&offer, 0, None).await.unwrap();
        assert!(first.files.is_some());
        offer.publish(partition.segments(), &positions(2), false);
        let second = news(&offer, first.news, Some(first.commit)).await.unwrap();
        assert_eq!((second.commit, second.files.is_none()), (first.commit, true));
        assert_eq!(second.positions.into_iter().collect::<HashMap<_, _>>(), positions(2));
        commit(&mut partition, &offer, 3);
        let third = news(&offer, second.news, Some(second.commit)).await.unwrap();
        assert!(third.commit != first.commit && third.files.is_some());
        offer.withdraw();
        assert!(news(&offer, third.news, Some(third.commit)).await.is_none(), "it is made elsewhere now");
    }

    #[tokio::test]
    async fn the_files_of_a_commit_are_kept_for_whoever_copies_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut partition = Partition::open(folder.path(), Settings::default()).unwrap();
        let offer = Offer::default();
        commit(&mut partition, &offer, 1);
        let offered = news(&offer, 0, None).await.unwrap();
        // Enough for merges, which make the first segment superfluous.
        (2..20).for_each(|seq| commit(&mut partition, &offer, seq));
        partition.close().unwrap();
        let length = offered.files.unwrap().length(0);
        let Ok(Answer::Pieces(pieces)) = offer.pieces(offered.commit, vec![(0, 0)]).await else {
            panic!("the files are gone");
        };
        assert_eq!((pieces[0].file, pieces[0].bytes.0.len() as u64), (0, length));
        assert!(matches!(offer.pieces(Uuid::nil(), vec![(0, 0)]).await, Err(Failure::Moved(_))));
    }
}
