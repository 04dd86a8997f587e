//! `task-history import` compared with `COPY` of the same rows.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use crate::Bench;
use crate::copy::CopyFiles;
use crate::data::{Generator, ndjson_chunks};
use crate::data_set::{BARE, DataSet, organization_name};
use crate::database;
use crate::report::{Cell, Section};
use crate::statistics::median;

pub(crate) async fn measure(bench: &mut Bench, data_set: &DataSet) -> anyhow::Result<()> {
    let service = &data_set.service;
    let records = bench.options.records;
    // The seed differs from that of the data set, so that the tasks and turns differ too.
    let generator = || Generator::new(records, bench.options.seed ^ 0x696d_706f_7274);
    let scratch = bench.work_directory.path();
    let directory = tempfile::Builder::new().prefix("import-").tempdir_in(scratch)?;
    let (organization, _) = data_set.create_organization(bench, "copy").await?;
    let (bare_organization, _) = data_set.create_organization(bench, BARE).await?;
    data_set.create_organization(bench, "import").await?;
    let file = directory.path().join("records.ndjson");
    bench.log(&format!("writing {records} records into files"));
    let (files, bare_files) = {
        let mut out = BufWriter::new(File::create(&file)?);
        for chunk in ndjson_chunks(generator()) {
            out.write_all(&chunk)?;
        }
        out.flush()?;
        (
            CopyFiles::write(directory.path(), &organization, generator())?,
            CopyFiles::write(directory.path(), &bare_organization, generator())?,
        )
    };
    let mut connection = database::connect(service).await?;
    let (mut imports, mut copies, mut bare_copies) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.options.rounds {
        bench.log(&format!("import, round {round} of {}", bench.options.rounds));
        // Each round starts with the same rows in the tables.
        for name in ["import", "copy"] {
            let statement = "DELETE FROM tasks USING organizations \
                             WHERE organizations.id = organization_id AND organizations.name = $1";
            let query = sqlx::query(statement).bind(organization_name(name));
            query.execute(&mut connection).await?;
        }
        database::vacuum_and_checkpoint(&mut connection).await?;
        let started = Instant::now();
        service.import_file(&bench.programs, &organization_name("import"), &file).await?;
        imports.push(rate(records, started));
        database::execute(&mut connection, "CHECKPOINT").await?;
        let started = Instant::now();
        files.load(&mut connection).await?;
        copies.push(rate(records, started));
        let statements = "CHECKPOINT; SET session_replication_role = replica";
        database::execute(&mut connection, statements).await?;
        let started = Instant::now();
        bare_files.load(&mut connection).await?;
        bare_copies.push(rate(records, started));
        database::execute(&mut connection, "RESET session_replication_role").await?;
        data_set.remove_bare_rows().await?;
    }
    let ratios = |baselines: &[f64]| -> Vec<f64> {
        imports.iter().zip(baselines).map(|(import, baseline)| import / baseline).collect()
    };
    let mut section = Section::new(
        format!("{records} records into a new organization, turns included"),
        &["what", "records/s", "import against it"],
    );
    section.push_row(vec![
        Cell::from("task-history import"),
        Cell::median(&imports, 0),
        Cell::None,
    ]);
    for (name, baselines) in [("COPY", &copies), ("COPY without triggers", &bare_copies)] {
        section.push_row(vec![
            Cell::from(name),
            Cell::median(baselines, 0),
            Cell::median(&ratios(baselines), 2),
        ]);
    }
    bench.report.add_section(section);
    bench.report.set_measured("import", median(ratios(&copies)));
    bench.report.set_measured("import-bare", median(ratios(&bare_copies)));
    Ok(())
}

fn rate(records: u64, started: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "no import has 2^52 records")]
    let records = records as f64;
    records / started.elapsed().as_secs_f64()
}
