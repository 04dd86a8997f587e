//! Migrations: those of `sqlx migrate run`, which is run here as it is, and those of the program are the same.

use clap::Parser;
use futures_util::future::join_all;
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor, Row, SqlSafeStr};
use task_history::store::{self, DatabaseUrl, Store};

use crate::cluster;
use crate::harness::tests;

tests![
    the_cli_and_the_program_agree,
    many_at_once_are_harmless,
    what_was_there_before_is_counted,
    committed_query_data_is_current,
];

async fn migrate_with_cli(database: &str) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let url = cluster::url_of(database);
    sqlx::any::install_default_drivers();
    let arguments =
        ["sqlx", "--no-dotenv", "migrate", "run", "--source", source, "--database-url", url.as_str()];
    sqlx_cli::run(sqlx_cli::Opt::parse_from(arguments)).await.expect("sqlx migrate run");
}

async fn migrate_with_program(database: &str) {
    let url = DatabaseUrl::parse(&cluster::url_of(database)).expect("a URL");
    store::migrate(&url).await.expect("migrations");
}

/// What was applied, and the whole schema as far as the catalogue tells it.
async fn state(database: &str) -> (Vec<String>, Vec<String>) {
    let mut connection = cluster::connect(database).await;
    let applied =
        "SELECT version || ' ' || description || ' ' || encode(checksum, 'hex') || ' ' || installed_on
                   FROM _sqlx_migrations ORDER BY version";
    let schema = "
        SELECT table_name || '.' || column_name || ' ' || udt_name || ' ' || is_nullable || ' ' ||
               COALESCE(collation_name, '-') || ' ' || COALESCE(column_default, '-')
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE '\\_sqlx%'
        UNION ALL SELECT conrelid::regclass || ': ' || pg_get_constraintdef(oid) FROM pg_constraint
                  WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text NOT LIKE '\\_sqlx%'
        UNION ALL SELECT 'task_status: ' || enumlabel FROM pg_enum
        ORDER BY 1";
    let mut texts = Vec::new();
    for query in [applied, schema] {
        let rows = sqlx::query(query).fetch_all(&mut connection).await.expect("rows");
        texts.push(rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>());
    }
    let schema = texts.pop().expect("two");
    (texts.pop().expect("two"), schema)
}

async fn the_cli_and_the_program_agree() {
    let (first, second) = (cluster::empty_database().await, cluster::empty_database().await);
    migrate_with_cli(&first).await;
    migrate_with_program(&second).await;
    let (cli, program) = (state(&first).await, state(&second).await);
    assert!(cli.1.len() > 40, "{:?}", cli.1);
    assert_eq!(cli.1, program.1, "the same schema");
    migrate_with_program(&first).await;
    migrate_with_cli(&second).await;
    assert_eq!(state(&first).await, cli, "the program has nothing to add to the command line's");
    assert_eq!(state(&second).await, program, "nor the other way round");
}

async fn many_at_once_are_harmless() {
    let database = cluster::empty_database().await;
    join_all((0..8).map(|_| migrate_with_program(&database))).await;
    let (applied, _) = state(&database).await;
    let files =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).expect("a directory").count();
    assert_eq!(applied.len(), files);
}

/// Tasks that are older than the counts, and sub-tasks that are older than theirs.
async fn what_was_there_before_is_counted() {
    let database = cluster::empty_database().await;
    let mut connection = cluster::connect(&database).await;
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"));
    let all = Migrator::new(folder).await.expect("migrations");
    let record = |from: u32| {
        format!(
            "INSERT INTO organizations VALUES ('01a20f95-1d79-72d5-a7fe-6a92a2e54af0', 'default', now())
             ON CONFLICT DO NOTHING;
             WITH t AS (
                INSERT INTO tasks (organization_id, id, agent_id, user_id, parent_task_id, status, source, turns,
                                   created_at, updated_at)
                SELECT '01a20f95-1d79-72d5-a7fe-6a92a2e54af0', n::text, (ARRAY['a', 'b'])[1 + n % 2], 'u',
                       CASE WHEN n % 3 = 0 THEN 'p' END, (ARRAY['completed', 'failed'])[1 + n / 3 % 2]::task_status,
                       'api', 1, '2026-01-01'::timestamptz + n * interval '7 hours', now()
                FROM generate_series({from}, {from} + 29) AS n
                RETURNING *
             )
             INSERT INTO task_turns (organization_id, task_id, turn, input, request, status, is_manually_stopped, created_at)
             SELECT organization_id, id, 1, '{{}}', '{{}}', status, false, created_at FROM t"
        )
    };
    // Before anything was counted, and before sub-tasks were.
    for (from, version) in [(0, 20_261_124_110_001), (100, 20_261_124_230_001)] {
        let earlier = all.iter().filter(|migration| migration.version < version).cloned().collect();
        Migrator::with_migrations(earlier).run(&mut connection).await.expect("migrations");
        cluster::execute(&database, &record(from)).await;
    }
    migrate_with_program(&database).await;
    cluster::execute(&database, &record(200)).await;
    let store = Store::new(&DatabaseUrl::parse(&cluster::url_of(&database)).expect("a URL"), 1);
    let (organization, name) = store.organizations().await.expect("organisations").remove(0);
    let verified = store.verify(organization, &name).await.expect("a recount");
    assert_eq!((verified.tasks, verified.drift), (90, Vec::new()));
}

/// What the compiler checks statements against is what the migrations make.
async fn committed_query_data_is_current() {
    let database = cluster::migrated_database().await;
    let mut connection = cluster::connect(&database).await;
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let mut described = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        let committed: Value = serde_json::from_str(&text).expect("JSON");
        let query = committed["query"].as_str().expect("a statement").to_owned();
        let current = connection.describe(AssertSqlSafe(query.clone()).into_sql_str()).await.expect(&query);
        let current = serde_json::to_value(&current).expect("JSON");
        assert_eq!(current, committed["describe"], "run `cargo sqlx prepare`, see CONTRIBUTING.md: {query}");
        described += 1;
    }
    assert!(described >= 10, "only {described} statements");
}
