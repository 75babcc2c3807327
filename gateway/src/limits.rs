//! Rate limits (GCRA) per class of route, by user or by address.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use serde::Deserialize;
use uuid::Uuid;

/// Quotas that new addresses share while too many are remembered.
const SHARED_QUOTAS: u64 = 4096;
/// After so many requests the number of remembered keys is looked at.
const CHECKS_PER_COUNT: usize = 256;

/// What kind of work a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteClass {
    /// Health and metrics: never limited or shed, or an overloaded node would look dead.
    Exempt,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Passwords and tokens; by address alone.
    Auth,
    /// Searching.
    Search,
}

impl RouteClass {
    /// The class of a route, by its method and its path template.
    pub fn of(method: &Method, route: &str) -> Self {
        match route {
            "/livez" | "/readyz" | "/health" | "/metrics" => Self::Exempt,
            _ if route.starts_with("/api/v1/auth/") && method == Method::POST => Self::Auth,
            // Both ask for the password.
            "/api/v1/users/me/password" => Self::Auth,
            "/api/v1/users/me" if method == Method::DELETE => Self::Auth,
            _ if route.starts_with("/api/v1/search") => Self::Search,
            _ if method.is_safe() => Self::Read,
            _ => Self::Write,
        }
    }
}

/// What each class of routes allows a user or an address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Reads.
    pub read: Allowance,
    /// Writes.
    pub write: Allowance,
    /// Logins, registrations, refreshes.
    pub auth: Allowance,
    /// Searches.
    pub search: Allowance,
}

/// Requests in the long run, and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Requests per minute in the long run.
    pub per_minute: NonZeroU32,
    /// Requests at once.
    pub burst: NonZeroU32,
}

impl Allowance {
    /// The time in which a spent burst is whole again, in seconds.
    fn window_s(self) -> u32 {
        (self.burst.get().saturating_mul(60)).div_ceil(self.per_minute.get()).max(1)
    }
}

impl Default for Quotas {
    fn default() -> Self {
        let positive = |n| NonZeroU32::new(n).expect("the defaults are positive");
        let allow = |per_minute, burst| Allowance { per_minute: positive(per_minute), burst: positive(burst) };
        Self { read: allow(1200, 200), write: allow(120, 30), auth: allow(20, 10), search: allow(240, 40) }
    }
}

/// Whose quota a request uses up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// An authenticated user.
    User(Uuid),
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 network of 64 bits: what one subscriber gets.
    V6([u8; 8]),
    /// One of a few quotas shared while there is no room for further addresses.
    Shared(u16),
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// What a limiter says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    class: RouteClass,
    /// Requests left at once.
    pub remaining: u32,
    /// When to come back, if refused.
    pub retry_after_s: Option<u32>,
}

/// The rate limiters of a gateway, one per class.
pub struct RateLimits {
    read: Limiter,
    write: Limiter,
    auth: Limiter,
    search: Limiter,
}

impl RateLimits {
    /// Limiters that remember up to `keys_max` keys each.
    pub fn new(quotas: &Quotas, keys_max: usize) -> Self {
        Self {
            read: Limiter::new("read", quotas.read, keys_max),
            write: Limiter::new("write", quotas.write, keys_max),
            auth: Limiter::new("auth", quotas.auth, keys_max),
            search: Limiter::new("search", quotas.search, keys_max),
        }
    }

    /// Takes one request of `class` from the quota of `key`; nothing for an exempt class.
    pub fn check(&self, class: RouteClass, key: Key) -> Option<Verdict> {
        let (remaining, retry_after_s) = self.of(class)?.check(key);
        Some(Verdict { class, remaining, retry_after_s })
    }

