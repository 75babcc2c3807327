//! Recompiles this crate when a migration is added: `embed_migrations!` reads the folders, which cargo does not see.

fn main() {
    println!("cargo::rerun-if-changed=../migrations");
}
