use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rookery_actors::event::Topic;
use rookery_actors::search::SearchToken;
use rookery_actors::users::NewUser;
use rookery_actors::users::names::{Email, Username};
use rookery_actors::users::password::Password;
use secrecy::SecretString;
use serde::Deserialize;

use super::{Tokens, user_agent};
use crate::call::Service;
use crate::context::Context;
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::fields::Fields;
use crate::routes::keyed::{Keyed, Scope, Scoped};
use crate::routes::{Api, SEARCH_TOKEN, SharedApi};

/// Who registers.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"username": "ada", "email": "ada@example.org", "password": "poetical science"}))]
pub(crate) struct Registration {
    /// 3–30 of `[a-z0-9_]`, in any case; unique.
    #[schema(min_length = 3, max_length = 30, pattern = "^[A-Za-z0-9_]+$")]
    username: String,
    /// Shown to nobody but you; unique.
    #[schema(format = Email, max_length = 254)]
    email: String,
    /// 10–128 bytes.
    #[schema(value_type = String, format = Password)]
    password: SecretString,
}

impl Scoped for Registration {
    fn scope(&self, _: &Api) -> Scope {
        Scope::Route
    }
}

impl Registration {
    fn check(&self) -> Result<Checked, Problem> {
        let mut fields = Fields::default();
        let username = fields.take("username", Username::parse(&self.username));
        let email = fields.take("email", Email::parse(&self.email));
        let password = fields.take("password", Password::parse(self.password.clone()));
        fields.check()?;
        let all = username.zip(email).zip(password);
        let ((username, email), password) = all.expect("fields without errors have values");
        Ok(Checked { username, email, password })
    }
}

struct Checked {
    username: Username,
    email: Email,
    password: Password,
}

impl Checked {
    fn user(&self, user_agent: Option<&str>) -> NewUser {
        NewUser {
            username: self.username.clone(),
            email: self.email.clone(),
            password: self.password.again(),
            user_agent: user_agent.map(str::to_owned),
        }
    }
}

/// Register
///
/// Makes an account and logs it in.
#[utoipa::path(
    post,
    path = "/api/v1/auth/register",
    tag = "Auth",
    operation_id = "register",
    request_body = Registration,
    params(("idempotency-key" = Option<String>, Header, description = "Send the same key with a retry; it gets new tokens, if its password still is yours.")),
    responses(
        (status = 201, description = "You are in.", body = Tokens, headers(
            ("location" = String, description = "Your public profile."),
            ("x-search-token" = String, description = "For `x-search-after`: finds you."),
        )),
        (status = 401, description = "A retry, after the password was changed or the account deleted."),
        (status = 409, description = "The username or the e-mail address is taken, or the idempotency key belongs to another request."),
    )
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    headers: HeaderMap,
    Keyed { body, key }: Keyed<Registration>,
) -> Result<Response, Problem> {
    let checked = body.check()?;
    let along = along(&context, key);
    let accepted = api
        .write(Service::Users, &context, Twice::keyed(&along), || {
            api.users.register(checked.user(user_agent(&headers)), along.clone())
        })
        .await?;
    let who = &accepted.reply;
    let profile = &who.account.profile;
    let place = format!("/api/v1/users/{}", profile.username);
    let write = SearchToken { topic: Topic::Users, shard: accepted.shard, seq: accepted.seq, key: profile.id.0 };
    let headers = [
        (header::LOCATION, HeaderValue::try_from(place).expect("a username is a header value")),
        (SEARCH_TOKEN, api.search_token(&write)),
    ];
    Ok((headers, api.tokens(StatusCode::CREATED, who)?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_are_checked_at_once_and_no_password_is_told() {
        let body = r#"{"username": "a b", "email": "nowhere", "password": "hunter2"}"#;
        let registration: Registration = serde_json::from_str(body).unwrap();
        let problem = registration.check().err().unwrap();
        let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["username", "email", "password"]);
        assert!(!format!("{problem:?} {registration:?}").contains("hunter2"));
    }
}
