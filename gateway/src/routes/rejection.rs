//! The one place that knows which status a service's no, or its failure, becomes.

use rookery_actors::comments::{self, rules::BodyRejection};
use rookery_actors::entity::Failure;
use rookery_actors::{episodes, posts, users};

use crate::call::Service;
use crate::problem::{self, Problem};

impl From<posts::Rejection> for Problem {
    fn from(rejection: posts::Rejection) -> Self {
        use posts::Rejection::{Deleted, Exists, NotAuthor, NotFound, VersionMismatch};
        let kind = match rejection {
            NotFound => &problem::NOT_FOUND,
            Exists | Deleted => &problem::CONFLICT,
            NotAuthor => &problem::FORBIDDEN,
            VersionMismatch { .. } => &problem::PRECONDITION_FAILED,
        };
        Self::new(kind, rejection.to_string())
    }
}

impl From<users::Rejection> for Problem {
    fn from(rejection: users::Rejection) -> Self {
        use users::Rejection::{
            CannotFollowSelf, EmailTaken, Exists, InvalidToken, NoSuchSession, NotFound, SessionExpired, TokenReused,
            UsernameTaken, VersionMismatch, WrongCredentials,
        };
        let kind = match rejection {
            NotFound | NoSuchSession => &problem::NOT_FOUND,
            Exists | UsernameTaken | EmailTaken => &problem::CONFLICT,
            VersionMismatch { .. } => &problem::PRECONDITION_FAILED,
            WrongCredentials => &problem::INVALID_CREDENTIALS,
            InvalidToken | TokenReused | SessionExpired => &problem::UNAUTHENTICATED,
            CannotFollowSelf => {
                return Self::field("username", "yourself", rejection.to_string());
            }
        };
        Self::new(kind, rejection.to_string())
    }
}

impl From<comments::Rejection> for Problem {
    fn from(rejection: comments::Rejection) -> Self {
        use comments::Rejection::{Closed, Deleted, Exists, NoSuchComment, NoSuchParent, NotAuthor, TooDeep, VersionMismatch};
        let kind = match rejection {
            Closed | NoSuchComment | Deleted => &problem::NOT_FOUND,
            Exists => &problem::CONFLICT,
            NotAuthor => &problem::FORBIDDEN,
            VersionMismatch { .. } => &problem::PRECONDITION_FAILED,
            NoSuchParent => return Self::field("parent_id", "not_found", rejection.to_string()),
            TooDeep => return Self::field("parent_id", "too_deep", rejection.to_string()),
        };
        Self::new(kind, rejection.to_string())
    }
}

impl From<BodyRejection> for Problem {
    fn from(rejection: BodyRejection) -> Self {
        let code = match rejection {
            BodyRejection::Empty => "too_short",
            BodyRejection::Blank => "blank",
            BodyRejection::TooLong { .. } => "too_long",
            BodyRejection::Nul => "nul",
        };
        Self::field("body", code, rejection.to_string())
    }
}

/// What is logged of a service that fails.
pub(crate) const NO_ANSWER: &str = "the service cannot answer";

/// A failure as a 503 that says when to come back, or a 500 if that changes nothing; what exactly failed is for the log, not for
/// the client.
pub(crate) fn failed(service: Service, failure: &Failure) -> Problem {
    let name = service.name();
    let problem = match failure {
        Failure::KeyReused => {
            return Problem::new(&problem::IDEMPOTENCY_CONFLICT, failure.to_string());
        }
        Failure::Unavailable(_) | Failure::Moved(_) => Problem::unavailable(format!("the {name} service is not available"), 1),
        Failure::Overloaded(_) => Problem::unavailable(format!("the {name} service has more to do than it can"), 1),
        Failure::Crashed => Problem::unavailable(format!("the {name} service failed on this request"), 1),
        // As long as the supervisor isolates it at least.
        Failure::Isolated => Problem::unavailable("it is isolated after repeated failures", 5),
        Failure::Expired => Problem::new(&problem::DEADLINE, format!("the {name} service did not answer in time")),
        Failure::Unknown(_) => Problem::new(&problem::DEADLINE, "whether it was done is not known yet"),
        // Trying again later, as a 503 asks for, would end in the same way.
        Failure::Refused(_) => Problem::new(&problem::INTERNAL, format!("the {name} service cannot store or read this")),
    };
    match failure {
        // Load says nothing new line by line; it is in the metrics.
        Failure::Overloaded(_) | Failure::Expired => {
            tracing::debug!(service = name, error = %failure, "the {name} service could not answer");
        }
        _ => episodes::warn(NO_ANSWER, name, failure),
    }
    problem
}

#[cfg(test)]
mod tests {
    use axum::http::{StatusCode, header};
    use axum::response::IntoResponse;

    use super::*;

    fn status(problem: impl Into<Problem>) -> u16 {
        problem.into().kind.status.as_u16()
    }

    #[test]
    fn a_post_says_no_with_the_contracts_statuses() {
        use posts::Rejection::{NotAuthor, NotFound, VersionMismatch};
        assert_eq!(status(NotFound), 404);
        assert_eq!(status(NotAuthor), 403);
        assert_eq!(status(VersionMismatch { version: 2 }), 412);
    }

    #[test]
    fn a_user_says_no_with_the_contracts_statuses() {
        use users::Rejection::{CannotFollowSelf, EmailTaken, NotFound, TokenReused, UsernameTaken, WrongCredentials};
        assert_eq!((status(UsernameTaken), status(EmailTaken)), (409, 409));
        assert_eq!((status(WrongCredentials), status(TokenReused)), (401, 401));
        assert_eq!((status(NotFound), status(CannotFollowSelf)), (404, 422));
    }

    #[test]
    fn a_thread_says_no_with_the_contracts_statuses() {
        use comments::Rejection::{Closed, Deleted, NoSuchParent, NotAuthor, TooDeep, VersionMismatch};
        assert_eq!((status(Closed), status(Deleted)), (404, 404));
        assert_eq!((status(NoSuchParent), status(TooDeep)), (422, 422));
        assert_eq!((status(NotAuthor), status(VersionMismatch { version: 2 })), (403, 412));
    }

    #[test]
    fn every_failure_that_passes_is_a_503_that_says_when_to_come_back() {
        let failures = [
            Failure::Unavailable(String::new()),
            Failure::Moved(String::new()),
            Failure::Overloaded(String::new()),
            Failure::Expired,
            Failure::Unknown(String::new()),
            Failure::Crashed,
            Failure::Isolated,
        ];
        for failure in failures {
            let response = failed(Service::Posts, &failure).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{failure:?}");
        }
        assert_eq!(status(failed(Service::Posts, &Failure::KeyReused)), 409);
        let refused = failed(Service::Posts, &Failure::Refused("22P05".into())).into_response();
        assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!refused.headers().contains_key(header::RETRY_AFTER), "it would end in the same way");
    }

    #[test]
    fn what_failed_inside_is_not_told() {
        let problem = failed(Service::Posts, &Failure::Unavailable("password=hunter2".into()));
        assert!(!format!("{problem:?}").contains("hunter2"));
    }
}
