//! What the OpenAPI document says about all routes alike: conventions, credentials, problems.

use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response};
use utoipa::{Modify, OpenApi as _};

use crate::problem::{Document, MEDIA_TYPE};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Rookery",
        description = "Users, posts, comments and search.\n\n\
            JSON in and out, times RFC 3339 in UTC, ids UUIDv7. Every error is an RFC 9457 problem whose `type` answers with a \
            page that explains it. Lists are `{items, next_cursor}`; a cursor is opaque and belongs to its list and its \
            parameters. Every response carries `x-request-id`. The answer to a write that changes what can be found carries \
            `x-search-token`; likes and follows change none of it. Where a POST takes an `Idempotency-Key`, a retry with the \
            same key and body gets the first answer again for 24 hours, but tokens of its own. Those that end your own session \
            take none: the token that would ask again has ended too. Limits are told by `RateLimit-Policy`, `RateLimit` and, \
            on 429, `Retry-After`."
    ),
    tags(
        (name = "Auth", description = "Accounts' sessions and tokens"),
        (name = "Users", description = "Profiles and who follows whom"),
        (name = "Posts", description = "Posts, lists of them, likes and tags"),
        (name = "Comments", description = "The thread of a post"),
        (name = "Search", description = "Finding all of it"),
        (name = "Operations", description = "How a node is; on its services' ports too"),
    ),
    components(schemas(Document<'static>)),
    modifiers(&Credentials)
)]
struct Base;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut OpenApi) {
        let mut http = Http::new(HttpAuthScheme::Bearer);
        http.bearer_format = Some("JWT".into());
        http.description = Some("An access token of `/api/v1/auth/login`; EdDSA, 15 minutes.".into());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(http));
    }
}

/// The document without routes.
pub(super) fn document() -> OpenApi {
    Base::openapi()
}

/// Adds to every operation what its shape implies, and a problem to every error.
pub(super) fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            add_problems(operation);
        }
    }
}

fn add_problems(operation: &mut Operation) {
    for (status, description) in implied(operation) {
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(Response::new(description)));
    }
    for (status, response) in &mut operation.responses.responses {
        if let (RefOr::T(response), "4" | "5") = (response, &status[..1]) {
            let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
            response.content.entry(MEDIA_TYPE.to_owned()).or_insert(RefOr::T(problem));
        }
    }
}

