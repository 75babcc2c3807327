use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{PASSWORD, anybody, eventually, sign_up};

#[tokio::test]
async fn a_profile_is_public_but_not_its_address() {
    sign_up("user_public").await;
    let answer = anybody().get("/users/USER_public").await.is(200);
    assert_eq!(answer.text("/username"), "user_public");
    assert!(answer.body.get("email").is_none() && answer.body.get("roles").is_none());
    let others = sign_up("user_other").await.get("/users/user_public").await.is(200);
    assert!(others.body.get("email").is_none() && others.body.get("roles").is_none());
    anybody().get("/users/user_nobody").await.is(404);
    anybody().get("/users/no%20name").await.is(404);
}

#[tokio::test]
async fn ones_own_profile_says_what_the_account_says() {
    let ada = sign_up("user_own").await;
    let own = ada.get("/users/user_own").await.is(200);
    let account = ada.get("/users/me").await.is(200);
    assert_eq!((&own.body, own.header("etag")), (&account.body, account.header("etag")));
    assert_eq!(own.text("/email"), "user_own@example.org");
    // What a cache has of it for everybody is another answer.
    let public = anybody().get("/users/user_own").await.is(200);
    ada.with("if-none-match", public.header("etag")).get("/users/user_own").await.is(200);
    ada.with("if-none-match", own.header("etag")).get("/users/user_own").await.is(304);
}

