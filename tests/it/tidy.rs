//! The rules that a compiler does not know; `docs/ARCHITECTURE.md` states them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths and texts of all Rust files below `src`, relative to it.
fn sources() -> BTreeMap<String, String> {
    let src = root().join("src");
    let mut pending = vec![src.clone()];
    let mut found = BTreeMap::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("a directory");
            pending.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(&src).expect("below src").display().to_string();
            found.insert(name, fs::read_to_string(path).expect("a file"));
        }
    }
    assert!(found.len() > 50, "only {} files", found.len());
    found
}

/// The module of a file: `api/v1/mod.rs` is `["api", "v1"]`.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    match path {
        "lib" | "main" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// The paths of all `use` declarations of a file, one for each item, without `as` and with the
/// leading `pub`; `use crate::{api, store::Store}` gives `crate::api` and `crate::store::Store`.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for statement in text.split("use ").skip(1) {
        let Some((tree, _)) = statement.split_once(';') else { continue };
        if tree.starts_with(|c: char| c.is_alphabetic()) && !tree.contains(['"', '(', '=']) {
            expand("", tree, &mut found);
        }
    }
    found
}

fn expand(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    match tree.split_once('{') {
        None => {
            let path = tree.split(" as ").next().expect("a path").trim();
            if !path.is_empty() {
                found.push(format!("{prefix}{path}"));
            }
        }
        Some((start, rest)) => {
            let inner = rest.strip_suffix('}').expect("a closed group");
            let (mut depth, mut item) = (0, String::new());
            for c in inner.chars().chain([',']) {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        expand(&format!("{prefix}{}", start.trim()), &item, found);
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                item.push(c);
            }
        }
    }
}

/// The files that each file imports from; re-exports lead to the file that defines the item.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let file_of: BTreeMap<Vec<String>, &String> =
        sources.keys().map(|file| (module(file), file)).collect();
    // `use` paths as absolute module paths, the item last.
    let absolute = |file: &str, path: &str| -> Option<Vec<String>> {
        let mut here = module(file);
        let mut segments = path.split("::").map(str::to_owned).peekable();
        match segments.peek().map(String::as_str)? {
            "crate" => {
                here.clear();
                segments.next();
            }
            "self" => {
                segments.next();
            }
            "super" => {
                while segments.next_if(|segment| segment == "super").is_some() {
                    here.pop();
                }
            }
            child => {
                here.push(child.to_owned());
                let is_module = file_of.contains_key(&here);
                here.pop();
                if !is_module {
                    return None;
                }
            }
        }
        here.extend(segments);
        Some(here)
    };
    let mut reexports: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
    for (file, text) in &sources {
        for statement in text.split("pub").skip(1) {
            let start = statement.find("use ").filter(|at| *at < 20);
            let Some(tree) = start.and_then(|at| statement[at + 4..].split_once(';')) else {
                continue;
            };
            let mut paths = Vec::new();
            expand("", tree.0, &mut paths);
            for path in paths {
                if let Some(target) = absolute(file, &path) {
                    let mut name = module(file);
                    name.extend(target.last().cloned());
                    if name != target {
                        reexports.insert(name, target);
                    }
                }
            }
        }
    }
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in &sources {
        let code = text.split("#[cfg(test)]").next().expect("a part");
        for path in uses(code) {
            let Some(mut target) = absolute(file, &path) else { continue };
            for _ in 0..4 {
                match reexports.get(&target) {
                    Some(next) => target.clone_from(next),
                    None => break,
                }
            }
            while !target.is_empty() && !file_of.contains_key(&target) {
                target.pop();
            }
            if let Some(other) = file_of.get(&target).filter(|other| **other != file) {
                edges.entry(file.clone()).or_default().insert((*other).clone());
            }
        }
    }
    edges
}

/// A parent module declares its children and children use its types: that is no circle.
fn is_ancestor(a: &str, b: &str) -> bool {
    let (a, b) = (module(a), module(b));
    b.starts_with(&a) || a.starts_with(&b)
}

