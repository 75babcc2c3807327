use serde_json::json;

use crate::client::{PASSWORD, anybody, sign_up};

#[tokio::test]
async fn who_registers_is_logged_in_and_finds_themselves() {
    let body = json!({"username": "Auth_Ada", "email": "auth_ada@example.org", "password": PASSWORD});
    let answer = anybody().post("/auth/register", body).await.is(201);
    assert_eq!((answer.text("/token_type"), answer.body["expires_in"].as_i64()), ("Bearer", Some(900)));
    assert_eq!(answer.header("location"), "/api/v1/users/auth_ada");
    assert_eq!(answer.text("/user/email"), "auth_ada@example.org");
    let ada = anybody().logged_in(&answer);
    assert_eq!(ada.get("/users/me").await.is(200).text("/username"), "auth_ada");
}

#[tokio::test]
async fn a_name_and_an_address_belong_to_one_user() {
    sign_up("auth_taken").await;
    let register = async |name: &str, email: &str| {
        anybody().post("/auth/register", json!({"username": name, "email": email, "password": PASSWORD})).await
    };
    register("AUTH_TAKEN", "other@example.org").await.is(409);
    register("auth_taken2", "Auth_Taken@example.org").await.is(409);
}

#[tokio::test]
async fn every_wrong_field_is_named() {
    let answer = anybody().post("/auth/register", json!({"username": "a", "email": "b", "password": "c"})).await.is(422);
    let fields: Vec<_> = answer.errors().into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["username", "email", "password"]);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_name_are_answered_alike() {
    sign_up("auth_login").await;
    let login =
        async |login: &str, password: &str| anybody().post("/auth/login", json!({"login": login, "password": password})).await;
    login("auth_login", PASSWORD).await.is(200);
    login("auth_login@example.org", PASSWORD).await.is(200);
    let wrong = login("auth_login", "not the password").await.is(401);
    for other in [login("auth_nobody", "not the password").await, login("auth_login", "short").await] {
        assert_eq!(other.is(401).body["detail"], wrong.body["detail"]);
    }
}

#[tokio::test]
async fn a_spent_refresh_token_ends_the_session() {
    let ada = sign_up("auth_refresh").await;
    let refresh = async |token: &str| anybody().post("/auth/refresh", json!({"refresh_token": token})).await;
    let second = refresh(&ada.refresh_token).await.is(200);
    let newer = ada.logged_in(&second);
    newer.get("/users/me").await.is(200);
    refresh(&ada.refresh_token).await.is(401);
    refresh(&newer.refresh_token).await.is(401);
    refresh("rt_nonsense").await.is(401);
}

#[tokio::test]
async fn a_refresh_is_repeated_under_its_key_without_being_a_reuse() {
    let ada = sign_up("auth_keyed").await;
    let keyed = anybody().with("idempotency-key", "refresh-1");
    let body = json!({"refresh_token": ada.refresh_token});
    keyed.post("/auth/refresh", body.clone()).await.is(200);
    let again = keyed.post("/auth/refresh", body).await.is(200);
    ada.logged_in(&again).get("/users/me").await.is(200);
}

/// What was broken: the key was the bearer's, and a retry whose access token had expired, or was another, was a reuse.
#[tokio::test]
async fn a_refresh_is_repeated_under_its_key_whatever_bearer_comes_with_it() {
    let (ada, bob) = (sign_up("auth_bearer").await, sign_up("auth_bearer2").await);
    let nobody = anybody();
    let mut expired = ada.clone();
    // Signed by nobody is as good: a token that is refused.
    expired.token = ada.token.as_ref().map(|token| format!("{token}x"));
    let body = json!({"refresh_token": ada.refresh_token});
    let mut last = None;
    for bearer in [&ada, &expired, &nobody, &bob, &ada] {
        last = Some(bearer.with("idempotency-key", "refresh-1").post("/auth/refresh", body.clone()).await.is(200));
    }
    let ada = ada.logged_in(&last.unwrap());
    ada.get("/users/me").await.is(200);
    anybody().post("/auth/refresh", json!({"refresh_token": ada.refresh_token})).await.is(200);
    // Each session has keys of its own.
    let keyed = bob.with("idempotency-key", "refresh-1");
    keyed.post("/auth/refresh", json!({"refresh_token": bob.refresh_token})).await.is(200);
}

/// What was broken: a register that was repeated with a bearer met its own name.
#[tokio::test]
async fn a_register_is_repeated_under_its_key_whatever_bearer_comes_with_it() {
    let bob = sign_up("auth_bearer3").await;
    let body = json!({"username": "auth_bearer4", "email": "auth_bearer4@example.org", "password": PASSWORD});
    for bearer in [&anybody(), &bob, &anybody()] {
        let answer = bearer.with("idempotency-key", "register-2").post("/auth/register", body.clone()).await.is(201);
        assert_eq!(answer.text("/user/username"), "auth_bearer4");
    }
}

#[tokio::test]
async fn a_repeated_register_gets_new_tokens_for_the_password_of_today_only() {
    let keyed = anybody().with("idempotency-key", "register-1");
    let body = json!({"username": "auth_again", "email": "auth_again@example.org", "password": PASSWORD});
    keyed.post("/auth/register", body.clone()).await.is(201);
    let again = keyed.post("/auth/register", body.clone()).await.is(201);
    let ada = anybody().logged_in(&again);
    let change = json!({"current_password": PASSWORD, "new_password": "another long password"});
    ada.post("/users/me/password", change).await.is(204);
    ada.post("/auth/logout-all", json!({})).await.is(204);
    let refused = keyed.post("/auth/register", body).await.is(401);
    let wrong = anybody().post("/auth/login", json!({"login": "auth_again", "password": PASSWORD})).await.is(401);
    assert_eq!((refused.text("/type"), refused.text("/detail")), (wrong.text("/type"), wrong.text("/detail")));
}

#[tokio::test]
async fn a_logout_ends_this_session_at_once_and_no_other() {
    let phone = sign_up("auth_logout").await;
    let login = anybody().post("/auth/login", json!({"login": "auth_logout", "password": PASSWORD})).await;
    let laptop = anybody().logged_in(&login);
    assert_eq!(laptop.get("/auth/sessions").await.is(200).items().len(), 2);
    phone.post("/auth/logout", json!({})).await.is(204);
    phone.get("/users/me").await.is(401);
    let sessions = laptop.get("/auth/sessions").await.is(200);
    assert_eq!((sessions.items().len(), &sessions.items()[0]["current"]), (1, &json!(true)));
}

#[tokio::test]
async fn a_session_is_ended_by_its_id_and_all_by_logout_all() {
    let phone = sign_up("auth_all").await;
    let login = async || {
        let answer = anybody().post("/auth/login", json!({"login": "auth_all", "password": PASSWORD})).await;
        anybody().logged_in(&answer)
    };
    let (laptop, desk) = (login().await, login().await);
    let sessions = laptop.get("/auth/sessions").await.is(200);
    let current = sessions.items().iter().find(|session| session["current"] == true).unwrap();
    let path = format!("/auth/sessions/{}", current["id"].as_str().unwrap());
    phone.delete(&path).await.is(204);
    laptop.get("/users/me").await.is(401);
    phone.delete(&path).await.is(404);
    phone.post("/auth/logout-all", json!({})).await.is(204);
    desk.get("/users/me").await.is(401);
    phone.get("/users/me").await.is(401);
}
