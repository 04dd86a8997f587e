//! Which index serves which list: asked on an empty table with every other way of reading turned off, so that it says
//! what the indexes can do and does not change with the data.

use serde_json::Value;
use task_history::domain::{AgentId, Label, PageRequest, Status, TaskFilter, TaskId, UserId};
use task_history::store::{DatabaseUrl, Store};

use crate::cluster;
use crate::harness::{TestApp, tests};

tests![each_filter_has_its_index];

async fn each_filter_has_its_index() {
    let app = TestApp::start().await;
    let database = &app.database;
    for setting in ["enable_seqscan", "enable_bitmapscan", "enable_sort"] {
        cluster::execute(database, &format!("ALTER DATABASE {database} SET {setting} = off")).await;
    }
    // Settings of a database hold for connections made from now on.
    let store = Store::new(&DatabaseUrl::parse(&cluster::url_of(database)).expect("a URL"), 1);
    let agent =
        || TaskFilter { agent_id: Some(AgentId::parse("a").expect("an id")), ..TaskFilter::default() };
    let cases = [
        ("tasks_by_agent", agent()),
        ("tasks_by_agent_status", TaskFilter { status: Some(Status::Completed), ..agent() }),
        ("tasks_by_agent_user", TaskFilter { user_id: Some(UserId::parse("u").expect("an id")), ..agent() }),
        (
            "tasks_by_parent",
            TaskFilter { parent_task_id: Some(TaskId::parse("p").expect("an id")), ..agent() },
        ),
        (
            "tasks_by_agent_triggering_agent",
            TaskFilter { triggering_agent_id: Some(AgentId::parse("g").expect("an id")), ..agent() },
        ),
        (
            "tasks_by_agent_internal_status",
            TaskFilter { internal_status: Some(Label::parse("s").expect("a label")), ..agent() },
        ),
    ];
    for (index, filter) in cases {
        let page = PageRequest::new(1, 20).expect("in range");
        let plan = store.explain_list_tasks(app.organization, &filter, page).await.expect("a plan");
        let mut scans = Vec::new();
        collect_scans(&plan, &mut scans);
        assert_eq!(scans.len(), 2, "one for the page, one for the total: {plan:#}");
        for scan in scans {
            // Without a filter any index of the agent's tasks counts them as well.
            let counts_all = index == "tasks_by_agent" && scan["Node Type"] == "Index Only Scan";
            assert!(counts_all || scan["Index Name"] == index, "{filter:?}: {plan:#}");
            // A sub-task's agent is looked at on its row: a parent has few.
            let filtered = scan.get("Filter").and_then(Value::as_str);
            let expected = (index == "tasks_by_parent").then_some("(agent_id = 'a'::text)");
            assert_eq!(filtered, expected, "{plan:#}");
        }
        let text = plan.to_string();
        assert!(
            !text.contains("\"Sort\"") || only_sorts_the_page(&plan),
            "the index gives the order: {plan:#}"
        );
    }
}

fn collect_scans(node: &Value, scans: &mut Vec<Value>) {
    match node {
        Value::Object(fields) => {
            if fields.get("Relation Name").is_some_and(|name| name == "tasks") {
                scans.push(node.clone());
            }
            fields.values().for_each(|value| collect_scans(value, scans));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_scans(value, scans)),
        _ => {}
    }
}

/// The one sort allowed is the last step, over the rows of one page.
fn only_sorts_the_page(plan: &Value) -> bool {
    let top = &plan[0]["Plan"];
    let below = top["Plans"].to_string();
    top["Node Type"] == "Sort" && !below.contains("\"Sort\"")
}