    /// Tells the client where it stands (draft-ietf-httpapi-ratelimit-headers).
    pub(crate) fn write_headers(&self, verdict: Verdict, headers: &mut HeaderMap) {
        let Some(limiter) = self.of(verdict.class) else {
            return;
        };
        headers.insert(RATELIMIT_POLICY, limiter.policy.clone());
        let mut text = Text { bytes: [0; 48], length: 0 };
        let _ = std::fmt::Write::write_fmt(
            &mut text,
            format_args!("\"{}\";r={};t={}", limiter.name, verdict.remaining, verdict.retry_after_s.unwrap_or(limiter.window_s)),
        );
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(RATELIMIT, value);
        }
    }

    /// Forgets keys whose quota is full again. To be called every second or so.
    pub fn sweep(&self) {
        for limiter in [&self.read, &self.write, &self.auth, &self.search] {
            limiter.sweep();
        }
    }

    fn of(&self, class: RouteClass) -> Option<&Limiter> {
        match class {
            RouteClass::Exempt => None,
            RouteClass::Read => Some(&self.read),
            RouteClass::Write => Some(&self.write),
            RouteClass::Auth => Some(&self.auth),
            RouteClass::Search => Some(&self.search),
        }
    }
}

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

struct Limiter {
    name: &'static str,
    policy: HeaderValue,
    window_s: u32,
    gcra: RateLimiter<Key, DashMapStateStore<Key>, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
    keys_max: usize,
    checks: AtomicUsize,
    crowded: AtomicBool,
    hasher: RandomState,
}

impl Limiter {
    fn new(name: &'static str, allowance: Allowance, keys_max: usize) -> Self {
        let Allowance { per_minute, burst } = allowance;
        let window_s = allowance.window_s();
        let quota = Quota::per_minute(per_minute).allow_burst(burst);
        let policy = format!("\"{name}\";q={burst};w={window_s}");
        Self {
            name,
            policy: HeaderValue::from_str(&policy).expect("names and numbers are a header value"),
            window_s,
            gcra: RateLimiter::dashmap(quota).with_middleware(),
            clock: DefaultClock::default(),
            keys_max,
            checks: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            hasher: RandomState::new(),
        }
    }

    fn check(&self, key: Key) -> (u32, Option<u32>) {
        // Between two sweeps the map must not grow without bound either.
        if self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(CHECKS_PER_COUNT) && self.gcra.len() >= self.keys_max {
            self.crowded.store(true, Ordering::Relaxed);
        }
        let key = if self.crowded.load(Ordering::Relaxed) { self.shared(key) } else { key };
        match self.gcra.check_key(&key) {
            Ok(snapshot) => (snapshot.remaining_burst_capacity(), None),
            Err(refusal) => {
                let wait = refusal.wait_time_from(self.clock.now());
                (0, Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1)))
            }
        }
    }

    /// Users keep their own quota: there are only as many as have registered.
    fn shared(&self, key: Key) -> Key {
        match key {
            Key::User(_) => key,
            key => Key::Shared((self.hasher.hash_one(key) % SHARED_QUOTAS) as u16),
        }
    }

    fn sweep(&self) {
        self.gcra.retain_recent();
        self.crowded.store(self.gcra.len() >= self.keys_max, Ordering::Relaxed);
    }
}

/// Text on the stack, for headers that are written with every response.
struct Text {
    bytes: [u8; 48],
    length: usize,
}

impl Text {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// A network, as `10.0.0.0/8` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    network: Ipv6Addr,
    bits: u32,
}

/// Not a network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a network such as 10.0.0.0/8 or fd00::/8")]
pub struct CidrError(String);

