//! Who is who: ids of entities, shards, epochs and incarnations.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

id!(
    /// A user; the key of the `User` entity.
    UserId
);
id!(
    /// A post; the key of the `Post` entity and of its comment thread.
    PostId
);
id!(
    /// A comment within the thread of its post.
    CommentId
);
id!(
    /// One session (one login) of a user.
    SessionId
);
id!(
    /// One start of one service on one node: the unit of a lease. Dead is final.
    Incarnation
);

/// A shard's number within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The number as Postgres keeps it.
    pub fn as_i16(self) -> i16 {
        i16::try_from(self.0).expect("a service has at most 32767 shards")
    }

    /// The number as an index into per-shard arrays.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The shard of an entity: `xxh3_64(id bytes) % shards`, fixed for the life of a database.
pub fn shard_of(id: Uuid, shards: u16) -> ShardId {
    let hash = xxhash_rust::xxh3::xxh3_64(id.as_bytes());
    ShardId((hash % u64::from(shards)) as u16)
}

/// A new UUIDv7 of this time, in a given shard if one is asked for.
///
/// Of two within a millisecond the later one is greater as well, from 250 ns on: the bits after the milliseconds are the
/// fraction of one, as RFC 9562 allows (method 3 in 6.2). 62 random bits follow.
pub fn mint(at: Timestamp, shards: u16, wanted: Option<ShardId>) -> Uuid {
    let fraction = i64::from(at.subsec_nanosecond().rem_euclid(1_000_000)) * 4_096 / 1_000_000;
    let [.., high, low] = fraction.to_be_bytes();
    loop {
        let mut rest: [u8; 10] = rand::random();
        [rest[0], rest[1]] = [high, low];
        let id = uuid_v7(at, rest);
        if wanted.is_none_or(|wanted| shard_of(id, shards) == wanted) {
            return id;
        }
    }
}

/// The UUIDv7 of a time and 80 bits of one's own: the same ones give the same id. Times before 1970 count as 1970.
pub fn uuid_v7(at: Timestamp, rest: [u8; 10]) -> Uuid {
    let millis = u64::try_from(at.as_millisecond()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &rest).into_uuid()
}

/// How often a shard changed hands; only grows.
pub type Epoch = i64;

/// The position of a record in the log of its shard; gap-free, from 1.
pub type Seq = i64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_of_an_id_never_changes() {
        // The mapping is on disk; a change of hash would orphan every entity.
        let id = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
        assert_eq!(shard_of(id, 256), ShardId(SHARD_OF_SAMPLE));
    }

    const SHARD_OF_SAMPLE: u16 = 112;

    #[test]
    fn the_later_id_is_the_greater_within_a_millisecond_too() {
        let at = |micros: i64| Timestamp::from_microsecond(1_800_000_000_000_000 + micros).unwrap();
        let ids: Vec<Uuid> = (0..3_000_i64).map(|micros| mint(at(micros), 256, None)).collect();
        assert!(ids.is_sorted() && ids.iter().all(|id| id.get_version_num() == 7));
        let millis = |id: &Uuid| id.get_timestamp().unwrap().to_unix().1 / 1_000_000;
        assert_eq!((millis(&ids[999]), millis(&ids[1_000])), (0, 1));
    }

    #[test]
    fn ids_spread_evenly_over_the_shards() {
        let mut count = [0u32; 256];
        for n in 0..256_000u128 {
            count[shard_of(Uuid::from_u128(n << 20), 256).index()] += 1;
        }
        let (min, max) = (count.iter().min(), count.iter().max());
        assert!(min > Some(&850) && max < Some(&1150), "{min:?}..{max:?}");
    }
}