/// The errors that follow from what an operation takes.
fn implied(operation: &Operation) -> Vec<(&'static str, &'static str)> {
    let takes = |place: ParameterIn| {
        operation
            .parameters
            .iter()
            .flatten()
            .any(|parameter| matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == place))
    };
    let mut errors = vec![
        ("400", "A parameter, a header or the JSON is malformed."),
        ("429", "Too many requests; `Retry-After` says when to come back."),
        ("500", "Our fault."),
        ("503", "A service that is needed does not answer; `Retry-After` says when to come back."),
    ];
    if operation.security.as_ref().is_some_and(|schemes| !schemes.is_empty()) {
        errors.push(("401", "The access token is missing, expired or revoked."));
    }
    if takes(ParameterIn::Path) {
        errors.push(("404", "There is no such thing."));
    }
    if operation.request_body.is_some() {
        errors.extend([
            ("408", "The body arrived too slowly."),
            ("413", "The body is larger than the limit, which the detail names: 512 KB unless configured otherwise."),
            ("415", "The body is not `application/json`."),
            ("422", "A field is invalid; `errors` names every one."),
        ]);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete_document() -> serde_json::Value {
        let mut document = super::super::routes().into_openapi();
        complete(&mut document);
        serde_json::to_value(&document).unwrap()
    }

    #[test]
    fn every_route_of_the_contract_is_documented() {
        let document = complete_document();
        let mut missing = Vec::new();
        for line in ROUTES.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (methods, path) = line.split_once(' ').expect("methods, then the path");
            for method in methods.split('|') {
                let operation = &document["paths"][format!("/api/v1{path}")][method.to_lowercase()];
                if operation.is_null() {
                    missing.push(format!("{method} {path}"));
                }
            }
        }
        assert!(missing.is_empty(), "{missing:#?}");
    }

    /// A query that the page fills in by itself hides the items that one looks for.
    #[test]
    fn no_query_is_filled_in_beforehand_and_what_has_words_lists_them() {
        let document = complete_document();
        let parameter = |path: &str, name: &str| {
            let parameters = document["paths"][path]["get"]["parameters"].as_array().unwrap();
            parameters.iter().find(|parameter| parameter["name"] == name).unwrap_or_else(|| panic!("{path} {name}")).clone()
        };
        for item in document["paths"].as_object().unwrap().values() {
            let parameters = item["get"]["parameters"].as_array();
            for parameter in parameters.into_iter().flatten().filter(|parameter| parameter["in"] == "query") {
                assert!(parameter["example"].is_null() && parameter["schema"]["example"].is_null(), "{parameter}");
            }
        }
        let words = |schema: &serde_json::Value| schema.to_string();
        for (path, sort) in [
            ("/api/v1/posts", r#"["new","top","hot"]"#),
            ("/api/v1/posts/{id}/comments", r#"["new","old","top"]"#),
            ("/api/v1/search", r#"["relevance","new"]"#),
        ] {
            let parameter = parameter(path, "sort");
            assert!(words(&parameter).contains(sort), "{path}: {parameter}");
        }
        let kinds = parameter("/api/v1/search", "type");
        assert!(words(&kinds).contains(r#"["post","user","comment","posts","users","comments"]"#), "{kinds}");
        assert_eq!((&kinds["style"], &kinds["explode"]), (&"form".into(), &false.into()), "comma-separated");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    /// Every operation has an id, a tag, a summary, an answer, and problems for its errors.
    #[test]
    fn every_operation_is_described_in_full() {
        let document = complete_document();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let place = format!("{method} {path}");
                for key in ["operationId", "summary"] {
                    assert!(operation[key].is_string(), "{place} has no {key}");
                }
                assert!(operation["tags"][0].is_string(), "{place} has no tag");
                let responses = operation["responses"].as_object().unwrap();
                assert!(responses.keys().any(|status| status.starts_with('2')), "{place} succeeds never");
                for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                    let schema = &response["content"][MEDIA_TYPE]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{place} {status}");
                }
            }
        }
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let document = complete_document();
        let text = document.to_string();
        for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(!document["components"]["schemas"][name].is_null(), "{name} is missing");
        }
    }

    /// Where null takes nothing away it is refused, and the document does not offer it.
    #[test]
    fn a_change_to_null_is_offered_only_where_it_means_something() {
        let document = complete_document();
        let mut offered = Vec::new();
        for changes in ["PostChanges", "ProfileChanges"] {
            let schema = &document["components"]["schemas"][changes];
            assert!(schema["required"].is_null(), "{changes} can be any part of {}", schema["required"]);
            let fields = schema["properties"].as_object().unwrap().iter();
            offered.extend(fields.filter(|(_, field)| field["type"].is_array()).map(|(name, _)| name.clone()));
        }
        assert_eq!(offered, ["avatar_url"]);
    }

    const ROUTES: &str = "
        POST /auth/register
        POST /auth/login
        POST /auth/refresh
        POST /auth/logout
        POST /auth/logout-all
        GET /auth/sessions
        DELETE /auth/sessions/{id}
        GET|PATCH|DELETE /users/me
        POST /users/me/password
        GET /users/me/export
        GET /users/{username}
        GET /users/{username}/posts
        GET /users/{username}/comments
        PUT|DELETE /users/{username}/follow
        GET /users/{username}/followers
        GET /users/{username}/following
        POST|GET /posts
        GET /feed
        GET|PATCH|DELETE /posts/{id}
        PUT|DELETE /posts/{id}/like
        GET /tags
        POST|GET /posts/{id}/comments
        GET|PATCH|DELETE /posts/{id}/comments/{comment_id}
        PUT|DELETE /posts/{id}/comments/{comment_id}/like
        GET /search
        GET /search/suggest
    ";
}
