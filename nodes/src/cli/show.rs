//! Pure. How answers look in a terminal of 80 columns.

use std::fmt::Write;

use crate::admin::{keys::Key, services::Letter, status::Status};

/// Nodes, services and what is behind.
pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    for node in &status.nodes {
        let _ = writeln!(
            text,
            "node {}: {}, up {}, {}, pid {}\nroles: {}\n",
            node.name,
            node.state,
            duration(node.uptime_s),
            node.gateway.as_ref().map_or_else(|| "no gateway".to_owned(), |gateway| format!("gateway http://{gateway}")),
            node.pid,
            node.roles.join(", ")
        );
    }
    let _ = writeln!(text, "service     shards  epochs  records     lag entities  memory database  dead");
    for service in &status.services {
        let epochs = status.shards.iter().filter(|shard| shard.service == service.service).map(|shard| shard.epoch);
        let epochs = match (epochs.clone().min(), epochs.max()) {
            (Some(min), Some(max)) if min == max => min.to_string(),
            (Some(min), Some(max)) => format!("{min}-{max}"),
            _ => "-".to_owned(),
        };
        let database = service.database_ms.map_or_else(|| "down".to_owned(), |ms| format!("{ms:.1} ms"));
        let _ = writeln!(
            text,
            "{:<8} {:>9} {:>7} {:>8} {:>7} {:>8} {:>7} {:>8} {:>5}{}",
            service.service,
            format!("{}/{}", service.shards_owned, service.shards),
            epochs,
            service.head,
            optional(service.lag),
            service.entities.to_string(),
            size(service.bytes),
            database,
            optional(service.dead_letters),
            if service.serving { "" } else { "\n          its lease has ended: it answers nothing" },
        );
    }
    let late: Vec<_> = status.bridges.iter().filter(|bridge| bridge.behind_s > 2.0).collect();
    for bridge in late {
        let _ = writeln!(text, "{} is behind the events of {} by {:.0} s", bridge.to, bridge.from, bridge.behind_s);
    }
    text
}

/// Dead letters, two lines each.
pub(super) fn letters(letters: &[Letter]) -> String {
    let mut text = String::new();
    for letter in letters {
        let _ = writeln!(
            text,
            "{} shard {} ← {} seq {}  {}  {}  {}\n    {}",
            letter.service, letter.shard, letter.source, letter.seq, letter.kind, letter.key, letter.at, letter.reason
        );
    }
    text
}

/// Signing keys.
pub(super) fn keys(keys: &[Key]) -> String {
    let mut text = String::from("key                                   state      signs from            known until\n");
    for key in keys {
        let until = key.retired_at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"));
        let _ = writeln!(text, "{:<37} {:<10} {:<21} {until}", key.kid, key.state, format!("{:.0}", key.not_before));
    }
    text
}

fn optional(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn size(bytes: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "no digit after the point is shown")]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{mebibytes:.0} MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{services::ServiceStatus, status::NodeStatus};

    #[test]
    fn the_status_of_a_large_node_fits_into_80_columns() {
        let service = |name: &str| ServiceStatus {
            service: name.to_owned(),
            shards: 4_096,
            shards_owned: 256,
            serving: true,
            head: 12_345_678,
            lag: Some(123_456),
            entities: 250_000,
            bytes: 9_999 << 20,
            database_ms: Some(999.9),
            dead_letters: Some(99_999),
        };
        let node = NodeStatus {
            name: "n1".to_owned(),
            state: "live".to_owned(),
            roles: ["gateway", "users", "posts", "comments", "search"].map(str::to_owned).to_vec(),
            gateway: Some("127.0.0.1:8080".to_owned()),
            pid: 4_194_304,
            uptime_s: 100_000,
        };
        let services = ["users", "posts", "comments", "search"].map(service).to_vec();
        let shown = status(&Status { nodes: vec![node], services, bridges: Vec::new(), shards: Vec::new() });
        for line in shown.lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn a_duration_reads_as_people_say_it() {
        assert_eq!([5, 65, 3_660, 200_000].map(duration), ["5 s", "1 min", "1 h 1 min", "2 days"]);
    }
}
