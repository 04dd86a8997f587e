//! `task-history import` against `COPY` of the same rows.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use crate::Bench;
use crate::copy::Rows;
use crate::data::{Generator, lines};
use crate::database;
use crate::numbers::median;
use crate::report::{Cell, Section};
use crate::sites::{BARE, Site, organization_name};

pub(crate) async fn measure(bench: &mut Bench, site: &Site) -> anyhow::Result<()> {
    let records = bench.options.records;
    // Other tasks than those of the data set, and other turns.
    let generator = || Generator::new(records, bench.options.seed ^ 0x696d_706f_7274);
    let directory = tempfile::Builder::new().prefix("import-").tempdir_in(bench.home.path())?;
    let (organization, _) = site.organization(bench, "copy").await?;
    let (bare, _) = site.organization(bench, BARE).await?;
    site.organization(bench, "import").await?;
    let file = directory.path().join("records.ndjson");
    bench.say(&format!("writing {records} records into files"));
    let (rows, bare_rows) = {
        let mut out = BufWriter::new(File::create(&file)?);
        for chunk in lines(generator()) {
            out.write_all(&chunk)?;
        }
        out.flush()?;
        (
            Rows::write(directory.path(), &organization, generator())?,
            Rows::write(directory.path(), &bare, generator())?,
        )
    };
    let mut connection = database::connect(&site.service).await?;
    let (mut imports, mut copies, mut bare_copies) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.options.rounds {
        bench.say(&format!("import, round {round} of {}", bench.options.rounds));
        // Each round finds the tables as the first one did.
        for name in ["import", "copy"] {
            let statement =
                "DELETE FROM tasks USING organizations o WHERE o.id = organization_id AND o.name = $1";
            sqlx::query(statement).bind(organization_name(name)).execute(&mut connection).await?;
        }
        database::settle(&mut connection).await?;
        let begun = Instant::now();
        site.service.import_file(&bench.programs, &organization_name("import"), &file).await?;
        imports.push(rate(records, begun));
        database::execute(&mut connection, "CHECKPOINT").await?;
        let begun = Instant::now();
        rows.copy(&mut connection).await?;
        copies.push(rate(records, begun));
        database::execute(&mut connection, "CHECKPOINT; SET session_replication_role = replica").await?;
        let begun = Instant::now();
        bare_rows.copy(&mut connection).await?;
        bare_copies.push(rate(records, begun));
        database::execute(&mut connection, "RESET session_replication_role").await?;
        site.remove_bare().await?;
    }
    let against = |floors: &[f64]| -> Vec<f64> {
        imports.iter().zip(floors).map(|(import, floor)| import / floor).collect()
    };
    let mut section = Section::new(
        format!("{records} records into a new organisation, turns included"),
        &["what", "records/s", "import against it"],
    );
    section.row(vec![Cell::from("task-history import"), Cell::median(&imports, 0), Cell::None]);
    for (name, floors) in [("COPY", &copies), ("COPY where no trigger fires", &bare_copies)] {
        section.row(vec![Cell::from(name), Cell::median(floors, 0), Cell::median(&against(floors), 2)]);
    }
    bench.report.add(section);
    bench.report.measured("import", median(against(&copies)));
    bench.report.measured("import-bare", median(against(&bare_copies)));
    Ok(())
}

fn rate(records: u64, begun: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "nobody imports 2^52 records")]
    let records = records as f64;
    records / begun.elapsed().as_secs_f64()
}
