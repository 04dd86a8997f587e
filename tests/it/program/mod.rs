//! The program in a process of its own: starting, stopping, its commands and its messages.

mod crash;
mod embedded;
mod keys;
mod messages;
mod readme;
mod start;
mod stop;
mod transfer;
