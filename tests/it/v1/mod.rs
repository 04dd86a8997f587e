//! REST v1, a module for each resource or route. Reports are made through the route of the SDK.

mod delete;
mod idempotency;
mod invoke;
mod invoke_sync;
mod list_links;
mod list_oracle;
mod list_plans;
mod model;
mod report;
mod stop;
mod tasks_list;
mod threads;
