//! On whose behalf something is done. It goes along with the task, so that a question to another node can name it and
//! nothing in between has to pass it on.

use std::fmt;

use bytes::Bytes;

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its id: ASCII that is safe to log.
    pub request_id: Bytes,
    /// Where it stands in its trace.
    pub trace: TraceParent,
}

/// A span that others continue; displayed as the `traceparent` of W3C Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Id of the whole trace, never zero.
    pub trace_id: u128,
    /// Id of the span, never zero.
    pub span_id: u64,
    /// Whether somebody records the trace.
    pub sampled: bool,
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

tokio::task_local! {
    static CALLER: Caller;
}

/// Does something on behalf of a request.
///
/// No `async fn`: it would have room for the work twice, and what is asked is large.
pub fn on_behalf_of<F: Future>(caller: Caller, work: F) -> impl Future<Output = F::Output> {
    CALLER.scope(caller, work)
}

/// The request on whose behalf this task is at work, if there is one.
pub fn current() -> Option<Caller> {
    CALLER.try_with(Caller::clone).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_reads_as_w3c_says() {
        let parent = TraceParent { trace_id: 0xabc, span_id: 0xd, sampled: true };
        assert_eq!(parent.to_string(), "00-00000000000000000000000000000abc-000000000000000d-01");
    }

    #[tokio::test]
    async fn a_caller_is_known_in_its_own_task_only() {
        let trace = TraceParent { trace_id: 1, span_id: 2, sampled: false };
        let caller = Caller { request_id: Bytes::from_static(b"r1"), trace };
        let seen = on_behalf_of(caller.clone(), async { (current(), tokio::spawn(async { current() }).await.unwrap()) });
        assert_eq!(seen.await, (Some(caller), None));
        assert_eq!(current(), None);
    }
}
