use serde_json::json;

use crate::client::{Answer, anybody, eventually, sign_up};

#[tokio::test]
async fn a_post_is_published_read_edited_and_deleted() {
    let ada = sign_up("post_life").await;
    let body = json!({"title": " Hello ", "body": "*hi*<script>x</script>", "tags": ["life-1", "life-1"]});
    let made = ada.post("/posts", body).await.is(201);
    let path = format!("/posts/{}", made.text("/id"));
    assert_eq!(made.header("location"), format!("/api/v1{path}"));
    assert_eq!((made.text("/title"), &made.body["tags"], &made.body["liked"]), ("Hello", &json!(["life-1"]), &json!(false)));
    assert!(!made.header("x-search-token").is_empty());

    let read = anybody().get(&path).await.is(200);
    assert_eq!(read.text("/body_html"), "<p><em>hi</em></p>\n");
    assert!(read.body.get("liked").is_none() && read.body["edited"] == false);
    let etag = read.header("etag").to_owned();
    let not_modified = anybody().with("if-none-match", &etag).get(&path).await.is(304);
    assert_eq!(not_modified.header("etag"), etag);

    let edited = ada.with("if-match", &etag).patch(&path, json!({"title": "Changed"})).await.is(200);
    assert_eq!((edited.text("/title"), &edited.body["version"], &edited.body["edited"]), ("Changed", &json!(2), &json!(true)));
    ada.with("if-match", &etag).patch(&path, json!({"title": "Again"})).await.is(412);
    let bob = sign_up("post_stranger").await;
    bob.patch(&path, json!({"title": "Mine"})).await.is(403);
    bob.delete(&path).await.is(403);
    anybody().patch(&path, json!({"title": "Nobody's"})).await.is(401);

    ada.with("if-match", &etag).delete(&path).await.is(412);
    ada.delete(&path).await.is(204);
    for answer in [anybody().get(&path).await, ada.delete(&path).await, ada.put(&format!("{path}/like")).await] {
        answer.is(404);
    }
}

#[tokio::test]
async fn a_like_counts_once_and_changes_the_tag_but_not_the_version() {
    let ada = sign_up("post_liker").await;
    let path = ada.publish("Likeable").await;
    let before = anybody().get(&path).await.is(200);
    for _ in 0..2 {
        ada.put(&format!("{path}/like")).await.is(204);
    }
    let liked = ada.get(&path).await.is(200);
    assert_eq!((&liked.body["liked"], &liked.body["like_count"]), (&json!(true), &json!(1)));
    let after = anybody().get(&path).await.is(200);
    assert_ne!(after.header("etag"), before.header("etag"));
    assert!(after.text("/body_html").contains("A body."));
    // A like meanwhile is no conflict.
    ada.with("if-match", before.header("etag")).patch(&path, json!({"title": "Liked"})).await.is(200);
    for _ in 0..2 {
        ada.delete(&format!("{path}/like")).await.is(204);
    }
    assert_eq!(ada.get(&path).await.is(200).body["like_count"], 0);
}

#[tokio::test]
async fn a_retry_under_a_key_gets_the_first_post() {
    let ada = sign_up("post_keyed").await.with("idempotency-key", "post-1");
    let body = json!({"title": "Once"});
    let first = ada.post("/posts", body.clone()).await.is(201);
    let again = ada.post("/posts", body.clone()).await.is(201);
    assert_eq!(first.text("/id"), again.text("/id"));
    ada.post("/posts", json!({"title": "Twice"})).await.is(409);
    let bob = sign_up("post_keyed2").await.with("idempotency-key", "post-1");
    assert_ne!(bob.post("/posts", body).await.is(201).text("/id"), first.text("/id"));
    assert_eq!(anybody().get("/users/post_keyed/posts").await.is(200).items().len(), 1);
}

