//! Pure. How answers look in a terminal of 80 columns.

use std::fmt::Write;

use crate::admin::{keys::Key, services::Letter, status::Status};

/// Columns of a terminal.
const WIDTH: usize = 80;
/// The services in the order of the tables.
const SERVICES: [&str; 4] = ["users", "posts", "comments", "search"];

/// Nodes, services and what is behind: lines for nodes and services, whatever the number of shards.
pub(super) fn status(status: &Status) -> String {
    let mut text = nodes(status);
    let _ = writeln!(text, "\nshards       owned moving unowned    epochs  records     lag  database");
    for service in &status.services {
        let epochs = status.shards.iter().filter(|shard| shard.service == service.service).map(|shard| shard.epoch);
        let epochs = match (epochs.clone().min(), epochs.max()) {
            (Some(min), Some(max)) if min == max => min.to_string(),
            (Some(min), Some(max)) => format!("{min}-{max}"),
            _ => "-".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:<8} {:>9} {:>6} {:>7} {:>9} {:>8} {:>7} {:>9}",
            service.service,
            format!("{}/{}", service.shards_owned, service.shards),
            service.shards_moving,
            service.shards_unowned,
            epochs,
            service.head,
            optional(service.lag),
            service.database_ms.map_or_else(|| "down".to_owned(), |ms| format!("{ms:.1} ms")),
        );
    }
    let notes = notes(status);
    if !notes.is_empty() {
        text.push('\n');
    }
    text + &notes
}

fn nodes(status: &Status) -> String {
    let mut text = String::from("node           state     up               pid   users   posts  comments  search\n");
    for node in &status.nodes {
        let report = &node.report;
        // What it does not have is not zero.
        let shards = SERVICES.map(|service| {
            let owned = status.shards.iter().filter(|shard| shard.service == service && shard.owner.as_ref() == Some(&node.name));
            let member = report.roles.iter().any(|role| role == service);
            if member { owned.count().to_string() } else { "-".to_owned() }
        });
        let name = if node.name.len() > 14 { format!("{}\n{:14}", node.name, "") } else { format!("{:<14}", node.name) };
        let [users, posts, comments, search] = &shards;
        let (up, pid) = match node.state.as_str() {
            "dead" => ("-".to_owned(), "-".to_owned()),
            _ => (duration(report.uptime_s), report.pid.to_string()),
        };
        let _ = writeln!(text, "{name} {:<9} {up:<11} {pid:>8} {users:>7} {posts:>7} {comments:>9} {search:>7}", node.state);
        let mut details = vec![match &report.gateway {
            Some(gateway) => format!("http://{gateway}"),
            None => "no gateway".to_owned(),
        }];
        match report.roles.len() {
            5 => details.push("all roles".to_owned()),
            _ => details.extend(report.roles.iter().filter(|role| *role != "gateway").cloned()),
        }
        let (entities, bytes) =
            report.services.values().fold((0, 0), |(entities, bytes), of| (entities + of.entities, bytes + of.bytes));
        details.push(format!("{entities} entities in {}", size(bytes)));
        text.push_str(&wrapped(&details));
    }
    text
}

/// What somebody should look at.
fn notes(status: &Status) -> String {
    let mut text = String::new();
    for node in status.nodes.iter().filter(|node| node.state != "dead") {
        for (service, _) in node.report.services.iter().filter(|(_, report)| !report.serving) {
            let _ = writeln!(text, "{}: no lease of {service}, so it answers nothing", node.name);
        }
    }
    for service in &status.services {
        let name = &service.service;
        if let unserved @ 1.. = status.unserved(service) {
            let _ = writeln!(text, "{name}: {unserved} shards are served by nobody");
        }
        if let Some(letters @ 1..) = service.dead_letters {
            let _ = writeln!(text, "{name}: {letters} dead letters, see `rookery dlt list`");
        }
    }
    for bridge in &status.bridges {
        for reason in &bridge.outside {
            // Names and counts are told in deltas, which no export repeats.
            let remedy = match bridge.to.as_str() {
                "search" => "it is being rebuilt, as by `rookery reindex`",
                _ => "what was missed stays missing",
            };
            let _ = writeln!(text, "{} has missed events of {} ({reason}): {remedy}", bridge.to, bridge.from);
        }
    }
    for bridge in status.bridges.iter().filter(|bridge| bridge.behind_s > 2.0) {
        let _ = writeln!(text, "{} is behind the events of {} by {:.0} s", bridge.to, bridge.from, bridge.behind_s);
    }
    text
}

