//! What a link tells the metrics.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// The handles of one peer, made once: looking one up costs more than counting.
pub(super) struct Meters {
    starts: Counter,
    up: Gauge,
    in_flight: Gauge,
    round_trip: Histogram,
    batches_sent: Counter,
    bytes_sent: Counter,
    batches_received: Counter,
    bytes_received: Counter,
    envelopes_received: Counter,
}

impl Meters {
    pub(super) fn of(peer: &str) -> Self {
        let peer = || peer.to_owned();
        Self {
            starts: counter!("rookery_link_starts_total", "peer" => peer()),
            up: gauge!("rookery_link_up", "peer" => peer()),
            in_flight: gauge!("rookery_link_in_flight", "peer" => peer()),
            round_trip: histogram!("rookery_link_round_trip_seconds", "peer" => peer()),
            batches_sent: counter!("rookery_link_batches_total", "peer" => peer(), "direction" => "sent"),
            bytes_sent: counter!("rookery_link_bytes_total", "peer" => peer(), "direction" => "sent"),
            batches_received: counter!("rookery_link_batches_total", "peer" => peer(), "direction" => "received"),
            bytes_received: counter!("rookery_link_bytes_total", "peer" => peer(), "direction" => "received"),
            envelopes_received: counter!("rookery_link_envelopes_total", "peer" => peer(), "direction" => "received"),
        }
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.batches_sent.increment(1);
        self.bytes_sent.increment(bytes);
    }

    pub(super) fn received(&self, bytes: u64, envelopes: u64) {
        self.batches_received.increment(1);
        self.bytes_received.increment(bytes);
        self.envelopes_received.increment(envelopes);
    }

    pub(super) fn measured(&self, round_trip: Duration) {
        self.round_trip.record(round_trip);
    }

    pub(super) fn in_flight(&self, calls: usize) {
        self.in_flight.set(calls as f64);
    }

    pub(super) fn ready(&self) {
        self.starts.increment(1);
        self.up.set(1);
    }

    pub(super) fn ended(&self) {
        self.up.set(0);
        self.in_flight.set(0);
    }
}