#[tokio::test]
async fn a_list_is_walked_page_by_page_in_every_order() {
    let ada = sign_up("post_walker").await;
    let mut newest = Vec::new();
    for n in 0..5 {
        let body = json!({"title": format!("Walk {n}"), "tags": ["walked", if n % 2 == 0 { "even" } else { "odd" }]});
        newest.insert(0, ada.post("/posts", body).await.is(201).text("/id").to_owned());
    }
    ada.put(&format!("/posts/{}/like", newest[3])).await.is(204);
    for (query, expected) in [
        ("tag=walked", newest.clone()),
        ("author=post_walker&sort=top", [3, 0, 1, 2, 4].map(|n| newest[n].clone()).to_vec()),
        ("author=Post_Walker&tag=even", [0, 2, 4].map(|n| newest[n].clone()).to_vec()),
    ] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = anybody().get(&format!("/posts?{query}&limit=2{cursor}")).await.is(200);
            seen.extend(page.items().iter().map(|post| post["id"].as_str().unwrap().to_owned()));
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen, expected, "{query}");
    }
    let tags = anybody().get("/tags?limit=100").await.is(200);
    assert!(tags.items().contains(&json!({"tag": "walked", "post_count": 5})));
    // Other tests add tags meanwhile: those of this one are each there once, in order.
    let (mut walked, mut path) = (Vec::new(), "/tags?limit=1".to_owned());
    loop {
        let page = anybody().get(&path).await.is(200);
        assert!(page.items().len() <= 1);
        walked.extend_from_slice(page.items());
        let Some(next) = page.body["next_cursor"].as_str() else { break };
        path = format!("/tags?limit=1&cursor={next}");
    }
    walked.retain(|tag| ["walked", "even", "odd"].contains(&tag["tag"].as_str().unwrap()));
    let used = |tag: &str, posts: u64| json!({"tag": tag, "post_count": posts});
    assert_eq!(walked, [used("walked", 5), used("even", 3), used("odd", 2)]);
    anybody().get("/tags?cursor=x").await.is(400);
    assert!(anybody().get("/posts?author=post_nobody").await.is(200).items().is_empty());
}

/// Pages are kept as they were rendered, as long as they are what they would be now.
#[tokio::test]
async fn a_page_that_was_asked_for_before_shows_what_was_written_since() {
    let ada = sign_up("post_kept").await;
    let page = async || {
        let asked = async || anybody().get("/posts?tag=kept-page").await.is(200);
        (asked().await, asked().await).1
    };
    let item = |page: &Answer, field: &str| page.body["items"][0][field].clone();
    assert_eq!(page().await.items().len(), 0);
    let made = ada.post("/posts", json!({"title": "Kept", "tags": ["kept-page"]})).await.is(201);
    let path = format!("/posts/{}", made.text("/id"));
    assert_eq!(item(&page().await, "title"), "Kept");
    ada.patch(&path, json!({"title": "Changed"})).await.is(200);
    assert_eq!(item(&page().await, "title"), "Changed");
    ada.put(&format!("{path}/like")).await.is(204);
    assert_eq!(item(&page().await, "like_count"), 1);
    let mine = ada.get("/posts?tag=kept-page").await.is(200);
    assert_eq!(item(&mine, "liked"), true);
    assert_eq!(item(&page().await, "liked"), serde_json::Value::Null, "another's page is nobody's");
    ada.post(&format!("{path}/comments"), json!({"body": "Hi"})).await.is(201);
    eventually("the count of comments", async || (item(&page().await, "comment_count") == 1).then_some(())).await;
    ada.patch("/users/me", json!({"display_name": "Ada L."})).await.is(200);
    let renamed = async || (item(&page().await, "author")["display_name"] == "Ada L.").then_some(());
    eventually("the author's new name", renamed).await;
    ada.delete(&path).await.is(204);
    assert_eq!(page().await.items().len(), 0);
}

#[tokio::test]
async fn a_cursor_opens_only_the_list_that_gave_it() {
    let ada = sign_up("post_cursor").await;
    for n in 0..2 {
        ada.publish(&format!("Cursor {n}")).await;
    }
    let page = anybody().get("/posts?author=post_cursor&limit=1").await.is(200);
    let cursor = page.text("/next_cursor");
    let altered = if cursor.starts_with('A') { 'B' } else { 'A' };
    anybody().get(&format!("/posts?author=post_cursor&cursor={cursor}")).await.is(200);
    for other in [
        format!("/posts?cursor={cursor}"),
        format!("/posts?author=post_cursor&sort=top&cursor={cursor}"),
        format!("/posts?author=post_cursor&cursor={altered}{}", &cursor[1..]),
        "/posts?cursor=%00".to_owned(),
    ] {
        assert_eq!(anybody().get(&other).await.is(400).text("/type"), "/problems/invalid-cursor", "{other}");
    }
}