impl Cidr {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
        (as_v6(address).to_bits() ^ self.network.to_bits()) & mask == 0
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.network.to_ipv4_mapped().zip(self.bits.checked_sub(96)) {
            Some((network, bits)) => write!(f, "{network}/{bits}"),
            None => write!(f, "{}/{}", self.network, self.bits),
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
            let address: IpAddr = address.parse().ok()?;
            let (width, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
            let bits = bits.map_or(Some(width), |bits| bits.parse().ok().filter(|bits| *bits <= width))?;
            Some(Self { network: as_v6(address), bits: bits + offset })
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The client's address: the peer's, or behind trusted proxies the last address in `X-Forwarded-For` that is not theirs.
pub(crate) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Cidr]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    if trusted.is_empty() || !is_trusted(peer) {
        return peer;
    }
    let mut client = peer;
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        for hop in value.to_str().unwrap_or("").rsplit(',') {
            // What stands left of something unreadable was not written by a proxy that we trust.
            let Ok(address) = hop.trim().parse() else {
                return client;
            };
            client = address;
            if !is_trusted(address) {
                return client;
            }
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static(text))])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_forwarded_address_from_a_stranger_counts_for_nothing() {
        assert_eq!(client(ip("9.9.9.9"), &forwarded("1.2.3.4"), &["10.0.0.0/8".parse().unwrap()]), ip("9.9.9.9"));
    }

    #[test]
    fn behind_a_trusted_proxy_the_last_stranger_is_the_client() {
        let headers = forwarded("6.6.6.6, 1.2.3.4, 10.0.0.7");
        assert_eq!(client(ip("10.0.0.1"), &headers, &["10.0.0.0/8".parse().unwrap()]), ip("1.2.3.4"));
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        let contains = |network: &str, address| network.parse::<Cidr>().unwrap().contains(ip(address));
        assert!(contains("10.0.0.0/8", "10.255.0.1") && contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("fd00::/8", "fd12::1") && contains("0.0.0.0/0", "203.0.113.9") && contains("192.0.2.1", "192.0.2.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1") && !contains("10.0.0.0/8", "fd12::1") && !contains("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn a_network_reads_back_as_it_is_shown() {
        for network in ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8", "0.0.0.0/0"] {
            assert_eq!(network.parse::<Cidr>().unwrap().to_string(), network);
        }
    }

    #[test]
    fn a_network_that_is_none_is_named() {
        assert!("10.0.0.0/33".parse::<Cidr>().unwrap_err().to_string().contains("10.0.0.0/33"));
    }

    #[test]
    fn the_burst_is_allowed_and_the_next_is_told_when_to_return() {
        let limits = RateLimits::new(&Quotas::default(), 100);
        let key = Key::from(ip("1.2.3.4"));
        for _ in 0..10 {
            assert_eq!(limits.check(RouteClass::Auth, key).unwrap().retry_after_s, None);
        }
        assert_eq!(
            limits.check(RouteClass::Auth, key).unwrap().retry_after_s,
            Some(3),
            "twenty a minute is one every three seconds"
        );
    }

    #[test]
    fn one_user_does_not_use_up_the_quota_of_another() {
        let limits = RateLimits::new(&Quotas::default(), 100);
        for _ in 0..11 {
            limits.check(RouteClass::Auth, Key::User(Uuid::from_u128(1)));
        }
        let other = limits.check(RouteClass::Auth, Key::User(Uuid::from_u128(2))).unwrap();
        assert_eq!(other.retry_after_s, None);
    }

    #[test]
    fn a_million_addresses_are_remembered_in_bounded_memory() {
        let limits = RateLimits::new(&Quotas::default(), 1000);
        for n in 0..1_000_000u32 {
            limits.check(RouteClass::Read, Key::V4(n.to_be_bytes()));
        }
        assert!(limits.read.gcra.len() <= 1000 + CHECKS_PER_COUNT + SHARED_QUOTAS as usize);
    }

    #[test]
    fn every_route_that_asks_for_a_password_counts_as_one() {
        for (method, route) in [
            (Method::POST, "/api/v1/auth/login"),
            (Method::POST, "/api/v1/users/me/password"),
            (Method::DELETE, "/api/v1/users/me"),
        ] {
            assert_eq!(RouteClass::of(&method, route), RouteClass::Auth, "{route}");
        }
        assert_eq!(RouteClass::of(&Method::PATCH, "/api/v1/users/me"), RouteClass::Write);
    }

    #[test]
    fn health_is_never_limited() {
        assert_eq!(RouteClass::of(&Method::GET, "/readyz"), RouteClass::Exempt);
    }
}
