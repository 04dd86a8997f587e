//! The rules of the house that a compiler does not know: `docs/ARCHITECTURE.md` states them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::tests;

tests![
    layers_point_one_way,
    every_statement_names_its_organization,
    only_literals_are_pushed_into_statements,
    one_file_reads_the_environment,
    every_migration_names_the_query_it_serves,
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths and texts of all Rust files below a directory, relative to the root.
fn sources(directory: &str) -> Vec<(String, String)> {
    let mut pending = vec![root().join(directory)];
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((name, fs::read_to_string(path).expect("a file")));
        }
    }
    assert!(!found.is_empty(), "{directory} has no files");
    found
}

fn refuse(directory: &str, words: &[&str], except: &[&str]) {
    for (name, text) in sources(directory) {
        for word in words {
            let hit =
                text.lines().position(|line| line.contains(word) && !line.trim_start().starts_with("//"));
            assert!(
                hit.is_none() || except.contains(&name.as_str()),
                "{name}:{} has `{word}`",
                hit.unwrap_or(0) + 1
            );
        }
    }
}

async fn layers_point_one_way() {
    refuse("src/domain", &["crate::store", "crate::api", "crate::app", "axum", "sqlx::query", "async "], &[]);
    refuse("src/store", &["crate::api", "crate::app", "crate::cli", "axum", "StatusCode"], &[]);
    refuse("src/api", &["sqlx", "SELECT ", "crate::app", "crate::cli", "crate::embedded"], &[]);
    for path in ["src/embedded", "src/embedded.rs"] {
        refuse(path, &["crate::store", "crate::api", "crate::domain", "sqlx"], &[]);
    }
    refuse("src/config.rs", &["crate::cli", "crate::app", "crate::api"], &[]);
}

async fn every_statement_names_its_organization() {
    // What has no organisation: whether a database exists, organisations themselves, the key that says which one,
    // and locks.
    let without = ["FROM pg_database", "INTO organizations", "FROM organizations WHERE name", "pg_advisory"];
    let mut statements = 0;
    for (name, text) in sources("src/store") {
        for (at, _) in text.match_indices("sqlx::query").chain(text.match_indices("select_task!(")) {
            let call = &text[at..];
            let end =
                call.find("\n        )\n").or_else(|| call.find("\n    )\n")).or_else(|| call.find(";\n"));
            let statement = &call[..end.unwrap_or(call.len())];
            if !statement.contains("SELECT") && !statement.contains("INSERT") && !statement.contains("UPDATE")
            {
                continue;
            }
            statements += 1;
            let line = text[..at].lines().count() + 1;
            let named =
                statement.contains("organization_id") || without.iter().any(|text| statement.contains(text));
            assert!(named, "{name}:{line} has a statement without organization_id:\n{statement}");
        }
    }
    assert!(statements >= 10, "only {statements} statements were found");
}

async fn only_literals_are_pushed_into_statements() {
    for (name, text) in sources("src/store") {
        for (at, _) in text.match_indices("sql.push(") {
            let argument = text[at + "sql.push(".len()..].trim_start();
            let line = text[..at].lines().count();
            assert!(argument.starts_with('"'), "{name}:{line} pushes something else than a literal");
        }
    }
}

async fn one_file_reads_the_environment() {
    // Where programs are, and what the server must not inherit, are no settings of ours.
    refuse("src", &["env::var"], &["src/embedded/binaries.rs", "src/embedded/process.rs"]);
}

async fn every_migration_names_the_query_it_serves() {
    let directory = root().join("migrations");
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).expect("a file");
        let comment: String = text.lines().take_while(|line| line.starts_with("--")).collect();
        assert!(comment.contains("Serves: "), "{} does not say which query it serves", file.display());
    }
}
