//! What clients carry.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rookery::migrate::Database;
use serde_json::{Value, json};

use crate::lab::{
    Lab, Node,
    Who::{Member, Plain},
    text,
};

/// What a gateway answers to somebody who registers, and what the access token claims.
async fn issued(node: &Node, name: &str) -> (Value, Value) {
    let answer = node.register(name).await;
    let token = text(&answer["access_token"]);
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    (answer, serde_json::from_slice(&claims).unwrap())
}

pub(crate) async fn access_ttl(lab: &Lab) {
    for (who, life_s) in [(Plain, 900), (Member, 600)] {
        let (answer, claims) = issued(lab.of(who), "access").await;
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), life_s, "the token of {who:?}");
        assert_eq!(answer["expires_in"], life_s, "what {who:?} says of it");
    }
}

pub(crate) async fn refresh_ttl(lab: &Lab) {
    for (who, days) in [(Plain, 30.0), (Member, 7.0)] {
        let node = lab.of(who);
        node.register("refresh").await;
        let life = "SELECT (extract(epoch FROM s.expires_at - s.created_at) / 86400)::float8
                    FROM session s JOIN app_user u ON u.id = s.user_id WHERE u.username = 'refresh'";
        let found: f64 = node.sql(Database::Users).await.query_one(life, &[]).await.unwrap().get(0);
        assert!((found - days).abs() < 0.01, "{who:?}: {found} days");
    }
}

pub(crate) async fn issuer(lab: &Lab) {
    for (who, name) in [(Plain, "rookery"), (Member, "knobs.example")] {
        assert_eq!(issued(lab.of(who), "issuer").await.1["iss"], json!(name), "{who:?}");
    }
}

pub(crate) async fn audience(lab: &Lab) {
    for (who, name) in [(Plain, "rookery"), (Member, "knobs")] {
        assert_eq!(issued(lab.of(who), "audience").await.1["aud"], json!(name), "{who:?}");
    }
}