#[tokio::test]
async fn an_edit_meets_the_version_that_it_was_meant_for() {
    let ada = sign_up("user_edit").await;
    let before = ada.get("/users/me").await.is(200);
    let etag = before.header("etag").to_owned();
    ada.with("if-none-match", &etag).get("/users/me").await.is(304);
    let body = json!({"display_name": "Ada", "bio": "Notes.", "avatar_url": "https://example.org/a.png"});
    let edited = ada.with("if-match", &etag).patch("/users/me", body).await.is(200);
    assert_eq!((edited.text("/display_name"), edited.text("/avatar_url")), ("Ada", "https://example.org/a.png"));
    ada.with("if-match", &etag).patch("/users/me", json!({"bio": ""})).await.is(412);
    let cleared = ada.patch("/users/me", json!({"avatar_url": null})).await.is(200);
    assert_eq!((&cleared.body["avatar_url"], cleared.text("/bio")), (&Value::Null, "Notes."));
    let wrong = ada.patch("/users/me", json!({"avatar_url": "ftp://x", "display_name": "x".repeat(51)})).await.is(422);
    assert_eq!(wrong.errors(), [("display_name", "too_long"), ("avatar_url", "invalid_format")]);
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions() {
    let phone = sign_up("user_password").await;
    let login =
        async |password: &str| anybody().post("/auth/login", json!({"login": "user_password", "password": password})).await;
    let laptop = anybody().logged_in(&login(PASSWORD).await.is(200));
    let change = |current: &str| json!({"current_password": current, "new_password": "another horse battery"});
    let refused = phone.post("/users/me/password", change("not the password")).await.is(401);
    assert_eq!(refused.text("/detail"), "the password is not your current one");
    let keyed = phone.with("idempotency-key", "password-1");
    keyed.post("/users/me/password", change(PASSWORD)).await.is(204);
    phone.get("/users/me").await.is(200);
    laptop.get("/users/me").await.is(401);
    login(PASSWORD).await.is(401);
    let laptop = anybody().logged_in(&login("another horse battery").await.is(200));
    // A retry changes nothing, and ends no session of the new password.
    keyed.post("/users/me/password", change(PASSWORD)).await.is(204);
    laptop.get("/users/me").await.is(200);
    phone.post("/users/me/password", change(PASSWORD)).await.is(401);
    let refused = phone.send(Method::DELETE, "/users/me", Some(json!({"password": PASSWORD}))).await.is(401);
    assert_eq!(refused.text("/detail"), "the password is not your current one");
}

#[tokio::test]
async fn follows_are_listed_counted_and_fill_the_feed() {
    let (ada, bob) = (sign_up("user_fan").await, sign_up("user_star").await);
    for _ in 0..2 {
        ada.put("/users/user_star/follow").await.is(204);
    }
    ada.put("/users/user_fan/follow").await.is(422);
    ada.put("/users/user_nobody/follow").await.is(404);
    let post = bob.publish("Of whom you follow").await;
    eventually("the feed", async || {
        let feed = ada.get("/feed").await.is(200);
        feed.items().first().map(|item| assert!(post.ends_with(item["id"].as_str().unwrap())))
    })
    .await;
    eventually("the follower", async || {
        let followers = anybody().get("/users/user_star/followers").await.is(200);
        followers.items().first().map(|user| assert_eq!(user["username"], "user_fan"))
    })
    .await;
    let following = anybody().get("/users/user_fan/following").await.is(200);
    assert_eq!(following.items()[0]["username"], "user_star");
    let export = ada.get("/users/me/export").await.is(200);
    assert_eq!(export.body["following"].as_array().map(Vec::len), Some(1));
    ada.delete("/users/user_star/follow").await.is(204);
    assert!(anybody().get("/users/user_fan/following").await.is(200).items().is_empty());
}

#[tokio::test]
async fn a_deleted_account_leaves_its_works_without_an_author() {
    let ada = sign_up("user_leaving").await;
    let post = ada.publish("What stays").await;
    assert_eq!(anybody().get(&post).await.is(200).text("/author/username"), "user_leaving");
    let goodbye = |password: &str| Some(json!({"password": password}));
    ada.send(Method::DELETE, "/users/me", goodbye("not the password")).await.is(401);
    ada.send(Method::DELETE, "/users/me", goodbye(PASSWORD)).await.is(204);
    ada.get("/users/me").await.is(401);
    anybody().get("/users/user_leaving").await.is(404);
    eventually("the anonymous post", async || {
        let answer = anybody().get(&post).await.is(200);
        answer.body["author"].is_null().then_some(())
    })
    .await;
}

/// What was broken: an entity tag named the version and the counts, and another account of the name began with the same.
#[tokio::test]
async fn what_a_client_has_of_an_account_is_nothing_of_the_next_one_of_that_name() {
    let ada = sign_up("user_reborn").await;
    let (public, own) = (anybody().get("/users/user_reborn").await.is(200), ada.get("/users/me").await.is(200));
    ada.send(Method::DELETE, "/users/me", Some(json!({"password": PASSWORD}))).await.is(204);
    let other = sign_up("user_reborn").await;
    let cached = anybody().with("if-none-match", public.header("etag")).get("/users/user_reborn").await.is(200);
    assert_ne!(cached.text("/id"), public.text("/id"));
    other.with("if-none-match", own.header("etag")).get("/users/me").await.is(200);
    anybody().with("if-none-match", cached.header("etag")).get("/users/user_reborn").await.is(304);
}

#[tokio::test]
async fn an_account_that_has_changed_since_is_not_deleted() {
    let ada = sign_up("user_version").await;
    let seen = ada.get("/users/me").await.is(200).header("etag").to_owned();
    let edited = ada.patch("/users/me", json!({"bio": "Stays."})).await.is(200).header("etag").to_owned();
    let delete = async |etag: &str| {
        ada.with("if-match", etag).send(Method::DELETE, "/users/me", Some(json!({"password": PASSWORD}))).await
    };
    delete(&seen).await.is(412);
    ada.get("/users/me").await.is(200);
    delete(&edited).await.is(204);
}

#[tokio::test]
async fn a_users_works_are_listed() {
    let ada = sign_up("user_works").await;
    let post = ada.publish("One").await;
    ada.post(&format!("{post}/comments"), json!({"body": "First."})).await.is(201);
    let posts = anybody().get("/users/user_works/posts").await.is(200);
    assert_eq!((posts.items().len(), &posts.items()[0]["title"]), (1, &json!("One")));
    let comments = ada.get("/users/user_works/comments").await.is(200);
    assert_eq!((&comments.items()[0]["body"], &comments.items()[0]["liked"]), (&json!("First."), &json!(false)));
}
