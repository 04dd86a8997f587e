//! The integration tests: the real service on a real PostgreSQL, started once for all of them.
//!
//! The harness is libtest-mimic's and not the standard one because the server must be stopped, and its directory
//! removed, after the last test; the standard harness offers no such moment. Filters and flags work as usual.
#![expect(unreachable_pub, reason = "nothing of a test binary can be reached from elsewhere")]

mod auth;
mod cluster;
mod conversation;
mod crash;
mod embedded;
mod errors;
mod events;
mod fastapi;
mod harness;
mod list;
mod migrations;
mod model;
mod openapi;
mod plans;
mod process;
mod readme;
mod service;
mod tasks;
mod tidy;
mod transfer;
mod writes;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test has its own connections, of the 64 that the server has.
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(12);
    arguments.test_threads.get_or_insert(threads);
    let tests = [
        auth::tests(),
        conversation::tests(),
        crash::tests(),
        embedded::tests(),
        errors::tests(),
        events::tests(),
        fastapi::tests(),
        list::tests(),
        migrations::tests(),
        model::tests(),
        openapi::tests(),
        plans::tests(),
        readme::tests(),
        service::tests(),
        tasks::tests(),
        tidy::tests(),
        transfer::tests(),
        writes::tests(),
    ];
    if arguments.list {
        return libtest_mimic::run(&arguments, tests.into_iter().flatten().collect()).exit_code();
    }
    cluster::with_cluster(|| {
        libtest_mimic::run(&arguments, tests.into_iter().flatten().collect()).exit_code()
    })
}