#[test]
fn layers_point_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("domain", &[]),
        ("telemetry", &[]),
        ("embedded", &[]),
        ("store", &["domain", "telemetry"]),
        ("api", &["domain", "store", "telemetry"]),
        ("web", &["api", "domain", "store", "telemetry"]),
        ("maintenance", &["domain", "store", "telemetry"]),
        ("config", &["domain", "embedded", "store", "telemetry"]),
        ("database", &["config", "embedded", "store"]),
        ("server", &["domain"]),
        ("app", &["api", "config", "database", "domain", "maintenance", "server", "store", "web"]),
        ("cli", &["api", "app", "config", "database", "domain", "store", "telemetry"]),
    ];
    let imports = imports();
    let mut checked = BTreeSet::new();
    for (file, others) in &imports {
        let layer = module(file).first().cloned().unwrap_or_default();
        let Some((_, below)) = allowed.iter().find(|(name, _)| *name == layer) else {
            assert_eq!(layer, "", "{file} belongs to no layer");
            continue;
        };
        for other in others {
            let of = module(other).first().cloned().unwrap_or_default();
            checked.insert((layer.clone(), of.clone()));
            assert!(of == layer || below.contains(&of.as_str()), "{file} imports from {other}");
        }
    }
    assert!(checked.len() > 20, "only {checked:?} were found");
    for (layer, words) in [
        ("domain/", &["axum", "sqlx::query", "async "][..]),
        ("store/", &["axum", "StatusCode"]),
        ("api/", &["sqlx", "SELECT "]),
        ("embedded/", &["sqlx", "axum"]),
        ("telemetry.rs", &["axum", "hyper", "http::"]),
    ] {
        refuse(layer, words, &[]);
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut edges = imports();
    for (file, others) in &mut edges {
        others.retain(|other| !is_ancestor(file, other));
    }
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 100, "{edges:#?}");
    // Files without imports are taken away until none is left; what remains is in a circle.
    loop {
        let done: Vec<String> = edges
            .iter()
            .filter(|(_, others)| others.is_empty())
            .map(|(file, _)| file.clone())
            .collect();
        let known: BTreeSet<String> = edges.keys().cloned().collect();
        for others in edges.values_mut() {
            others.retain(|other| known.contains(other) && !done.contains(other));
        }
        edges.retain(|file, _| !done.contains(file));
        if done.is_empty() {
            break;
        }
    }
    assert!(edges.is_empty(), "in a circle, or importing from one: {edges:#?}");
}

#[test]
fn files_have_one_subject() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        let says_why = text.lines().take(12).any(|line| line.contains("More than 400 lines:"));
        assert!(
            lines <= 400 || says_why,
            "{name} has {lines} lines: split it, or say why at its top"
        );
        // rustfmt breaks code lines; it leaves comments, SQL and long strings alone.
        for (number, line) in (1..).zip(text.lines()) {
            let width = line.chars().count();
            assert!(width <= 100, "{name}:{number} has {width} columns");
        }
    }
}

/// No code line of the files below a folder has one of the words.
fn refuse(folder: &str, words: &[&str], except: &[&str]) {
    for (name, text) in sources() {
        if !name.starts_with(folder) || except.contains(&name.as_str()) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let hit = words.iter().find(|word| line.contains(**word) && !is_comment);
            assert!(hit.is_none(), "{name}:{} has `{}`", number + 1, hit.unwrap_or(&""));
        }
    }
}

/// Parts of statements that belong to no organization, and why.
const WITHOUT_ORGANIZATION: [(&str, &str); 12] = [
    ("FROM pg_locks", "which locks writers hold"),
    ("FROM pg_database", "whether a database exists"),
    ("to_regclass('_sqlx_migrations')", "whether a database is migrated"),
    ("INTO organizations", "creates an organization"),
    ("FROM organizations WHERE name", "finds an organization by its name"),
    ("FROM organizations ORDER BY name", "lists organizations for an operator"),
    ("FROM api_keys key\n            JOIN organizations", "lists keys for an operator"),
    ("WHERE digest =", "finds the organization of a key"),
    ("SELECT current_setting(", "reads a setting of the server"),
    ("pg_advisory", "takes a lock, reads no row"),
    ("pg_try_advisory", "takes a lock if it is free, reads no row"),
    ("SELECT watched_tasks($1", "tests locks, reads no row"),
];

/// The committed query data has every fixed statement, whatever macro made it. Statements that are
/// built at run time share `push_filter`, and tests of plans and of other organizations cover them.
#[test]
fn every_statement_is_bound_to_its_organization() {
    let mut used = BTreeSet::new();
    let mut bound = 0;
    for entry in fs::read_dir(root().join(".sqlx")).expect("a directory") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        let data: Value = serde_json::from_str(&text).expect("JSON");
        let statement = data["query"].as_str().expect("a statement");
        let exception = WITHOUT_ORGANIZATION.iter().find(|(part, _)| statement.contains(part));
        if let Some((part, _)) = exception {
            used.insert(*part);
            continue;
        }
        bound += 1;
        // The organization is always the first value. It must restrict what is read or changed, or
        // be the first column of what is inserted; in a list of columns it restricts nothing.
        let flat = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let tables = ["tasks", "task_turns", "task_events", "task_counts", "idempotency_keys"];
        let words: Vec<_> = flat.split([' ', '(', ')']).collect();
        let is_read = |pair: &[&str]| {
            ["FROM", "JOIN", "UPDATE"].contains(&pair[0]) && tables.contains(&pair[1])
        };
        let reads = words.windows(2).filter(|pair| is_read(pair)).count();
        // Each table that is read or changed has a condition on its organization.
        let conditions = flat.matches("organization_id = ").count();
        assert!(conditions >= reads, "{reads} tables, {conditions} conditions:\n{statement}");
        assert!(reads == 0 || restricts(&flat), "not bound to an organization:\n{statement}");
        if flat.contains("INSERT INTO") {
            let inserts = flat.contains("VALUES ($1,") || flat.contains("SELECT $1,");
            assert!(inserts, "inserts for no organization:\n{statement}");
        }
        assert!(restricts(&flat) || flat.contains("INSERT INTO"), "unbound:\n{statement}");
    }
    assert!(bound >= 15, "only {bound} statements");
    assert_eq!(used.len(), WITHOUT_ORGANIZATION.len(), "exceptions that no statement needs");
}

