//! Alone in its process, for it measures the process.

use futures_util::future::join_all;
use rookery_actors::users::password::{Hasher, HasherConfig, Password};

/// 64 clients that log in as fast as they can once grew a process to 1.48 GB.
#[tokio::test]
async fn logins_at_full_speed_do_not_grow_the_process() {
    let before = bytes_of("VmRSS:");
    let hasher = Hasher::start(HasherConfig::default()).unwrap();
    let login = async || {
        for _ in 0..5 {
            let password = Password::parse("correct horse").unwrap();
            assert_eq!(hasher.verify(password, None).await, Ok(false));
        }
    };
    join_all((0..64).map(|_| login())).await;
    let grown = bytes_of("VmHWM:").saturating_sub(before);
    assert!(grown < 100_000_000, "at its peak the process had grown by {grown} bytes");
    assert!(grown > 19_000_000, "{grown} bytes are less than one hash takes: nothing was measured");
}

/// A figure of this process's memory (now or at its peak), in bytes.
fn bytes_of(figure: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
