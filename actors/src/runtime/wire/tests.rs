//! The bytes of builds up to 0.1.0, beside which this one must run.

use serde_json::json;

use super::*;
use crate::{comments, posts, users};

fn of<T: DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

const POST: &str = "01900000-0000-7000-8000-000000000001";
const ADA: &str = "01900000-0000-7000-8000-0000000000ad";
const COMMENT: &str = "01900000-0000-7000-8000-0000000000c0";
const AT: &str = "2026-11-29T12:00:00.123456Z";

fn id(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes<T: Serialize>(value: &T) -> String {
    hex(&postcard::to_allocvec(value).unwrap())
}

fn commands<T: Serialize + DeserializeOwned>(service: &str, values: serde_json::Value) -> Vec<(String, String)> {
    let serde_json::Value::Array(values) = values else { panic!("a list of commands") };
    let named = |value: serde_json::Value| {
        let name = value.as_object().and_then(|object| object.keys().next()).unwrap().clone();
        (format!("{service} {name}"), bytes(&of::<T>(value)))
    };
    values.into_iter().map(named).collect()
}

fn all_commands() -> Vec<(String, String)> {
    let session = json!({"id": ADA, "refresh_hash": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "generation": 3, "created_at": AT,
        "last_used_at": AT, "expires_at": AT, "user_agent": "curl/8"});
    let hash = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b+";
    let presented = json!({"user": ADA, "session": ADA, "generation": 2, "hash": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"});
    let users = json!([
        {"Register": {"id": ADA, "username": "ada", "email": "ada@example.org", "password_hash": hash, "session": session, "at": AT}},
        {"EditProfile": {"display_name": "Ada", "bio": "Countess", "avatar_url": "https://example.org/a.png", "if_version": 2, "at": AT}},
        {"Rotate": {"presented": presented, "next": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "at": AT,
            "lifetime": {"idle": "PT720H", "total": "PT8760H"}}},
        {"CloseSession": {"id": ADA}},
        {"Follow": {"followee": COMMENT, "on": true, "at": AT}},
        {"Delete": {"proof": hash, "at": AT}},
    ]);
    let posts = json!([
        {"Publish": {"id": POST, "author": ADA, "title": "On the Engine", "body": "It *weaves*.", "tags": ["history"], "at": AT,
            "minted": true}},
        {"Edit": {"editor": ADA, "title": null, "body": "It weaves.", "tags": null, "if_version": 1, "at": AT}},
        {"Delete": {"by": ADA, "moderator": false, "if_version": null}},
        {"Like": {"user": ADA, "on": true}},
    ]);
    let comments = json!([
        {"Add": {"id": COMMENT, "author": ADA, "body": "As the loom.", "parent": null, "at": AT}},
        {"Edit": {"comment": COMMENT, "editor": ADA, "body": "As the loom weaves.", "if_version": 1, "at": AT}},
        {"Delete": {"comment": COMMENT, "by": ADA, "moderator": true, "if_version": null, "at": AT}},
        {"Like": {"comment": COMMENT, "user": ADA, "on": false}},
    ]);
    let mut all = commands::<users::Command>("users", users);
    all.extend(commands::<posts::entity::Command>("posts", posts));
    all.extend(commands::<comments::entity::Command>("comments", comments));
    all
}

type Posts = crate::posts::PostService;

fn questions() -> Vec<(String, String)> {
    let command: posts::entity::Command = of(json!({"Like": {"user": ADA, "on": true}}));
    let context = Context {
        deadline: Instant::now(),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        // What a node knows besides about the hash does not travel.
        idempotency: Some(IdempotencyKey {
            also_hashed: vec![[9; 32]].into(),
            ..IdempotencyKey::new("ada POST /api/v1/posts/{id} k1", [7; 32])
        }),
    };
    let query: <Posts as Service>::Query = of(json!({"Get": [[POST], ADA]}));
    let record: crate::event::Record = of(json!({"seq": 7, "epoch": 2, "key": POST, "kind": "post.created", "payload": "{}",
        "traceparent": null, "at": AT}));
    let slice: Slice = of(json!({"parts": [{"source": {"topic": "comments", "shard": 5}, "position": 9, "records": [record]}]}));
    let letter: DeadLetter =
        of(json!({"source": {"topic": "users", "shard": 5}, "record": record, "reason": "it does not parse"}));
    let reader: Reader = of(json!({"node": "n2", "life": 42}));
    let log = LogAsk { positions: vec![(ShardId(5), 9)], bytes_max: 1 << 20, wait: Duration::from_secs(5) };
    let ask = Ask::<Posts> { id: id(POST), command: &command, context: &context };
    [
        ("Ask", Question::<Posts>::Ask(ask)),
        ("Query", Question::Query(&query)),
        ("Log", Question::Log(&log)),
        ("Apply", Question::Apply(ShardId(5), &slice)),
        ("Bury", Question::Bury(ShardId(5), &letter)),
        ("Replay", Question::Replay(ShardId(5), letter.source, 7)),
        ("Borrow", Question::Borrow(&reader, id(POST), &query)),
        ("Extend", Question::Extend(&reader, 3, &[])),
        ("Recall", Question::Recall(42, &of(json!({"Entities": [POST]})))),
        ("Return", Question::Return(&reader, 3)),
    ]
    .map(|(name, question)| (format!("question {name}"), bytes(&(Duration::from_millis(1_500), question))))
    .into()
}

fn answers() -> Vec<(String, String)> {
    let reply = json!({"post": {"id": POST, "author": ADA, "title": "On the Engine", "body": "It *weaves*.", "tags": ["history"],
        "created_at": AT, "updated_at": AT, "version": 1, "like_count": 2, "comment_count": 3}});
    let accepted: crate::runtime::Accepted<<Posts as Service>::Reply> = of(json!({"reply": reply, "shard": 5, "seq": 9}));
    let fetched: Fetched = of(json!({"shard": 5, "records": [{"seq": 7, "epoch": 2, "key": POST, "kind": "post.created",
        "payload": "{}", "traceparent": null, "at": AT}]}));
    let unavailable = || Failure::Unavailable("the pool is empty".to_owned());
    [
        ("Accepted", Answer::<Posts>::Asked(Ok(accepted))),
        ("Moved", Answer::Asked(Err(crate::entity::AskError::Failed(Failure::Moved("elsewhere".to_owned()))))),
        ("KeyReused", Answer::Asked(Err(crate::entity::AskError::Failed(Failure::KeyReused)))),
        ("Queried", Answer::Queried(Ok(of(json!({"Liked": [POST]}))))),
        ("Log", Answer::Log(Ok(vec![fetched]))),
        ("OutOfRange", Answer::Log(Err(LogRefusal::OutOfRange { shard: ShardId(5), position: 1, floor: 4, head: 9 }))),
        ("Applied", Answer::Applied(Ok(()))),
        ("Replayed", Answer::Replayed(Ok(true))),
        ("Refused", Answer::Refused(unavailable())),
        (
            "Lent",
            Answer::Lent(Ok(of(json!({"Liked": []}))), Some(Loan { session: 3, lasts: Duration::from_millis(400), number: 7 })),
        ),
        ("Extended", Answer::Extended(None)),
        ("Recalled", Answer::Recalled(true)),
    ]
    .map(|(name, answer)| (format!("answer {name}"), bytes(&answer)))
    .into()
}

/// Bodies that have gained fields at their ends since, and the bytes of those here.
const GROWN: [(&str, &str); 2] = [("question Extend: ", "00"), ("answer Lent: ", "07")];

#[test]
fn what_nodes_of_before_say_is_what_this_build_says() {
    let now: String =
        [all_commands(), questions(), answers()].concat().iter().map(|(name, hex)| format!("{name}: {hex}\n")).collect();
    if let Some(path) = std::env::var_os("KEEP_BYTES") {
        std::fs::write(path, &now).unwrap();
    }
    let kept = include_str!("fixtures_v2.txt");
    for (now, kept) in now.lines().zip(kept.lines()) {
        let gained = GROWN.iter().find(|(name, _)| kept.starts_with(name)).map_or("", |(_, gained)| gained);
        assert_eq!(now, format!("{kept}{gained}"));
    }
    assert_eq!(now.lines().count(), kept.lines().count());
}

fn kept_bytes(name: &str) -> Vec<u8> {
    let line = include_str!("fixtures_v2.txt").lines().find_map(|line| line.strip_prefix(name)).unwrap();
    (0..line.len() / 2).map(|n| u8::from_str_radix(&line[2 * n..2 * n + 2], 16).unwrap()).collect()
}

#[test]
fn loans_and_evictions_of_nodes_before_have_no_numbers() {
    let question: (Duration, Asked<Posts>) = decode(&kept_bytes("question Extend: ")).unwrap();
    let Asked::Extend(_, 3, evicted) = question.1 else { panic!("that was asked") };
    assert!(evicted.is_empty());
    let answer: Answer<Posts> = decode(&kept_bytes("answer Lent: ")).unwrap();
    let Answer::Lent(_, loan) = answer else { panic!("that was answered") };
    assert_eq!(loan, Some(Loan { session: 3, lasts: Duration::from_millis(400), number: 0 }));
}

#[test]
fn a_body_may_gain_fields_at_its_end() {
    type Before = (Uuid, String);
    type Now = (Uuid, String, Option<String>, Vec<u64>, bool);
    let before: Before = (id(POST), "said".to_owned());
    let now: Now = (id(POST), "said".to_owned(), Some("more".to_owned()), vec![7], true);
    let read: Now = decode(&postcard::to_allocvec(&before).unwrap()).unwrap();
    assert_eq!(read, (id(POST), "said".to_owned(), None, vec![], false), "an older build sends fewer");
    let read: Before = decode(&postcard::to_allocvec(&now).unwrap()).unwrap();
    assert_eq!(read, before, "a newer build sends more");
}
