//! Recounting: `task-history verify`.

use std::process::ExitCode;

use serde_json::json;

use super::output::{print, print_json};
use super::session::with_store;
use crate::config::DatabaseArgs;
use crate::store::VerifyReport;

/// Exit code with drift, to tell it from a check that failed.
const EXIT_DRIFT: u8 = 2;

/// Recounts every organization and prints the drift.
pub(super) async fn run(json: bool, database: DatabaseArgs) -> anyhow::Result<ExitCode> {
    let reports = with_store(database, 1, async |store| {
        let mut reports = Vec::new();
        for (organization, name) in store.list_organizations().await? {
            reports.push(store.verify(organization, &name).await?);
        }
        Ok(reports)
    })
    .await?;
    let agrees = reports.iter().all(|report| report.drift.is_empty());
    if json {
        let organizations = reports.iter().map(|VerifyReport { organization, tasks, drift }| {
            json!({ "organization": organization, "tasks": tasks, "drift": drift })
        });
        let organizations: Vec<_> = organizations.collect();
        print_json(&json!({ "agrees": agrees, "organizations": organizations }));
    } else {
        for VerifyReport { organization, tasks, drift } in &reports {
            print(&format!("{organization}: {tasks} tasks, {} differences", drift.len()));
            for difference in drift {
                print(&format!("  {difference}"));
            }
        }
        print(if agrees {
            "All counts and turns agree with the tasks."
        } else {
            "The counts have drifted. Keep a copy of the database, and report it as a bug of \
             task-history."
        });
    }
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DRIFT) })
}
