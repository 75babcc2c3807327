//! `[gateway]`: the HTTP edge.

use std::{net::SocketAddr, time::Duration};

use rookery_gateway::limits::Cidr;

use super::{
    error::Mismatch,
    knob::{self, Section, Visitor},
    types::CorsOrigin,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// `[gateway]`: the HTTP edge.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether rates are limited at all.
    pub rate_limits: bool,
    /// Largest request body, in bytes.
    pub body_limit_bytes: usize,
    /// From the request's head to the answer.
    pub request_timeout: Duration,
    /// Time to send the request's head.
    pub header_timeout: Duration,
    /// From the wish to stop, when the node is no longer ready, until it takes no more connections; unless it is alone.
    pub drain: Duration,
    /// Open connections.
    pub connections_max: usize,
    /// Requests in work at the same time.
    pub concurrency_max: usize,
    /// Who may read answers from a browser.
    pub cors_origins: Vec<CorsOrigin>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// What one client may do per minute.
    pub rates: Rates,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            rate_limits: true,
            body_limit_bytes: 512 << 10,
            request_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(5),
            drain: Duration::from_millis(500),
            connections_max: 16_384,
            concurrency_max: 1_024,
            cors_origins: vec![CorsOrigin::Any],
            trusted_proxies: Vec::new(),
            rates: Rates::default(),
        }
    }
}

impl Section for Gateway {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("listen", &mut knob::address(&mut self.listen));
        visitor.knob("rate_limits", &mut knob::flag(&mut self.rate_limits));
        visitor.knob("body_limit_bytes", &mut knob::bytes(&mut self.body_limit_bytes, KIB..=64 * MIB));
        visitor.knob("request_timeout_ms", &mut knob::millis(&mut self.request_timeout, 100..=300_000));
        visitor.knob("header_timeout_ms", &mut knob::millis(&mut self.header_timeout, 100..=60_000));
        visitor.knob("drain_ms", &mut knob::millis(&mut self.drain, 0..=5_000));
        visitor.knob("connections_max", &mut knob::count(&mut self.connections_max, 1..=1_000_000));
        visitor.knob("concurrency_max", &mut knob::count(&mut self.concurrency_max, 1..=1_000_000));
        visitor.knob("cors_origins", &mut knob::list(&mut self.cors_origins));
        if self.cors_origins.len() > 1 && self.cors_origins.contains(&CorsOrigin::Any) {
            visitor.misfit("cors_origins", Mismatch::wanted("either \"*\" alone or a list of origins"));
        }
        visitor.knob("trusted_proxies", &mut knob::list(&mut self.trusted_proxies));
        visitor.section("rates", &mut self.rates);
    }
}

/// `[gateway.rates]`: one section for each class of routes, per user, or per address without one.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Register, login, refresh.
    pub auth: Rate,
    /// Reads.
    pub read: Rate,
    /// Writes.
    pub write: Rate,
    /// Searches.
    pub search: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        let rate = |per_minute, burst| Rate { per_minute, burst };
        Self { auth: rate(20, 10), read: rate(1_200, 200), write: rate(120, 30), search: rate(240, 40) }
    }
}

impl Section for Rates {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.section("auth", &mut self.auth);
        visitor.section("read", &mut self.read);
        visitor.section("write", &mut self.write);
        visitor.section("search", &mut self.search);
    }
}

/// `[gateway.rates.CLASS]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests per minute in the long run.
    pub per_minute: u32,
    /// Requests at once.
    pub burst: u32,
}

impl Section for Rate {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("per_minute", &mut knob::count(&mut self.per_minute, 1..=1_000_000));
        visitor.knob("burst", &mut knob::count(&mut self.burst, 1..=1_000_000));
    }
}
