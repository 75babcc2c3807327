use serde_json::{Value, json};

use crate::client::{anybody, eventually, sign_up};

#[tokio::test]
async fn a_thread_is_written_walked_edited_and_keeps_a_tombstone() {
    let ada = sign_up("comment_ada").await;
    let post = ada.publish("Discussed").await;
    let thread = format!("{post}/comments");
    let top = ada.post(&thread, json!({"body": "Top."})).await.is(201);
    let path = format!("{thread}/{}", top.text("/id"));
    assert_eq!(top.header("location"), format!("/api/v1{path}"));
    let reply = ada.post(&thread, json!({"body": "Reply.", "parent_id": top.text("/id")})).await.is(201);
    assert_eq!((&reply.body["depth"], reply.text("/parent_id")), (&json!(1), top.text("/id")));

    let page = anybody().get(&format!("{thread}?sort=old&limit=1")).await.is(200);
    assert_eq!((&page.items()[0]["body"], &page.items()[0]["reply_count"]), (&json!("Top."), &json!(1)));
    let cursor = page.text("/next_cursor");
    let next = anybody().get(&format!("{thread}?sort=old&limit=1&cursor={cursor}")).await.is(200);
    assert_eq!((&next.items()[0]["body"], &next.body["next_cursor"]), (&json!("Reply."), &Value::Null));
    anybody().get(&format!("{thread}?sort=new&cursor={cursor}")).await.is(400);
    let below = anybody().get(&format!("{thread}?parent={}", top.text("/id"))).await.is(200);
    assert_eq!(below.items().len(), 1);
    assert_eq!(anybody().get(&format!("{thread}?depth=1")).await.is(200).items().len(), 1);

    let read = anybody().get(&path).await.is(200);
    let etag = read.header("etag").to_owned();
    anybody().with("if-none-match", &etag).get(&path).await.is(304);
    let edited = ada.with("if-match", &etag).patch(&path, json!({"body": "Edited."})).await.is(200);
    assert_eq!((edited.text("/body"), &edited.body["edited"]), ("Edited.", &json!(true)));
    ada.with("if-match", &etag).patch(&path, json!({"body": "Late."})).await.is(412);
    let bob = sign_up("comment_bob").await;
    bob.patch(&path, json!({"body": "Mine."})).await.is(403);
    for _ in 0..2 {
        bob.put(&format!("{path}/like")).await.is(204);
    }
    let liked = bob.get(&path).await.is(200);
    assert_eq!((&liked.body["liked"], &liked.body["like_count"]), (&json!(true), &json!(1)));
    bob.delete(&format!("{path}/like")).await.is(204);

    bob.delete(&path).await.is(403);
    ada.delete(&path).await.is(204);
    let tombstone = anybody().get(&path).await.is(200);
    assert_eq!(
        (&tombstone.body["deleted"], &tombstone.body["body"], &tombstone.body["author"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    let late = ada.post(&thread, json!({"body": "Late.", "parent_id": top.text("/id")})).await.is(422);
    assert_eq!(late.errors(), [("parent_id", "deleted")]);
    eventually("the count of comments", async || (anybody().get(&post).await.is(200).body["comment_count"] == 1).then_some(()))
        .await;
}

#[tokio::test]
async fn what_is_not_there_is_not_commented_on() {
    let ada = sign_up("comment_lost").await;
    let nowhere = format!("/posts/{}/comments", uuid::Uuid::now_v7());
    ada.post(&nowhere, json!({"body": "Hello?"})).await.is(404);
    anybody().get(&nowhere).await.is(404);
    let post = ada.publish("Here").await;
    anybody().get(&format!("{post}/comments/{}", uuid::Uuid::now_v7())).await.is(404);
    let stray = json!({"body": "To whom?", "parent_id": uuid::Uuid::now_v7()});
    assert_eq!(ada.post(&format!("{post}/comments"), stray).await.is(422).errors(), [("parent_id", "not_found")]);
    ada.post(&format!("{post}/comments"), json!({"body": ""})).await.is(422);
}

#[tokio::test]
async fn a_retry_under_a_key_gets_the_first_comment() {
    let ada = sign_up("comment_keyed").await;
    let thread = format!("{}/comments", ada.publish("Keyed").await);
    let ada = ada.with("idempotency-key", "comment-1");
    let first = ada.post(&thread, json!({"body": "Once."})).await.is(201);
    assert_eq!(ada.post(&thread, json!({"body": "Once."})).await.is(201).text("/id"), first.text("/id"));
    ada.post(&thread, json!({"body": "Twice."})).await.is(409);
    assert_eq!(anybody().get(&thread).await.is(200).items().len(), 1);
}

/// What was broken: a key was the route's without the post, so it met the key of another post that lies in the same shard.
#[tokio::test]
async fn a_key_is_the_thread_s_own_wherever_other_threads_lie() {
    let ada = sign_up("comment_paths").await;
    let mut by_shard = std::collections::HashMap::new();
    let (one, other) = loop {
        let post = ada.publish("Somewhere").await;
        let id: uuid::Uuid = post.rsplit('/').next().unwrap().parse().unwrap();
        if let Some(before) = by_shard.insert(rookery_actors::ids::shard_of(id, 256), post.clone()) {
            break (before, post);
        }
    };
    let keyed = ada.with("idempotency-key", "comment-1");
    for post in [&one, &other] {
        let thread = format!("{post}/comments");
        let first = keyed.post(&thread, json!({"body": "Here."})).await.is(201);
        assert_eq!(keyed.post(&thread, json!({"body": "Here."})).await.is(201).text("/id"), first.text("/id"));
        keyed.post(&thread, json!({"body": "There."})).await.is(409);
    }
}
