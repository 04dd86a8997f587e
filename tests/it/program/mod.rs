//! The program in a process of its own: starting, stopping, its commands and its messages.

mod access;
mod connections;
mod crash;
mod data_directory;
mod embedded;
mod isolation;
mod keys;
mod log;
mod messages;
mod readme;
mod restart;
mod start;
mod stop;
mod transfer;
