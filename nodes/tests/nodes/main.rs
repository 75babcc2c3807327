//! Nodes as processes of their own: their roles, and what keeps several of them on one machine.

mod connections;
mod edges;
mod fleet;
mod hang;
mod pins;
mod process;
mod roles;
mod secrets;
mod stop;
