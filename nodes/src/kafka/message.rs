//! Pure. A record as a Kafka message: CloudEvents in binary mode, and what a reader of ours needs besides.

use std::{fmt::Display, str::FromStr, sync::Arc};

use jiff::Timestamp;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rookery_actors::{
    event::{Record, Topic},
    ids::{Seq, ShardId},
};
use serde::Deserialize;
use uuid::Uuid;

pub(crate) const SHARD: &str = "rookery-shard";
pub(crate) const SEQ: &str = "rookery-seq";
const EPOCH: &str = "rookery-epoch";
/// Of the resource, where the payload is one: for readers who keep the newest without parsing it. Ours parse.
const VERSION: &str = "rookery-version";
const TYPE: &str = "ce_type";
const TIME: &str = "ce_time";
const TRACEPARENT: &str = "traceparent";

/// The headers of a record. The value is its payload, the key its entity's id as text.
pub(crate) fn headers(topic: Topic, shard: ShardId, record: &Record) -> OwnedHeaders {
    let service = topic.service();
    let headers = cloud_event(&format!("{service}/{shard}/{}", record.seq), &record.kind, service, record.at);
    let headers = with(headers, SHARD, &shard);
    let headers = with(headers, SEQ, &record.seq);
    let headers = with(headers, EPOCH, &record.epoch);
    let headers = match version(record) {
        Some(version) => with(headers, VERSION, &version),
        None => headers,
    };
    match &record.traceparent {
        Some(traceparent) => with(headers, TRACEPARENT, traceparent),
        None => headers,
    }
}

/// The version of the resource in the payload; sessions, follows and epochs have none.
fn version(record: &Record) -> Option<i64> {
    #[derive(Deserialize)]
    struct Versioned {
        version: Option<i64>,
    }
    serde_json::from_str::<Versioned>(record.payload.as_deref()?).ok()?.version
}

/// The headers that any CloudEvents consumer reads.
pub(crate) fn cloud_event(id: &str, kind: &str, service: &str, at: Timestamp) -> OwnedHeaders {
    let headers = with(OwnedHeaders::new_with_capacity(13), "ce_specversion", &"1.0");
    let headers = with(headers, "ce_id", &id);
    let headers = with(headers, TYPE, &kind);
    let headers = with(headers, "ce_source", &format!("/rookery/{service}"));
    let headers = with(headers, TIME, &at);
    with(headers, "content-type", &"application/json")
}

pub(crate) fn with(headers: OwnedHeaders, key: &str, value: &impl Display) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(&value.to_string()) })
}

/// A message on one of our topics that is not one of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message has no readable {0}")]
pub(crate) struct Unreadable(&'static str);

/// The record in a message, and the shard whose log it is from.
///
/// # Errors
/// When somebody else wrote it.
pub(crate) fn read(message: &impl Message) -> Result<(ShardId, Record), Unreadable> {
    let headers = message.headers().ok_or(Unreadable("headers"))?;
    let record = Record {
        seq: parsed::<Seq, _>(headers, SEQ)?,
        epoch: parsed(headers, EPOCH)?,
        key: message.key().and_then(|key| Uuid::try_parse_ascii(key).ok()).ok_or(Unreadable("key"))?,
        kind: text(headers, TYPE).ok_or(Unreadable(TYPE))?.into(),
        payload: message.payload().map(|_| payload(message)).transpose()?,
        traceparent: text(headers, TRACEPARENT).map(Arc::from),
        at: parsed(headers, TIME)?,
    };
    Ok((ShardId(parsed(headers, SHARD)?), record))
}

fn payload(message: &impl Message) -> Result<Arc<str>, Unreadable> {
    let bytes = message.payload().unwrap_or_default();
    Ok(std::str::from_utf8(bytes).map_err(|_| Unreadable("payload"))?.into())
}

fn text<'a>(headers: &'a impl Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.key == name)?.value.and_then(|value| std::str::from_utf8(value).ok())
}

fn parsed<T: FromStr, H: Headers>(headers: &H, name: &'static str) -> Result<T, Unreadable> {
    text(headers, name).and_then(|value| value.parse().ok()).ok_or(Unreadable(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rdkafka::message::{OwnedMessage, Timestamp as Stamp};

    use super::*;

    fn message(key: &[u8], payload: Option<&str>, headers: Option<OwnedHeaders>) -> OwnedMessage {
        let payload = payload.map(|text| text.as_bytes().to_vec());
        OwnedMessage::new(payload, Some(key.to_vec()), "post.events.v1".into(), Stamp::NotAvailable, 0, 0, headers)
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_went(
            shard in 0u16..512, seq in 1i64.., epoch in 1i64.., key: u128, micros in 0i64..4_000_000_000_000_000,
            payload: Option<String>, trace in proptest::option::of("[0-9a-f-]{1,55}"),
        ) {
            let record = Record {
                seq,
                epoch,
                key: Uuid::from_u128(key),
                kind: "post.created".into(),
                payload: payload.map(Arc::from),
                traceparent: trace.map(Arc::from),
                at: Timestamp::from_microsecond(micros).unwrap(),
            };
            let headers = headers(Topic::Posts, ShardId(shard), &record);
            let message = message(record.key.to_string().as_bytes(), record.payload.as_deref(), Some(headers));
            prop_assert_eq!(read(&message), Ok((ShardId(shard), record)));
        }
    }

    fn record(payload: Option<&str>) -> Record {
        Record {
            seq: 7,
            epoch: 2,
            key: Uuid::from_u128(1),
            kind: "post.updated".into(),
            payload: payload.map(Arc::from),
            traceparent: None,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_resource_says_its_version_and_what_is_none_says_none() {
        let said = |payload| text(&headers(Topic::Posts, ShardId(3), &record(payload)), VERSION).map(str::to_owned);
        assert_eq!(said(Some(r#"{"id":"x","title":"version","version":12}"#)).as_deref(), Some("12"));
        for payload in [Some(r#"{"follower":"x"}"#), Some("[]"), None] {
            assert_eq!(said(payload), None, "{payload:?}");
        }
    }

    #[test]
    fn a_message_without_a_version_is_read_as_one_with_it() {
        let record = record(Some(r#"{"version":12}"#));
        let all = headers(Topic::Posts, ShardId(3), &record);
        let mut without = OwnedHeaders::new();
        for header in all.iter().filter(|header| header.key != VERSION) {
            without = without.insert(header);
        }
        assert_eq!(all.count(), without.count() + 1);
        for headers in [all, without] {
            let message = message(record.key.to_string().as_bytes(), record.payload.as_deref(), Some(headers));
            assert_eq!(read(&message), Ok((ShardId(3), record.clone())));
        }
    }

    #[test]
    fn a_stranger_s_message_is_told_apart() {
        assert_eq!(read(&message(b"key", Some("{}"), None)), Err(Unreadable("headers")));
        let headers = cloud_event("1", "order.created", "shop", Timestamp::UNIX_EPOCH);
        assert_eq!(read(&message(b"key", Some("{}"), Some(headers))), Err(Unreadable(SEQ)));
    }
}
