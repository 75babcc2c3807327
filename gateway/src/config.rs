//! The gateway's knobs.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::auth::TOKEN_LIFE_S;
use crate::limits::{Cidr, Quotas};

/// Configuration of the gateway; every field has a default that suits one small machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Largest request body; API.md promises 512 KB.
    pub body_limit_bytes: usize,
    /// Largest head of a request, request line included.
    pub header_limit_bytes: usize,
    /// How long a request may take until the head of its response.
    pub request_timeout_ms: u64,
    /// How long a connection may take to send a request's head, and how long it may idle between two.
    pub header_timeout_ms: u64,
    /// How long a request's body may take to arrive.
    pub body_timeout_ms: u64,
    /// How long a stopping gateway waits for requests in flight.
    pub drain_timeout_ms: u64,
    /// Open connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Requests in flight; further ones are shed with a 503, and the slower the more there are.
    pub requests_max: usize,
    /// A request slower than this is logged even if it succeeds.
    pub slow_request_ms: u64,
    /// Whether requests are limited per user and address; off for load tests.
    pub rate_limits: bool,
    /// How many requests a user or an address has, per class of route.
    pub quotas: Quotas,
    /// Users and addresses remembered per class before further addresses share their quota.
    pub rate_limit_keys_max: usize,
    /// Proxies whose `X-Forwarded-For` counts, as `10.0.0.0/8`.
    pub trusted_proxies: Vec<Cidr>,
    /// Origins whose pages may read our answers; `"*"` for any, without credentials.
    pub cors_origins: Vec<String>,
    /// Whether bodies over 1 KB are compressed for clients that ask for it.
    pub compression: bool,
    /// `iss` of access tokens.
    pub token_issuer: String,
    /// `aud` of access tokens.
    pub token_audience: String,
    /// How long an access token is valid, in seconds.
    pub token_life_s: u32,
    /// Tokens remembered as verified; about 500 bytes each.
    pub token_cache_max: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            body_limit_bytes: 512 * 1024,
            header_limit_bytes: 32 * 1024,
            request_timeout_ms: 10_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 10_000,
            drain_timeout_ms: 10_000,
            connections_max: 10_000,
            requests_max: 1_024,
            slow_request_ms: 1_000,
            rate_limits: true,
            quotas: Quotas::default(),
            rate_limit_keys_max: 100_000,
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
            compression: true,
            token_issuer: "rookery".into(),
            token_audience: "rookery".into(),
            token_life_s: TOKEN_LIFE_S as u32,
            token_cache_max: 10_000,
        }
    }
}
