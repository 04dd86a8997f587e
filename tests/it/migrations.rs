//! The migrations: how they are applied, the schema that they create, and its invariants.

use std::collections::HashMap;
use std::path::Path;

use clap::Parser;
use futures_util::future::join_all;
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, SqlSafeStr};
use task_history::store::{self, DatabaseUrl, StoreError};

use crate::support::cluster;

const MIGRATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");

/// Version, and first 16 hexadecimal digits of the SHA-384 checksum, of each landed migration.
const LANDED: &[(&str, &str)] = &[
    ("20261125000001", "310953ea0d6c4fdf"),
    ("20261125000002", "8717c8653edd9b2e"),
    ("20261125000003", "619503485a25a0cc"),
    ("20261125000004", "159b7496f8d570a8"),
    ("20261125000005", "ed86fbb8de0956e7"),
    ("20261125000006", "0f4eeb818a3c8674"),
    ("20261125000007", "b254665d7a330c30"),
    ("20261125000008", "7eb385d124e1cbb5"),
    ("20261125000100", "c7d6fe816f32db9e"),
    ("20261125000200", "18a36b2abea1422f"),
];

/// Renders the schema as SQL from the catalog, one paragraph per row. The result is the same on all
/// supported versions of PostgreSQL, which `pg_dump` does not promise.
///
/// Tables are sorted by foreign key level, then by name, so that PostgreSQL can load the page.
const SCHEMA: &str = r#"
    WITH RECURSIVE levels AS (
        SELECT oid, 0 AS level
        FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE '\_sqlx%'
        UNION
        SELECT reference.conrelid, levels.level + 1
        FROM levels
        JOIN pg_constraint reference
            ON reference.confrelid = levels.oid AND reference.contype = 'f'
           AND reference.conrelid <> reference.confrelid
        WHERE levels.level < 20
    ),
    tables AS (
        SELECT pg_class.oid, pg_class.relname, pg_class.reltype, pg_class.reloptions,
               max(levels.level) AS level
        FROM levels
        JOIN pg_class ON pg_class.oid = levels.oid
        GROUP BY pg_class.oid, pg_class.relname, pg_class.reltype, pg_class.reloptions
    ),
    columns AS (
        SELECT attribute.attrelid, attribute.attnum,
               '    ' || quote_ident(attribute.attname) || ' '
               || format_type(attribute.atttypid, attribute.atttypmod)
               || CASE attribute.attcompression
                      WHEN 'l' THEN ' COMPRESSION lz4'
                      WHEN 'p' THEN ' COMPRESSION pglz'
                      ELSE ''
                  END
               || COALESCE(' COLLATE ' || quote_ident(pg_collation.collname), '')
               || CASE WHEN attribute.attnotnull THEN ' NOT NULL' ELSE '' END
               || COALESCE(' DEFAULT ' || pg_get_expr(value.adbin, value.adrelid), '') AS line
        FROM pg_attribute attribute
        JOIN pg_type ON pg_type.oid = attribute.atttypid
        LEFT JOIN pg_collation
            ON pg_collation.oid = attribute.attcollation
           AND attribute.attcollation <> pg_type.typcollation
        LEFT JOIN pg_attrdef value
            ON value.adrelid = attribute.attrelid AND value.adnum = attribute.attnum
        WHERE attribute.attnum > 0 AND NOT attribute.attisdropped
    ),
    -- NOT NULL is a constraint of its own since PostgreSQL 18. Here it is rendered with its column.
    constraints AS (
        SELECT conrelid, strpos('pufcx', contype::text) AS place, conname,
               '    CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid) AS line
        FROM pg_constraint
        WHERE contype IN ('p', 'u', 'f', 'c', 'x')
    ),
    paragraphs (section, level, name, part, text) AS (
        SELECT 1, 0, pg_type.typname, 0,
               'CREATE TYPE ' || quote_ident(pg_type.typname) || ' AS ENUM (' || E'\n    '
               || string_agg(quote_literal(enumlabel), E',\n    ' ORDER BY enumsortorder) || E'\n);'
        FROM pg_enum
        JOIN pg_type ON pg_type.oid = pg_enum.enumtypid
        WHERE pg_type.typnamespace = 'public'::regnamespace
        GROUP BY pg_type.typname
        UNION ALL
        SELECT 2, 0, pg_class.relname, 0,
               'CREATE TYPE ' || quote_ident(pg_class.relname) || E' AS (\n'
               || string_agg(columns.line, E',\n' ORDER BY columns.attnum) || E'\n);'
        FROM pg_class
        JOIN columns ON columns.attrelid = pg_class.oid
        WHERE pg_class.relnamespace = 'public'::regnamespace AND pg_class.relkind = 'c'
        GROUP BY pg_class.relname
        UNION ALL
        SELECT 3, tables.level, tables.relname, 0,
               'CREATE TABLE ' || quote_ident(tables.relname) || E' (\n'
               || (SELECT string_agg(line, E',\n' ORDER BY attnum) FROM columns
                   WHERE attrelid = tables.oid)
               || COALESCE(
                      (SELECT E',\n' || string_agg(line, E',\n' ORDER BY place, conname)
                       FROM constraints WHERE conrelid = tables.oid),
                      ''
                  )
               || E'\n)'
               || COALESCE(
                      (SELECT E'\nWITH (\n    '
                              || string_agg(
                                     replace(option, '=', ' = '),
                                     E',\n    ' ORDER BY option COLLATE "C"
                                 )
                              || E'\n)'
                       FROM unnest(tables.reloptions) AS option),
                      ''
                  )
               || ';'
        FROM tables
        UNION ALL
        SELECT 3, tables.level, tables.relname, 1,
               string_agg(
                   'ALTER TABLE ' || quote_ident(tables.relname) || ' ALTER COLUMN '
                   || quote_ident(attname) || ' SET (' || replace(option, '=', ' = ') || ');',
                   E'\n' ORDER BY attnum, option COLLATE "C"
               )
        FROM tables
        JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
        CROSS JOIN unnest(attoptions) AS option
        GROUP BY tables.level, tables.relname
        UNION ALL
        SELECT 3, tables.level, tables.relname, 2,
               string_agg(pg_get_indexdef(pg_index.indexrelid) || ';', E'\n' ORDER BY relname_of)
        FROM tables
        JOIN pg_index ON pg_index.indrelid = tables.oid
        CROSS JOIN LATERAL (
            SELECT relname AS relname_of FROM pg_class WHERE oid = pg_index.indexrelid
        ) AS named
        WHERE NOT EXISTS (
            SELECT FROM pg_constraint
            WHERE conindid = pg_index.indexrelid AND contype IN ('p', 'u', 'x')
        )
        GROUP BY tables.level, tables.relname
        UNION ALL
        SELECT 4, 0, proname, row_number() OVER (PARTITION BY proname ORDER BY proargtypes::text),
               rtrim(pg_get_functiondef(oid), E'\n') || ';'
        FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')
        UNION ALL
        SELECT 5, tables.level, tables.relname, 0,
               string_agg(pg_get_triggerdef(pg_trigger.oid) || ';', E'\n' ORDER BY tgname)
        FROM tables
        JOIN pg_trigger ON pg_trigger.tgrelid = tables.oid AND NOT pg_trigger.tgisinternal
        GROUP BY tables.level, tables.relname
        UNION ALL
        SELECT 6, 0, relname, 0, '-- Not rendered: ' || relname || ', of kind ' || relkind::text
        FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'i', 'c', 't')
    )
    SELECT text FROM paragraphs ORDER BY section, level, name, part