/// Details of what stands above, over as many lines as they take.
fn wrapped(details: &[String]) -> String {
    let mut text = String::new();
    let mut line = String::from("  ");
    for (n, detail) in details.iter().enumerate() {
        let separator = if n == 0 { "" } else { ", " };
        if line.len() + separator.len() + detail.len() >= WIDTH {
            let _ = writeln!(text, "{line},");
            line = format!("  {detail}");
        } else {
            line.push_str(separator);
            line.push_str(detail);
        }
    }
    let _ = writeln!(text, "{line}");
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
    use crate::{
        admin::status::{NodeStatus, ServiceStatus},
        report::{Report, ServiceReport},
    };

    fn node(name: &str, roles: &[&str]) -> NodeStatus {
        let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        let of = ServiceReport { serving: false, shards: 4_096, entities: 250_000, bytes: 9_999 << 20 };
        let report = Report {
            gateway: Some("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535".to_owned()),
            pid: 4_194_304,
            uptime_s: 170_000,
            services: roles.iter().map(|role| (role.clone(), of)).collect(),
            secrets: Vec::new(),
            roles,
        };
        NodeStatus { name: name.to_owned(), state: "draining".to_owned(), report, incarnations: Default::default() }
    }

    #[test]
    fn the_status_of_a_large_cluster_fits_into_80_columns() {
        let service = |name: &str| ServiceStatus {
            service: name.to_owned(),
            shards: 4_096,
            shards_owned: 4_000,
            shards_moving: 1_000,
            shards_unowned: 96,
            head: 12_345_678,
            lag: Some(123_456),
            entities: 250_000,
            bytes: 9_999 << 20,
            database_ms: Some(999.9),
            dead_letters: Some(99_999),
        };
        let services = SERVICES.map(service).to_vec();
        let nodes = vec![
            node("n1", &["gateway", "users", "posts", "comments", "search"]),
            node("a-name-that-is-as-long-as-can-be", &["users", "posts", "comments", "search"]),
        ];
        let shown = status(&Status { nodes, services, bridges: Vec::new(), shards: Vec::new(), moves: Vec::new() });
        for line in shown.lines() {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
        assert_eq!(shown.lines().filter(|line| line.contains("comments: 96 shards")).count(), 1, "{shown}");
    }

    #[test]
    fn a_node_shows_its_shards_where_it_may_have_some() {
        use rookery_actors::ids::ShardId;
        let shard = |n, owner: Option<&str>| crate::admin::status::ShardStatus {
            service: "posts".to_owned(),
            shard: ShardId(n),
            owner: owner.map(str::to_owned),
            epoch: 1,
            lag: None,
        };
        let nodes = vec![node("n1", &["gateway", "posts"])];
        let shards = vec![shard(0, Some("n1")), shard(1, Some("n1")), shard(2, None)];
        let shown = status(&Status { nodes, services: Vec::new(), bridges: Vec::new(), shards, moves: Vec::new() });
        let line = shown.lines().nth(1).unwrap();
        assert_eq!(line.split_whitespace().rev().take(4).collect::<Vec<_>>(), ["-", "-", "2", "-"], "{line}");
    }

    #[test]
    fn a_duration_reads_as_people_say_it() {
        assert_eq!([5, 65, 3_660, 200_000].map(duration), ["5 s", "1 min", "1 h 1 min", "2 days"]);
    }
}
