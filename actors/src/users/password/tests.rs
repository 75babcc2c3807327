use std::time::{Duration, Instant};

use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;

fn password(text: &str) -> Password {
    Password::parse(text).unwrap()
}

fn hasher(workers: usize, queue: usize) -> Hasher {
    let [workers, queue] = [workers, queue].map(|count| NonZeroUsize::new(count).unwrap());
    Hasher::start(HasherConfig { workers, queue }).unwrap()
}

#[test]
fn a_password_has_10_to_128_bytes() {
    assert_eq!(Password::parse("ninechars").unwrap_err().code(), "too_short");
    assert!(Password::parse("tencharact").is_ok());
    assert!(Password::parse("é".repeat(64)).is_ok());
    assert_eq!(Password::parse("é".repeat(65)).unwrap_err().code(), "too_long");
}

#[test]
fn a_password_does_not_show_in_a_debug_line() {
    assert_eq!(format!("{:?}", password("correct horse")), "Password([redacted])");
}

#[tokio::test]
async fn a_password_is_verified_against_its_own_hash_only() {
    let hasher = hasher(1, 8);
    let hash = hasher.hash(password("correct horse")).await.unwrap();
    assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "not as API.md says");
    assert_eq!(hasher.verify(password("correct horse"), Some(hash.clone())).await, Ok(true));
    assert_eq!(hasher.verify(password("correct house"), Some(hash)).await, Ok(false));
}

#[tokio::test]
async fn the_same_password_has_another_hash_each_time() {
    let hasher = hasher(1, 8);
    let (one, two) = (hasher.hash(password("correct horse")).await, hasher.hash(password("correct horse")).await);
    assert_ne!(one.unwrap(), two.unwrap());
}

/// Made with the reference implementation: `echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1`.
const REFERENCE: &str = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

#[tokio::test]
async fn a_hash_of_the_reference_implementation_is_understood_and_due_for_replacement() {
    let hash = PasswordHash::parse(REFERENCE).unwrap();
    assert!(hash.needs_rehash());
    // Its password is too short for us today, as imported ones may be.
    let old = Password("password".into());
    assert_eq!(hasher(1, 8).verify(old, Some(hash)).await, Ok(true));
}

#[tokio::test]
async fn a_hash_of_today_needs_no_replacement() {
    assert!(!hasher(1, 8).hash(password("correct horse")).await.unwrap().needs_rehash());
}

#[test]
fn a_hash_that_would_take_the_machine_is_refused() {
    for costs in ["m=4194304,t=2,p=1", "m=19456,t=100000,p=1"] {
        assert_eq!(PasswordHash::parse(&REFERENCE.replace("m=65536,t=2,p=1", costs)), Err(MalformedHash), "{costs}");
    }
}

#[tokio::test]
async fn a_broken_stored_hash_is_an_error_and_the_next_caller_is_served() {
    let hasher = hasher(1, 8);
    let broken: PasswordHash = serde_json::from_str("\"!\"").unwrap();
    let answer = hasher.verify(password("correct horse"), Some(broken)).await;
    assert_eq!(answer, Err(HasherError::Malformed(MalformedHash)));
    assert_eq!(hasher.verify(password("correct horse"), None).await, Ok(false));
}

/// Compares the fastest of a few, which noise cannot make faster.
#[tokio::test]
async fn an_unknown_user_takes_as_long_as_a_wrong_password() {
    let hasher = hasher(1, 8);
    let hash = hasher.hash(password("correct horse")).await.unwrap();
    let fastest = async |hash: Option<PasswordHash>| {
        let mut fastest = Duration::MAX;
        for _ in 0..7 {
            let start = Instant::now();
            assert_eq!(hasher.verify(password("wrong horse"), hash.clone()).await, Ok(false));
            fastest = fastest.min(start.elapsed());
        }
        fastest
    };
    let (wrong, unknown) = (fastest(Some(hash)).await, fastest(None).await);
    assert!(unknown > wrong / 2 && unknown < wrong * 2, "wrong password {wrong:?}, unknown user {unknown:?}");
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let hasher = hasher(1, 4);
    let answers = join_all((0..32).map(|_| hasher.verify(password("correct horse"), None))).await;
    let refused = answers.iter().filter(|answer| **answer == Err(HasherError::Overloaded)).count();
    // One worker can have taken a job or two while the others were queued, hardly more.
    assert!((20..=28).contains(&refused), "{refused} of 32 were refused");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(false) | Err(HasherError::Overloaded))));
}

#[tokio::test]
async fn whoever_gave_up_is_skipped() {
    let hasher = hasher(1, 256);
    let one = Instant::now();
    hasher.verify(password("correct horse"), None).await.unwrap();
    let one = one.elapsed();

    let start = Instant::now();
    for _ in 0..200 {
        let mut call = Box::pin(hasher.verify(password("correct horse"), None));
        // Polled once, it is in the queue; then it is dropped.
        assert!(futures_util::poll!(&mut call).is_pending());
    }
    hasher.verify(password("correct horse"), None).await.unwrap();
    assert!(start.elapsed() < one * 100, "200 callers that gave up were hashed all the same");
}

proptest! {
    #[test]
    fn no_text_makes_parsing_a_hash_panic(text in ".{0,120}|\\$argon2(id|i|d)?(\\$v=[0-9]{1,3})?\\$m=[0-9]{1,11},t=[0-9]{1,11},p=[0-9]{1,9}(\\$[A-Za-z0-9+/]{0,40}){0,2}") {
        if let Ok(hash) = PasswordHash::parse(&text) {
            prop_assert_eq!(hash.as_str(), text);
        }
    }
}
