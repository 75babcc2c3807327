//! The server's configuration: ours alone, written anew at every start, so that an old data folder gets new settings too.
//! What an operator sets with `ALTER SYSTEM` still comes after it.

use std::path::Path;

/// The role that owns everything. One is enough: nobody but Rookery ever reaches the socket.
pub(super) const ROLE: &str = "rookery";

/// Connections that the server takes.
pub(crate) const CONNECTIONS_MAX: u32 = 1_000;

/// `rookery.conf`, for a server whose socket lies in `socket_dir`.
///
/// Only what Postgres 15 and every later version know, and nothing that depends on how it was built.
pub(super) fn server(socket_dir: &Path) -> String {
    let socket_dir = socket_dir.display();
    format!(
        "# Written by Rookery at every start. To change a setting for good, use ALTER SYSTEM.

# Reached through a socket in a folder that only we may enter, never through the network.
listen_addresses = ''
unix_socket_directories = '{socket_dir}'
unix_socket_permissions = 0700
port = 5432

# Four services with a pool of 16 and a few sessions more, for each of nine nodes of `rookery up`. An unused connection
# costs some 20 KB.
max_connections = {CONNECTIONS_MAX}

# What was acknowledged is on disk.
fsync = on
synchronous_commit = on
full_page_writes = on

# The hot part of a small deployment; entities are cached in the nodes, so more would hold the same rows twice.
shared_buffers = 256MB
# What the kernel caches besides; the planner only.
effective_cache_size = 1GB

# Every checkpoint makes the first change of each page write the whole page: few checkpoints, and compressed pages. The
# price is a longer recovery after a crash of the server, a few seconds for a full 2 GB.
max_wal_size = 2GB
min_wal_size = 256MB
checkpoint_timeout = 15min
wal_compression = on
# A batch of several hundred rows fits, and need not wait for a write that is not its own.
wal_buffers = 16MB

# The log is appended and trimmed all the time, positions are overwritten: vacuum little and often. Tables say the rest.
autovacuum = on
autovacuum_naptime = 15s
autovacuum_vacuum_cost_limit = 1000

# Statements are short and by key: compiling one takes longer than running it, and a second worker only takes a core
# from somebody else.
jit = off
max_parallel_workers_per_gather = 0
# Solid-state disks: a random page costs little more than the next one.
random_page_cost = 1.1

# A session whose client is gone ends in the middle of its statement, and lets go of its locks.
client_connection_check_interval = 1s

timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
log_checkpoints = off
# The client hears of its errors anyway. What it must not leave in a log: statements, and details such as the e-mail
# address that was taken.
log_min_error_statement = panic
log_error_verbosity = terse
"
    )
}

/// `rookery_hba.conf`: who may connect.
///
/// The socket's folder (0700) keeps everybody out but root and the server's own user, who could read the files as well:
/// a password would protect nothing. One case is different: started by root, the server runs as a user whom other
/// programs may share (`nobody`), and may hold a capability that they do not. Then only root gets in.
pub(super) fn access(started_by_root: bool) -> &'static str {
    if started_by_root { "local all all peer map=rookery\n" } else { "local all all trust\n" }
}

/// `rookery_ident.conf`: the map that [`access`] names.
pub(super) fn identities() -> String {
    format!("rookery root {ROLE}\n")
}
