//! What clients get wrong is refused with a reason, and nothing is lost by it.

use reqwest::Method;
use serde_json::json;

use crate::client::{Answer, Client, anybody, sign_up};

async fn post(ada: &Client, body: impl Into<Vec<u8>>) -> Answer {
    ada.send_raw(Method::POST, "/api/v1/posts", Some(body.into())).await
}

#[tokio::test]
async fn a_body_that_is_no_json_is_a_400_and_one_that_is_wrong_a_422() {
    let ada = sign_up("bad_bodies").await;
    for malformed in [&b"{\"title\": "[..], b"", b"{\"title\": \"a\"} x", b"{\"title\": \"\xff\xfe\"}"] {
        assert_eq!(post(&ada, malformed).await.is(400).text("/type"), "/problems/malformed-json");
    }
    let deep = format!("{{\"title\": {}1{}}}", "[".repeat(20), "]".repeat(20));
    assert_eq!(post(&ada, deep).await.is(400).text("/type"), "/problems/nested-too-deeply");
    for (wrong, error) in [
        (r#"{"title": "a", "score": 1}"#, ("score", "unknown_field")),
        (r#"{"body": "a"}"#, ("title", "missing_field")),
        (r#"{"title": 1}"#, ("title", "invalid_type")),
        (r#"{"title": "a\u0000b"}"#, ("title", "nul_byte")),
        (r#"["arr", "body", []]"#, ("", "invalid_type")),
        (r#"{"title": ""}"#, ("title", "too_short")),
        (r#"{"title": "a", "tags": ["a", "b", "C"]}"#, ("tags[2]", "invalid_characters")),
        (r#"{"title": "a", "tags": ["a", 1]}"#, ("tags[1]", "invalid_type")),
        (r#"{"title": "\u200b\u3164"}"#, ("title", "blank")),
    ] {
        assert_eq!(post(&ada, wrong).await.is(422).errors(), [error], "{wrong}");
    }
    assert!(anybody().get("/users/bad_bodies/posts").await.is(200).items().is_empty());
}

/// Serde's and axum's words name types of ours and change with a release.
#[tokio::test]
async fn what_is_wrong_is_said_in_words_of_the_contract() {
    let ada = sign_up("bad_words").await;
    let mut told = Vec::new();
    for wrong in [r#"{"title": 1}"#, r#"{"titel": "a"}"#, r#"{}"#, r#"{"title": "a", "tags": "b"}"#, r#"{"title": x}"#, "{", "[1"]
    {
        told.push(post(&ada, wrong).await);
    }
    for query in ["/posts?limit=x", "/posts?limit=-1", "/posts?sort=best", "/posts?nonsense=1", "/search?from=yesterday&q=a"] {
        told.push(anybody().get(query).await.is(400));
    }
    for answer in told {
        let text = answer.body.to_string();
        for raw in
            ["Failed", "deserialize", "expected", " at line ", "invalid type", "unknown field", "unknown variant", "parsing"]
        {
            assert!(!text.contains(raw), "{raw:?}: {text}");
        }
    }
    let detail = async |query: &str| anybody().get(query).await.is(400).text("/detail").to_owned();
    assert_eq!(detail("/posts?limit=x").await, "limit must be a whole number");
    assert_eq!(detail("/posts?sort=best").await, "sort must be one of new, top, hot");
    assert_eq!(detail("/posts?nonsense=1").await, "nonsense is unknown: the parameters are sort, tag, author, limit, cursor");
    assert_eq!(detail("/search?q=a&from=yesterday").await, "from must be a time as in 2026-01-31T12:00:00Z");
}

#[tokio::test]
async fn a_change_to_null_is_refused_and_not_taken_for_none() {
    let ada = sign_up("bad_null").await;
    let post = ada.publish("Stays").await;
    for (path, field) in
        [(&*post, "title"), (&post, "body"), (&post, "tags"), ("/users/me", "display_name"), ("/users/me", "bio")]
    {
        let refused = ada.patch(path, json!({field: null})).await.is(422);
        assert_eq!(refused.errors(), [(field, "invalid_type")]);
    }
    assert_eq!(ada.get(&post).await.is(200).body["version"], 1);
}

#[tokio::test]
async fn a_body_of_10_mb_is_a_413() {
    let ada = sign_up("bad_large").await;
    let body = format!("{{\"title\": \"a\", \"body\": \"{}\"}}", "x".repeat(10 << 20));
    post(&ada, body).await.is(413);
}

#[tokio::test]
async fn a_body_of_another_type_is_a_415() {
    let ada = sign_up("bad_type").await.with("content-type", "text/plain");
    post(&ada, "title=a").await.is(415);
}

#[tokio::test]
async fn what_cannot_exist_is_a_404() {
    let ada = sign_up("bad_paths").await;
    for path in ["/posts/1", "/posts/%00", "/posts/%ff", "/users/%00", "/nothing", "/posts/019a0000-0000-7000-8000-000000000000"]
    {
        ada.get(path).await.is(404);
    }
}

#[tokio::test]
async fn a_wrong_parameter_is_a_400() {
    for query in ["limit=0", "limit=101", "limit=x", "sort=best", "tag=NO", "author=a%00b", "cursor=x", "nonsense=1"] {
        anybody().get(&format!("/posts?{query}")).await.is(400);
    }
    for path in
        ["/search?q=%ff", "/search/suggest?q=%ff", "/posts?tag=%ff", "/tags?cursor=%ff", "/users/ada/followers?cursor=%ff"]
    {
        assert_eq!(anybody().get(path).await.is(400).text("/type"), "/problems/invalid-query", "{path}");
    }
    for path in ["/posts?limit=0", "/users/ada/posts?limit=101", "/search?q=a&limit=0"] {
        let outside = anybody().get(path).await.is(400);
        assert!(outside.text("/detail").contains("limit: may be 1 to 100"), "{outside:?}");
    }
}

#[tokio::test]
async fn a_bad_token_is_a_401_also_where_none_is_needed() {
    let mut ada = sign_up("bad_token").await;
    ada.token = ada.token.map(|token| format!("{token}x"));
    ada.get("/users/me").await.is(401);
    ada.get("/posts").await.is(401);
    let answer = anybody().get("/feed").await.is(401);
    assert_eq!(answer.header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn a_bad_idempotency_key_is_a_400() {
    let ada = sign_up("bad_key").await.with("idempotency-key", "a b");
    post(&ada, r#"{"title": "a"}"#).await.is(400);
}

#[tokio::test]
async fn a_method_that_a_route_does_not_have_is_a_405() {
    anybody().put("/posts").await.is(405);
}