"#;

/// Indexes that do not begin with the organization, and why.
const OTHER_INDEXES: &[(&str, &str)] = &[
    ("organizations_pkey", "the id is the organization id"),
    ("organizations_name_key", "the name of an organization is unique"),
    ("api_keys_digest_key", "the digest of a key identifies its organization"),
    ("watch_secret_pkey", "the secret is the database's"),
];

async fn migrate_with_cli(database: &str) {
    let url = cluster::url_of(database);
    sqlx::any::install_default_drivers();
    let arguments = [
        "sqlx",
        "--no-dotenv",
        "migrate",
        "run",
        "--source",
        MIGRATIONS,
        "--database-url",
        url.as_str(),
    ];
    sqlx_cli::run(sqlx_cli::Opt::parse_from(arguments)).await.expect("sqlx migrate run");
}

async fn migrate(database: &str) -> Result<(), StoreError> {
    let url = DatabaseUrl::parse(&cluster::url_of(database)).expect("a URL");
    store::migrate(&url).await
}

async fn migrate_with_program(database: &str) {
    migrate(database).await.expect("migrations");
}

/// The rows of a query with one text column.
async fn texts(connection: &mut PgConnection, query: &str) -> Vec<String> {
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await.expect(query);
    rows.iter().map(|row| row.get(0)).collect()
}

