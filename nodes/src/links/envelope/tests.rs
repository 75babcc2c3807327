use proptest::prelude::*;

use super::*;

const HEADER: Header = Header { link: 7, received: 9 };

fn written(write: impl FnOnce(&mut Writer)) -> Bytes {
    written_in(Layout::Framed, write)
}

fn written_in(layout: Layout, write: impl FnOnce(&mut Writer)) -> Bytes {
    let mut writer = Writer::new(HEADER, layout);
    write(&mut writer);
    writer.finish().into()
}

fn read(batch: Bytes) -> Result<Vec<Entry>, Malformed> {
    read_in(Layout::Framed, batch)
}

fn read_in(layout: Layout, batch: Bytes) -> Result<Vec<Entry>, Malformed> {
    let (header, entries) = Reader::new(batch)?;
    assert_eq!(header, HEADER);
    entries.in_layout(layout).collect()
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Bare), Just(Layout::Framed)]
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
    fn what_is_written_is_read(layout in layout(), entries in prop::collection::vec(entry(), 0..8)) {
        let batch = written_in(layout, |writer| entries.iter().for_each(|entry| write(writer, entry)));
        prop_assert_eq!(read_in(layout, batch), Ok(entries));
    }

    #[test]
    fn what_a_later_build_adds_is_passed_over(known in entry(), more in prop::collection::vec(any::<u8>(), 0..64), kind in 6_u8..) {
        let mut batch = written(|writer| write(writer, &known)).to_vec();
        // Fields after those that we know, ...
        let at = 16 + 1;
        let length = u32::from_le_bytes(batch[at..at + 4].try_into().unwrap()) + u32::try_from(more.len()).unwrap();
        batch[at..at + 4].copy_from_slice(&length.to_le_bytes());
        batch.extend_from_slice(&more);
        // ... and an entry of a kind that we do not know, before one that we do.
        batch.push(kind);
        batch.extend_from_slice(&u32::try_from(more.len()).unwrap().to_le_bytes());
        batch.extend_from_slice(&more);
        let mut writer = Writer::new(HEADER, Layout::Framed);
        writer.ping(7);
        batch.extend_from_slice(&writer.finish()[16..]);
        prop_assert_eq!(read(batch.into()), Ok(vec![known, Entry::Ping(7)]));
    }

    #[test]
    fn a_batch_that_was_cut_is_noticed(layout in layout(), entry in entry(), at in any::<prop::sample::Index>()) {
        let batch = written_in(layout, |writer| write(writer, &entry));
        let empty = written(|_| {}).len();
        let cut = empty + 1 + at.index(batch.len() - empty - 1);
        prop_assert!(read_in(layout, batch.slice(..cut.min(batch.len() - 1)).clone()).is_err() || cut >= batch.len());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for layout in [Layout::Bare, Layout::Framed] {
            if let Ok((_, entries)) = Reader::new(bytes.clone().into()) {
                let _ = entries.in_layout(layout).collect::<Vec<_>>();
            }
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

#[test]
fn an_outcome_of_a_later_build_is_an_unknown_outcome() {
    let mut batch = written(|writer| writer.reply(1, &Outcome::Expired)).to_vec();
    *batch.last_mut().unwrap() = 99;
    assert_eq!(read(batch.into()), Ok(vec![Entry::Reply { id: 1, outcome: Outcome::Crashed }]));
}

/// The bytes of builds up to 0.1.0, beside which this one must run.
#[test]
fn the_batches_of_version_2_are_what_they_were() {
    let head = RequestHead {
        service: 3,
        hops: 1,
        remaining_us: 1_500_000,
        epoch: 7,
        request_id: "0192f0c1".into(),
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
    };
    let entries = [
        Entry::Request { id: 1, head: head.clone(), body: Body::Whole(Bytes::from_static(b"question")) },
        Entry::Request { id: 2, head, body: Body::Split(300_000) },
        Entry::Reply { id: 1, outcome: Outcome::Done(Body::Whole(Bytes::from_static(b"answer"))) },
        Entry::Reply { id: 2, outcome: Outcome::Refused(Refusal::UnknownService) },
        Entry::Reply { id: 3, outcome: Outcome::Overloaded },
        Entry::Reply { id: 4, outcome: Outcome::Refused(Refusal::Declined(Bytes::from_static(b"no"))) },
        Entry::Reply { id: 5, outcome: Outcome::Expired },
        Entry::Reply { id: 6, outcome: Outcome::Stopping },
        Entry::Reply { id: 7, outcome: Outcome::TimedOut },
        Entry::Reply { id: 8, outcome: Outcome::Crashed },
        Entry::Reply { id: 9, outcome: Outcome::TooLarge(20_000_000) },
        Entry::Chunk { of: Part::Request, id: 2, bytes: Bytes::from_static(b"first") },
        Entry::Chunk { of: Part::Reply, id: 9, bytes: Bytes::from_static(b"last") },
        Entry::Ping(11),
        Entry::Pong(12),
    ];
    let kept = include_str!("../../../tests/fixtures/links_v2_batch.hex");
    let batch = written_in(Layout::Bare, |writer| entries.iter().for_each(|entry| write(writer, entry)));
    let shown: String = batch.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(shown, kept.trim());
    assert_eq!(read_in(Layout::Bare, batch), Ok(entries.to_vec()));
}
