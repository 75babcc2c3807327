use proptest::prelude::*;

use super::*;

const HEADER: Header = Header { link: 7, received: 9 };

fn written(write: impl FnOnce(&mut Writer)) -> Bytes {
    let mut writer = Writer::new(HEADER);
    write(&mut writer);
    writer.finish().into()
}

fn read(batch: Bytes) -> Result<Vec<Entry>, Malformed> {
    let (header, entries) = Reader::new(batch)?;
    assert_eq!(header, HEADER);
    entries.collect()
}

fn write(writer: &mut Writer, entry: &Entry) {
    match entry {
        Entry::Request { id, head, body } => writer.request(*id, head, body),
        Entry::Reply { id, outcome } => writer.reply(*id, outcome),
        Entry::Chunk { of, id, bytes } => writer.chunk(*of, *id, bytes),
        Entry::Ping(number) => writer.ping(*number),
        Entry::Pong(number) => writer.pong(*number),
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![bytes().prop_map(Body::Whole), (0..=u32::try_from(BODY_BYTES_MAX).unwrap()).prop_map(Body::Split)]
}

fn head() -> impl Strategy<Value = RequestHead> {
    (any::<[u8; 2]>(), any::<[u64; 2]>(), ".{0,20}", ".{0,20}").prop_map(|(small, large, request_id, traceparent)| RequestHead {
        service: small[0],
        hops: small[1],
        remaining_us: large[0],
        epoch: large[1],
        request_id: request_id.into(),
        traceparent: traceparent.into(),
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        body().prop_map(Outcome::Done),
        Just(Outcome::Refused(Refusal::UnknownService)),
        bytes().prop_map(|words| Outcome::Refused(Refusal::Declined(words))),
        Just(Outcome::Overloaded),
        Just(Outcome::Expired),
        Just(Outcome::Stopping),
        Just(Outcome::TimedOut),
        Just(Outcome::Crashed),
        any::<u64>().prop_map(Outcome::TooLarge),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let part = prop_oneof![Just(Part::Request), Just(Part::Reply)];
    prop_oneof![
        (any::<u64>(), head(), body()).prop_map(|(id, head, body)| Entry::Request { id, head, body }),
        (any::<u64>(), outcome()).prop_map(|(id, outcome)| Entry::Reply { id, outcome }),
        (part, any::<u64>(), bytes()).prop_map(|(of, id, bytes)| Entry::Chunk { of, id, bytes }),
        any::<u64>().prop_map(Entry::Ping),
        any::<u64>().prop_map(Entry::Pong),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..8)) {
        let batch = written(|writer| entries.iter().for_each(|entry| write(writer, entry)));
        prop_assert_eq!(read(batch), Ok(entries));
    }

    #[test]
    fn a_batch_that_was_cut_is_noticed(entry in entry(), at in any::<prop::sample::Index>()) {
        let batch = written(|writer| write(writer, &entry));
        let empty = written(|_| {}).len();
        let cut = empty + 1 + at.index(batch.len() - empty - 1);
        prop_assert!(read(batch.slice(..cut.min(batch.len() - 1)).clone()).is_err() || cut >= batch.len());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok((_, entries)) = Reader::new(bytes.into()) {
            let _ = entries.collect::<Vec<_>>();
        }
    }
}

#[test]
fn a_body_beyond_the_largest_is_refused_before_memory_is_taken() {
    let total = u32::try_from(BODY_BYTES_MAX).unwrap() + 1;
    let batch = written(|writer| writer.reply(1, &Outcome::Done(Body::Split(total))));
    assert!(read(batch).is_err());
}

#[test]
fn a_long_word_is_cut_between_letters() {
    let head = RequestHead { request_id: "é".repeat(200).into(), ..RequestHead::default() };
    let entries = read(written(|writer| writer.request(1, &head, &Body::Whole(Bytes::new())))).unwrap();
    let [Entry::Request { head, .. }] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!(head.request_id.len(), 254);
}