/// The applied migrations, each with its time, and the rendered schema.
async fn state(database: &str) -> (Vec<String>, String) {
    let mut connection = cluster::connect(database).await;
    let applied = "
        SELECT version || ' ' || description || ' ' || encode(checksum, 'hex') || ' '
               || installed_on
        FROM _sqlx_migrations
        ORDER BY version";
    let applied = texts(&mut connection, applied).await;
    (applied, texts(&mut connection, SCHEMA).await.join("\n\n") + "\n")
}

/// The committed query data: one JSON document per fixed statement.
fn committed_statements() -> Vec<Value> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let entries = std::fs::read_dir(directory).expect("a directory");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    };
    entries.map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cli_and_the_program_agree() {
    let (first, second) = (cluster::empty_database().await, cluster::empty_database().await);
    migrate_with_cli(&first).await;
    migrate_with_program(&second).await;
    let (cli, program) = (state(&first).await, state(&second).await);
    assert!(cli.1.lines().count() > 100, "{}", cli.1);
    assert_eq!(cli.1, program.1, "the same schema");
    migrate_with_program(&first).await;
    migrate_with_cli(&second).await;
    assert_eq!(state(&first).await, cli, "the program adds nothing to what the CLI applied");
    assert_eq!(state(&second).await, program, "the CLI adds nothing to what the program applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_harmless() {
    let database = cluster::empty_database().await;
    join_all((0..8).map(|_| migrate_with_program(&database))).await;
    let (applied, _) = state(&database).await;
    let files = std::fs::read_dir(MIGRATIONS).expect("a directory").count();
    assert_eq!(applied.len(), files);
}

/// The compiler checks statements against `.sqlx`, which must match the migrated schema.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_query_data_is_current() {
    let database = cluster::migrated_database().await;
    let mut connection = cluster::connect(&database).await;
    let statements = committed_statements();
    for committed in &statements {
        let query = committed["query"].as_str().expect("a statement");
        let current = connection.describe(AssertSqlSafe(query).into_sql_str()).await.expect(query);
        let current = serde_json::to_value(&current).expect("JSON");
        assert_eq!(current, committed["describe"], "run `cargo xtask prepare`: {query}");
    }
    assert!(statements.len() >= 10, "only {} statements", statements.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_page_is_current() {
    let database = cluster::migrated_database().await;
    let (_, schema) = state(&database).await;
    assert!(!schema.contains("Not rendered"), "the page needs a rule for these: {schema}");
    let page = format!(
        "-- The schema that the migrations make, written by `cargo xtask update`.\n\n\
         {schema}"
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema.sql");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &page).expect("written");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/schema.sql is not current: run `cargo xtask update` and commit it"
    );

    // The page is complete: loading it creates the same schema.
    let loaded = cluster::empty_database().await;
    cluster::execute(&loaded, &page).await;
    let rendered = texts(&mut cluster::connect(&loaded).await, SCHEMA).await.join("\n\n") + "\n";
    assert_eq!(rendered, schema);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn landed_migrations_are_never_edited() {
    let migrator = Migrator::new(Path::new(MIGRATIONS)).await.expect("migrations");
    let current: HashMap<_, _> = migrator
        .iter()
        .map(|migration| {
            let start = migration.checksum[..8].try_into().expect("48 bytes");
            let checksum = format!("{:016x}", u64::from_be_bytes(start));
            (migration.version.to_string(), checksum)
        })
        .collect();
    for (version, landed) in LANDED {
        assert_eq!(
            current.get(*version).map(String::as_str),
            Some(*landed),
            "migration {version} has landed: restore its file, and write a new migration"
        );
    }
    for (version, checksum) in &current {
        assert!(
            LANDED.iter().any(|(landed, _)| landed == version),
            "migration {version} is new; add to LANDED:\n    (\"{version}\", \"{checksum}\"),"
        );
    }
}

/// A new database with the migrations before one of them.
async fn database_before(version: i64) -> String {
    let database = cluster::empty_database().await;
    let mut connection = cluster::connect(&database).await;
    let mut migrator = Migrator::new(Path::new(MIGRATIONS)).await.expect("migrations");
    migrator.migrations.to_mut().retain(|migration| migration.version < version);
    migrator.run(&mut connection).await.expect("migrations");
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_with_answers_stay_when_keys_expire() {
    let database = database_before(20_261_125_000_200).await;
    let record = "
        INSERT INTO organizations (id, name, created_at) VALUES (gen_random_uuid(), 'o', now());
        INSERT INTO tasks (organization_id, id, agent_id, status, source, turns, created_at,
                           updated_at)
        SELECT id, 't', 'a', 'pending', 'api', 1, now(), now() FROM organizations;
        INSERT INTO idempotency_keys (organization_id, agent_id, key, request, task_id, answer,
                                      created_at)
        SELECT id, 'a', 'k', 'digest', 't', 'the answer', now() FROM organizations";
    cluster::execute(&database, record).await;
    migrate(&database).await.expect("migrated");
    let kept = "SELECT answer || ' ' || (turn IS NULL)::text FROM idempotency_keys";
    let mut connection = cluster::connect(&database).await;
    assert_eq!(texts(&mut connection, kept).await, ["the answer true"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_text_column_compares_bytes() {
    let database = cluster::migrated_database().await;
    let mut connection = cluster::connect(&database).await;
    // Attributes of composite types too: the counting trigger groups by them.
    let columns = r"
        SELECT pg_class.relname || '.' || attribute.attname || ' ' || pg_collation.collname
        FROM pg_attribute attribute
        JOIN pg_class ON pg_class.oid = attribute.attrelid
        JOIN pg_collation ON pg_collation.oid = attribute.attcollation
        WHERE pg_class.relnamespace = 'public'::regnamespace AND pg_class.relkind IN ('r', 'c')
          AND pg_class.relname NOT LIKE '\_sqlx%'
          AND attribute.attnum > 0 AND NOT attribute.attisdropped";
    let columns = texts(&mut connection, columns).await;
    assert!(columns.len() >= 30, "{columns:?}");
    let others: Vec<_> = columns.iter().filter(|column| !column.ends_with(" C")).collect();
    assert!(others.is_empty(), "without COLLATE \"C\": {others:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_and_index_begins_with_the_organization() {
    let database = cluster::migrated_database().await;
    let mut connection = cluster::connect(&database).await;
    let indexes = r"
        SELECT pg_class.relname::text
        FROM pg_index
        JOIN pg_class ON pg_class.oid = pg_index.indexrelid
        LEFT JOIN pg_attribute attribute
            ON attribute.attrelid = pg_index.indrelid AND attribute.attnum = pg_index.indkey[0]
        WHERE pg_class.relnamespace = 'public'::regnamespace
          AND pg_class.relname NOT LIKE '\_sqlx%'
          AND attribute.attname IS DISTINCT FROM 'organization_id'";
    let mut found = texts(&mut connection, indexes).await;
    let mut listed: Vec<_> = OTHER_INDEXES.iter().map(|(index, _)| (*index).to_owned()).collect();
    found.sort();
    listed.sort();
    assert_eq!(found, listed, "indexes that do not begin with organization_id, and OTHER_INDEXES");
}

/// Collects the scans of `tasks` in a plan: the index condition of each, or the kind of scan.
fn scans_of_tasks(plan: &Value, found: &mut Vec<String>) {
    let node = plan["Node Type"].as_str().expect("a node");
    if plan["Relation Name"] == "tasks" && node.ends_with("Scan") {
        let condition = plan["Index Cond"].as_str().or_else(|| plan["Recheck Cond"].as_str());
        found.push(condition.unwrap_or(node).to_owned());
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        scans_of_tasks(child, found);
    }
}

/// The type of a parameter for `PREPARE`. The server infers `unknown`.
fn sql_type(described: &Value) -> String {
    let name = described.as_str().unwrap_or("unknown");
    name.strip_suffix("Array").map_or_else(|| name.to_owned(), |item| format!("{item}[]"))
}

/// Statements that change or lock tasks by id use an index on the id, also in an organization that
/// is newer than the statistics. If the planner expected few rows in the organization, a generic
/// plan (`plan_cache_mode`) would read all its rows until the next ANALYZE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_organization_is_found_by_its_keys() {
    let database = cluster::migrated_database().await;
    let record = |organizations: &str, tasks: u32| {
        format!(
            "WITH organization AS (
                 INSERT INTO organizations (id, name, created_at)
                 SELECT lpad(number::text, 32, '0')::uuid, number::text, now()
                 FROM generate_series({organizations}) AS number
                 RETURNING id, name
             ),
             task AS (
                 INSERT INTO tasks (organization_id, id, agent_id, user_id, status, source, turns,
                                    created_at, updated_at)
                 SELECT id, name || '-' || number, 'a' || number % 5, 'u' || number % 7,
                        'completed', 'api', 1,
                        '2026-01-01'::timestamptz + number * interval '1 min', now()
                 FROM organization, generate_series(1, {tasks}) AS number
                 RETURNING organization_id, id, status, created_at
             )
             INSERT INTO task_turns (organization_id, task_id, turn, input, request, status,
                                     is_manually_stopped, created_at)
             SELECT organization_id, id, 1, '{{}}', '{{}}', status, false, created_at FROM task"
        )
    };
    // 30,000 tasks: with a few thousand, the planner may read half the table, which is cheap.
    let off = "ALTER TABLE tasks SET (autovacuum_enabled = off);
               ALTER TABLE task_turns SET (autovacuum_enabled = off)";
    for statement in [off, &record("1, 200", 5), "ANALYZE", &record("201, 201", 30_000)] {
        cluster::execute(&database, statement).await;
    }

    let mut connection = cluster::connect(&database).await;
    connection.execute("SET plan_cache_mode = force_generic_plan").await.expect("a setting");
    let mut checked = 0;
    for committed in committed_statements() {
        let query = committed["query"].as_str().expect("a statement");
        let by_key = ["DELETE FROM tasks", "UPDATE tasks", "FOR UPDATE OF task"];
        if !by_key.iter().any(|text| query.contains(text)) {
            continue;
        }
        let described = committed["describe"]["parameters"]["Left"].as_array().expect("parameters");
        let types: Vec<_> = described.iter().map(sql_type).collect();
        let nulls = vec!["NULL"; types.len()].join(", ");
        let prepare = format!("PREPARE planned ({}) AS {query}", types.join(", "));
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.expect(query);
        let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE planned ({nulls})");
        let plan: Value = sqlx::raw_sql(AssertSqlSafe(explain))
            .fetch_one(&mut connection)
            .await
            .and_then(|row| row.try_get(0))
            .expect(query);
        connection.execute("DEALLOCATE planned").await.expect("a prepared statement");

        let mut scans = Vec::new();
        scans_of_tasks(&plan[0]["Plan"], &mut scans);
        assert!(!scans.is_empty(), "no scan of tasks in {plan:#}");
        for scan in scans {
            let has_id = scan.contains("(id = ") || scan.contains("(parent_task_id = ");
            assert!(has_id, "{query}\nreads a whole organization by {scan}");
        }
        checked += 1;
    }
    assert!(checked >= 4, "only {checked} statements");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_an_older_development_schema_is_refused() {
    let versions =
        [(20_261_123_190_001_i64, "development version"), (99_999_999_999_999, "newer version")];
    for (version, message) in versions {
        let database = cluster::empty_database().await;
        // The same table as sqlx creates.
        let record = format!(
            "CREATE TABLE _sqlx_migrations (
                 version bigint PRIMARY KEY,
                 description text NOT NULL,
                 installed_on timestamptz NOT NULL DEFAULT now(),
                 success boolean NOT NULL,
                 checksum bytea NOT NULL,
                 execution_time bigint NOT NULL
             );
             INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({version}, 'create organizations', true, '\\x00', 0)"
        );
        cluster::execute(&database, &record).await;
        let error = migrate(&database).await.expect_err("refused").to_string();
        assert!(error.contains(message), "{version}: {error}");
        let mut connection = cluster::connect(&database).await;
        let tables = texts(&mut connection, SCHEMA).await;
        assert!(tables.is_empty(), "{version}: created {tables:?}");
    }
}
