//! Random sequences of all operations that change tasks. After each step the task, the list and the
//! thread are compared with a model of the contract.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

/// The number of sequences, and of steps in each.
const SEQUENCES: u64 = 12;
const STEPS: usize = 60;

/// Few ids, so that steps affect the same tasks. Each task can be the parent of another.
const IDS: [&str; 4] = ["t1", "t2", "t3", "t4"];
const AGENTS: [&str; 2] = ["a1", "a2"];

/// The contract's statuses, and whether a turn with one has ended.
const STATUSES: [&str; 7] =
    ["pending", "executing", "paused", "error", "failed", "completed", "stopped"];

fn is_terminal(status: &str) -> bool {
    ["error", "failed", "completed", "stopped"].contains(&status)
}

/// The state of a turn, by the contract's words: independent of the service's own state machine.
#[derive(Debug, Clone)]
struct ModelState {
    status: &'static str,
    result: Option<String>,
    is_manually_stopped: bool,
    started_at: Option<DateTime<Utc>>,
    paused_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl Default for ModelState {
    fn default() -> Self {
        Self {
            status: "pending",
            result: None,
            is_manually_stopped: false,
            started_at: None,
            paused_at: None,
            finished_at: None,
        }
    }
}

impl ModelState {
    fn is_terminal(&self) -> bool {
        is_terminal(self.status)
    }