/// Whether a WHERE or ON binds the organization to the first value.
fn restricts(statement: &str) -> bool {
    let is_condition = |at: usize| {
        let before = &statement[..at];
        let keyword =
            ["WHERE ", " AND ", " ON "].iter().filter_map(|word| before.rfind(word)).max();
        let other =
            ["SELECT ", "SET ", "RETURNING "].iter().filter_map(|word| before.rfind(word)).max();
        keyword > other
    };
    let mut conditions = statement.match_indices("organization_id = $1");
    conditions.any(|(at, _)| is_condition(at))
        || (statement.contains("organization.name = $1")
            && statement.contains("organization_id = organization.id"))
}

/// Statements of the store that are not checked by the compiler, each with its reason.
#[test]
fn unchecked_statements_are_few() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (at, _) in text.match_indices("sqlx::").filter(|(at, _)| {
            ["sqlx::query(", "sqlx::query_scalar::<", "sqlx::raw_sql(", "sqlx::query_as::<"]
                .iter()
                .any(|call| text[*at..].starts_with(call))
        }) {
            let call = text[at..].split('(').next().expect("a call").to_owned();
            found.push(format!("{name} {call}"));
        }
    }
    let expected = [
        // sqlx's own table has no query data; CREATE DATABASE takes no parameter.
        "store/database.rs sqlx::query_scalar::<_, i64>",
        "store/database.rs sqlx::raw_sql",
        // Settings of a transaction.
        "store/pool.rs sqlx::raw_sql",
    ];
    assert_eq!(found, expected);
}

/// Methods of the store that only read, by the start of their names.
const READING: [&str; 16] = [
    "authenticate",
    "close",
    "count_",
    "explain_",
    "export_",
    "follow_",
    "get_",
    "hold_",
    "list_",
    "new",
    "read",
    "remembers_",
    "reserve",
    "start_",
    "verify",
    "watch_",
];

/// Methods of the store that write, by the start of their names.
const WRITING: [&str; 8] =
    ["bootstrap", "create_", "delete_", "ensure_", "import_", "record_", "revoke_", "stop_"];

/// A request that is broken off between two writes would leave half of what it says.
#[test]
fn a_request_writes_once() {
    let sources = sources();
    let starts = |name: &str, words: &[&str]| words.iter().any(|word| name.starts_with(word));
    let name_of = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut writing = BTreeSet::new();
    for (file, text) in sources.iter().filter(|(file, _)| file.starts_with("store/")) {
        for part in text.split("impl Store {").skip(1) {
            let methods = part.split("\n}").next().expect("a part");
            for method in methods.split("pub ").skip(1) {
                let method = method.strip_prefix("async ").unwrap_or(method);
                let Some(name) = method.strip_prefix("fn ").map(name_of) else { continue };
                let (reads, writes) = (starts(&name, &READING), starts(&name, &WRITING));
                assert!(reads != writes, "{file}: does {name} read or write?");
                if writes {
                    writing.insert(name);
                }
            }
        }
    }
    assert!(writing.len() >= 8, "only {writing:?}");
    // `InvocationRequest::record` calls one of them.
    writing.insert("record".to_owned());
    let mut writers = 0;
    for (file, text) in sources.iter().filter(|(file, _)| file.starts_with("api/")) {
        let code = text.split("#[cfg(test)]").next().expect("a part");
        for function in code.split("fn ").skip(1) {
            let calls: Vec<_> = function
                .split('.')
                .skip(1)
                .map(name_of)
                .filter(|name| writing.contains(name))
                .collect();
            assert!(calls.len() <= 1, "{file}: {} writes by {calls:?}", name_of(function));
            writers += calls.len();
        }
    }
    assert!(writers >= 10, "only {writers} functions write");
}

/// Where programs are, and what the server must not inherit, are not settings of the service.
#[test]
fn one_file_reads_the_environment() {
    refuse("", &["env::var"], &["embedded/binaries.rs", "embedded/process.rs"]);
}

#[test]
fn every_migration_names_the_query_it_serves() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("migrations")).expect("a directory") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a file");
        let comment: String = text.lines().take_while(|line| line.starts_with("--")).collect();
        assert!(comment.contains("Serves: "), "{} does not name its query", path.display());
        count += 1;
    }
    assert!(count >= 8, "only {count} migrations");
}