    fn set_status(&mut self, status: &'static str, now: DateTime<Utc>) {
        if status == self.status {
            return;
        }
        (self.started_at, self.paused_at) = match status {
            "pending" => (None, None),
            "executing" => (self.started_at.or(Some(now)), self.paused_at),
            "paused" => (self.started_at, Some(now)),
            _ => (self.started_at, self.paused_at),
        };
        self.finished_at = is_terminal(status).then_some(now);
        self.is_manually_stopped = false;
        self.status = status;
    }
}

#[derive(Debug, Clone)]
struct ModelTurn {
    text: String,
    title: Option<String>,
    source: &'static str,
    state: ModelState,
    created_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
struct ModelTask {
    agent: &'static str,
    user: Option<String>,
    parent: Option<&'static str>,
    turns: Vec<ModelTurn>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl ModelTask {
    fn latest(&mut self) -> &mut ModelState {
        &mut self.turns.last_mut().expect("each task has a turn").state
    }
}

type Model = BTreeMap<&'static str, ModelTask>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_sequences_agree_with_the_model() {
    for seed in 0..SEQUENCES {
        let app = TestApp::start().await;
        let mut random = StdRng::seed_from_u64(seed);
        let mut model = Model::new();
        let mut steps = Vec::new();
        for _ in 0..STEPS {
            if random.random_ratio(2, 3) {
                app.advance(1.5);
            }
            steps.push(step(&app, &mut model, &mut random).await);
            compare(&app, &model, &format!("seed {seed}: {}", steps.join(", "))).await;
        }
        let verified = app.store.verify(app.organization, "default").await.expect("a recount");
        assert_eq!(verified.drift, Vec::<String>::new(), "seed {seed}: {}", steps.join(", "));
    }
}

/// Adds a turn to the model and returns the expected answer of the service.
fn add_turn(
    model: &mut Model,
    id: &'static str,
    agent: &'static str,
    turn: ModelTurn,
    user: Option<String>,
    parent: Option<&'static str>,
) -> StatusCode {
    let now = turn.created_at;
    let task = model.entry(id).or_insert(ModelTask {
        agent,
        user: None,
        parent: None,
        turns: Vec::new(),
        created_at: now,
        updated_at: now,
    });
    if task.agent != agent {
        return StatusCode::CONFLICT;
    }
    task.turns.push(turn);
    task.user = task.user.take().or(user);
    task.parent = task.parent.or(parent);
    task.updated_at = now;
    StatusCode::OK
}

/// Applies a random operation to the service and to the model, and describes it.
async fn step(app: &TestApp, model: &mut Model, random: &mut StdRng) -> String {
    let id = *IDS.choose(random).expect("ids");
    let now = app.now();
    let expected = if model.contains_key(id) { StatusCode::OK } else { StatusCode::NOT_FOUND };
    match random.random_range(0..10) {
        0..=3 => {
            let agent = *AGENTS.choose(random).expect("agents");
            let text = ["", "hello", "again"].choose(random).expect("texts").to_string();
            let title = random.random_ratio(1, 3).then(|| "named".to_owned());
            let user = random.random_ratio(1, 3).then(|| format!("u{}", random.random_range(1..3)));
            let parent = random.random_ratio(1, 3).then(|| *IDS.choose(random).expect("ids"));
            let mut body = json!({ "id": id, "input": { "text": text }, "title": title });
            body["parent_execution_id"] = json!(parent);
            if let Some(user) = &user {
                body["input"]["user"] = json!({ "id": user, "email": "x" });
            }
            let answer = app.invoke(agent, body).await;
            let turn = ModelTurn {
                text,
                title,
                source: "api",
                state: ModelState::default(),
                created_at: now,
            };
            assert_eq!(answer.status, add_turn(model, id, agent, turn, user, parent));
            format!("invoke {id} of {agent}")
        }
        4..=6 => {
            let status =
                random.random_ratio(3, 4).then(|| *STATUSES.choose(random).expect("statuses"));
            let result =
                random.random_ratio(1, 2).then(|| format!("r{}", random.random_range(0..9)));
            let body = json!({ "status": status, "result": result });
            assert_eq!(app.report(id, body).await.status, expected);
            if let Some(task) = model.get_mut(id) {
                let state = task.latest();
                if let Some(status) = status {
                    state.set_status(status, now);
                }
                state.result = result.clone().or(state.result.take());
                task.updated_at = now;
            }
            format!("report {id} {status:?} {result:?}")
        }
        7 => {
            let answer = app.request("POST", &format!("/v1/tasks/{id}/stop"), None).await;
            assert_eq!(answer.status, expected);
            if let Some(task) = model.get_mut(id)
                && !is_terminal(task.latest().status)
            {
                task.latest().set_status("stopped", now);
                task.latest().is_manually_stopped = true;
                task.updated_at = now;
            }
            format!("stop {id}")
        }
        8 => {
            let body =
                json!({ "id": id, "input": "outside", "result": "done", "is_success": true });
            let agent = *AGENTS.choose(random).expect("agents");
            let answer = app
                .request("POST", &format!("/agent-execution/{agent}/report_task"), Some(body))
                .await;
            let mut state = ModelState::default();
            state.set_status("completed", now);
            state.result = Some("done".to_owned());
            let turn = ModelTurn {
                text: "outside".to_owned(),
                title: None,
                source: "sdk",
                state,
                created_at: now,
            };
            assert_eq!(answer.status, add_turn(model, id, agent, turn, None, None));
            format!("report_task {id} of {agent}")
        }
        _ => {
            let answer = app.request("DELETE", &format!("/v1/tasks/{id}"), None).await;
            let gone = if expected == StatusCode::OK {
                StatusCode::NO_CONTENT
            } else {
                StatusCode::NOT_FOUND
            };
            assert_eq!(answer.status, gone);
            let mut doomed: Vec<_> = model.contains_key(id).then_some(id).into_iter().collect();
            while let Some(id) = doomed.pop() {
                model.remove(id);
                doomed.extend(
                    model.iter().filter(|(_, task)| task.parent == Some(id)).map(|(id, _)| *id),
                );
            }
            format!("delete {id}")
        }
    }
}

/// Asserts that every answer of the service equals the model.
async fn compare(app: &TestApp, model: &Model, steps: &str) {
    let time = |time: Option<DateTime<Utc>>| {
        time.map(|time| time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().replace(".000000Z", "Z"))
    };
    let mut order: Vec<_> = model.iter().collect();
    order.sort_by(|(a_id, a), (b_id, b)| (b.created_at, b_id).cmp(&(a.created_at, a_id)));
    let list = app.get("/v1/tasks").await.ok();
    assert_eq!(list["total"], model.len(), "{steps}");
    let items: Vec<_> = order
        .iter()
        .map(|(id, task)| {
            let turn = task.turns.last().expect("a turn");
            json!({
                "id": id,
                "agent_id": task.agent,
                "user_id": task.user,
                "parent_task_id": task.parent,
                "triggering_agent_id": null,
                "organization_id": app.organization.to_string(),
                "status": turn.state.status,
                "created_at": time(Some(task.created_at)),
                "updated_at": time(Some(task.updated_at)),
                "source_node_type": turn.source,
                "result": turn.state.result,
                "title": turn
                    .title
                    .clone()
                    .or_else(|| Some(turn.text.clone()).filter(|text| !text.is_empty()))
            })
        })
        .collect();
    assert_eq!(list["items"], Value::Array(items), "{steps}");
    for id in IDS {
        let (task, thread) = (
            app.get(&format!("/v1/tasks/{id}")).await,
            app.get(&format!("/v1/tasks/{id}/thread")).await,
        );
        let Some(expected) = model.get(id) else {
            assert_eq!(
                (task.status, thread.status),
                (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND),
                "{steps}"
            );
            continue;
        };
        let task = task.ok();
        let turn = expected.turns.last().expect("a turn");
        let mut children: Vec<_> =
            model.iter().filter(|(_, task)| task.parent == Some(id)).collect();
        children.sort_by_key(|(id, task)| (task.created_at, **id));
        let finished: Vec<_> = children
            .iter()
            .filter(|(_, task)| task.turns.last().expect("a turn").state.is_terminal())
            .map(|(id, _)| id)
            .collect();
        let shown = json!({
            "status": turn.state.status,
            "result": turn.state.result,
            "title": turn.title,
            "text": turn.text,
            "started_at": time(turn.state.started_at),
            "paused_at": time(turn.state.paused_at),
            "finished_at": time(turn.state.finished_at),
            "is_manually_stopped": turn.state.is_manually_stopped,
            "sub_executions": children.iter().map(|(id, _)| id).collect::<Vec<_>>(),
            "finished_sub_executions": finished,
        });
        let mut actual = json!({});
        for key in shown.as_object().expect("an object").keys() {
            actual[key] =
                if key == "text" { task["input"]["text"].clone() } else { task[key].clone() };
        }
        assert_eq!(actual, shown, "{id}: {steps}");
        let mut messages = Vec::new();
        for (at, turn) in expected.turns.iter().enumerate() {
            let number = at + 1;
            messages.push(json!([
                format!("{id}_user_{number}"),
                turn.text,
                turn.created_at.timestamp()
            ]));
            if let Some(result) = &turn.state.result {
                let state = &turn.state;
                let times =
                    [state.finished_at, state.paused_at, state.started_at, Some(turn.created_at)];
                let answered = times.into_iter().flatten().next().expect("a time");
                messages.push(json!([
                    format!("{id}_agent_{number}"),
                    result,
                    answered.timestamp()
                ]));
            }
        }
        let thread = thread.ok();
        let said = thread.as_array().expect("messages").iter();
        let said: Vec<_> =
            said.map(|said| json!([said["id"], said["content"], said["created_at"]])).collect();
        assert_eq!(said, messages, "{id}: {steps}");
    }
}
