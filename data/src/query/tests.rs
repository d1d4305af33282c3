//! Does SQL give what the reader gives, and nothing that is not the run's?

use std::time::Duration;

use super::*;
use crate::features::{FeatureStats, FeatureTableInfo, FeatureTableWriter};
use crate::metrics::Metrics;
use crate::shard::RunWriter;
use crate::testing::{documents, hook, manifest, number, rows as numbers, run, to_bytes, tokens, write_shard};
use crate::{Counts, Dtype};

fn collect(run: &Run, sql: &str) -> Result<Vec<Vec<Value>>> {
    let mut answer = ask(run, sql)?;
    let mut rows = Vec::new();
    loop {
        match answer.next_within(Duration::from_mins(1))? {
            Next::Rows(some) => rows.extend(some.cells()),
            Next::Waiting => panic!("no answer within a minute"),
            Next::End => return Ok(rows),
        }
    }
}

fn refused(run: &Run, sql: &str) -> String {
    collect(run, sql).unwrap_err().to_string()
}

fn f32s(value: &Value) -> Vec<f32> {
    let Value::List(items) = value else { panic!("{value:?} is no list") };
    items.iter().map(|item| if let Value::F32(x) = item { *x } else { panic!("{item:?}") }).collect()
}

#[test]
fn vectors_are_lists_whatever_their_dtype() {
    for dtype in Dtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path(), 8, dtype, &[500, 0, 300]);
        let expected = run.acts(hook(), 0..800).unwrap().to_f32();
        let sql = "SELECT token_idx, act FROM blocks_1_hook_resid_post ORDER BY token_idx";
        let rows = collect(&run, sql).unwrap();
        let found: Vec<f32> = rows.iter().flat_map(|row| f32s(&row[1])).collect();
        assert_eq!(found, expected, "{dtype}");
        // Numbers are counted from 1, as SQL does.
        let sql = "SELECT t.token, a.act[3] AS x FROM blocks_1_hook_resid_post AS a JOIN tokens AS t USING (token_idx) \
                   ORDER BY x DESC, t.token_idx LIMIT 1";
        let rows = collect(&run, sql).unwrap();
        let largest =
            (0..800).max_by(|&a, &b| expected[a * 8 + 2].total_cmp(&expected[b * 8 + 2]).then(b.cmp(&a))).unwrap();
        assert_eq!(rows, [[Value::Text(format!("t{largest}▁é")), Value::F32(expected[largest * 8 + 2])]]);
    }
}

#[test]
fn numbers_are_taken_out_of_vectors_before_a_join() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), 8, Dtype::F32, &[100]);
    let rewritten = |sql: &str| {
        let names = ["tokens", "blocks_1_hook_resid_post"];
        super::check::question(sql, &names, &names[1..]).unwrap().sql
    };
    let join = "FROM tokens AS t JOIN blocks_1_hook_resid_post AS a USING (token_idx)";
    let narrow = "(SELECT token_idx, act[3] AS act FROM blocks_1_hook_resid_post) AS a";
    let sql = format!("SELECT t.token, a.act[3] AS x {join} WHERE act[3] > 0 ORDER BY x DESC LIMIT 2");
    let found = rewritten(&sql);
    assert!(found.contains(narrow) && found.contains("a.act AS x") && found.contains("WHERE act > 0"), "{found}");
    let without = format!(
        "SELECT t.token, a.act[3] AS x {join} WHERE act[3] > 0 AND ARRAY_SUM(act) > -1000000000 ORDER BY x DESC LIMIT 2"
    );
    assert!(!rewritten(&without).contains("AS act"));
    assert_eq!(collect(&run, &sql).unwrap(), collect(&run, &without).unwrap());
    // The names of columns are as they would be.
    let answer = ask(&run, &format!("SELECT max(a.act[3]) {join}")).unwrap();
    assert_eq!(answer.columns()[0].name, "act");
    let two = collect(&run, &format!("SELECT act[1] + act[2] AS x {join} WHERE t.token_idx = 7")).unwrap();
    assert_eq!(two, [[Value::F32(number(7, 0, 0) + number(7, 0, 1))]]);
    for sql in [
        format!("SELECT * {join} WHERE act[1] > 0"),
        "SELECT act[1] FROM blocks_1_hook_resid_post".to_owned(),
        format!("SELECT act[1] {join} WHERE t.token_idx IN (SELECT token_idx FROM tokens WHERE pos = 1)"),
        format!("SELECT act {join}"),
    ] {
        assert!(!rewritten(&sql).contains("act[1] AS act"), "{sql}");
        collect(&run, &sql).unwrap();
    }
}

#[test]
fn tables_are_listed_with_columns_and_rows() {
    let dir = tempfile::tempdir().unwrap();
    let run = with_everything(dir.path());
    let tables = tables(&run).unwrap();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "tokens",
            "documents",
            "blocks_1_hook_resid_post",
            "features_a_b_acts",
            "features_a_b_by_feature",
            "features_a_b_stats",
            "features_a_b_examples",
            "features_a_b_groups",
            "metrics_a_b",
            "vocab"
        ]
    );
    let rows: Vec<u64> = tables.iter().map(|table| table.n_rows).collect();
    assert_eq!(rows, [100, 10, 100, 3, 3, 2, 0, 0, 1, 3]);
    let column = |table: usize, column: usize| tables[table].columns[column].clone();
    assert_eq!(column(0, 0), Column { name: "token_idx".to_owned(), kind: "u64".to_owned() });
    assert_eq!(column(2, 1), Column { name: "act".to_owned(), kind: "list[f32]".to_owned() });
    for table in &names {
        let rows = collect(&run, &format!("SELECT * FROM {table}")).unwrap();
        assert_eq!(rows.len() as u64, tables.iter().find(|known| known.name == *table).unwrap().n_rows, "{table}");
    }
    let sql = "SELECT v.token, f.act FROM features_a_b_by_feature f JOIN tokens t USING (token_idx) \
               JOIN vocab v USING (token_id) WHERE f.feature = 1 ORDER BY f.act DESC";
    assert_eq!(collect(&run, sql).unwrap(), [[Value::Text("two".to_owned()), Value::F32(3.0)]]);
    let sql = "SELECT top_logits FROM features_a_b_stats WHERE feature = 1";
    let pair = Value::Struct(vec![("token_id".to_owned(), Value::UInt(2)), ("logit".to_owned(), Value::F32(0.5))]);
    assert_eq!(collect(&run, sql).unwrap(), [[Value::List(vec![pair])]]);
}

/// A run with a coder, its features, and a vocabulary.
fn with_everything(dir: &std::path::Path) -> Run {
    let writer = RunWriter::create(dir, manifest(&[("blocks.1.hook_resid_post", 8, Dtype::F32)])).unwrap();
    writer.write_vocab(&["zero", "one", "two"].map(str::to_owned)).unwrap();
    write_shard(&writer, 0, 0..100, 50);
    writer.finish("0").unwrap();
    let run = Run::open(dir).unwrap();
    let info = FeatureTableInfo {
        coder: "a-b".to_owned(),
        hook_point: hook(),
        groups: Vec::new(),
        d_sae: 2,
        n_tokens: 100,
        n_ordinary_tokens: 90,
        notes: serde_json::Value::Null,
    };
    let mut features = FeatureTableWriter::create(&run, "a-b", info, 1 << 20).unwrap();
    features.write(&[1, 2, 5], &[0, 1, 0], &[1.0, 3.0, 2.0]).unwrap();
    let stats: Vec<FeatureStats> =
        (0..2).map(|feature| FeatureStats { feature, top_logits: vec![(2, 0.5)], ..FeatureStats::default() }).collect();
    let mut sorted = features.sort().unwrap();
    sorted.write_stats(&stats).unwrap();
    sorted.finish().unwrap();
    let mut metrics = Metrics::new(&["step"]);
    metrics.push(&[1.0]).unwrap();
    let coder = run.sae_dir("a-b").unwrap();
    fs_err::create_dir_all(&coder).unwrap();
    metrics.write(&coder.join("metrics.parquet")).unwrap();
    Run::open(dir).unwrap()
}

#[test]
fn what_cannot_be_asked_is_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), 8, Dtype::F32, &[100]);
    let error = refused(&run, "SELECT * FROM tokns");
    assert!(error.starts_with("no table of the run is called `tokns`\nhint: the nearest are `tokens`, "), "{error}");
    let error = refused(&run, "SELECT * FROM \"blocks.1.hook_resid_post\"");
    assert!(error.contains("the nearest are `blocks_1_hook_resid_post`"), "{error}");
    let error = refused(&run, "SELEC token FROM tokens");
    assert!(error.contains("at line 1, column 1"), "{error}");
    let error = refused(&run, "SELECT token\nFROM tokens WHERE (pos = 1");
    assert!(error.contains("cannot read this as SQL"), "{error}");
    let error = refused(&run, "SELECT nothing FROM tokens");
    assert!(error.contains("nothing") && error.contains("lists the columns") && error.lines().count() == 2, "{error}");
    for sql in ["DROP TABLE tokens", "SELECT 1; SELECT 2", "DELETE FROM tokens", "CREATE TABLE x AS SELECT 1", ""] {
        assert!(refused(&run, sql).starts_with("expected one `SELECT`"), "{sql}");
    }
    // What is defined within the query is no table of the run, and need not be.
    let sql = "WITH first AS (SELECT * FROM tokens WHERE pos = 1) SELECT count(*) FROM first";
    assert_eq!(collect(&run, sql).unwrap(), [[Value::UInt(10)]]);
}

#[test]
fn nothing_outside_of_the_run_is_read() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let opened = run(dir.path(), 8, Dtype::F32, &[100]);
    run(other.path(), 8, Dtype::F32, &[100]);
    let file = other.path().join("tokens/shard-00000.parquet");
    for sql in [
        format!("SELECT * FROM read_parquet('{}')", file.display()),
        format!("SELECT * FROM tokens JOIN read_parquet('{}') AS o USING (token_idx)", file.display()),
        format!("SELECT * FROM tokens WHERE token_idx IN (SELECT token_idx FROM read_parquet('{}'))", file.display()),
        format!("WITH o AS (SELECT * FROM READ_PARQUET('{}')) SELECT * FROM o", file.display()),
    ] {
        let error = refused(&opened, &sql);
        assert!(error.contains("a query reads the run and nothing else"), "{sql}: {error}");
    }
    let error = refused(&opened, &format!("SELECT * FROM '{}'", file.display()));
    assert!(error.contains("no table of the run"), "{error}");
    #[cfg(unix)]
    {
        let link = dir.path().join("tokens/shard-00000.parquet");
        fs_err::remove_file(&link).unwrap();
        fs_err::os::unix::fs::symlink(&file, &link).unwrap();
        let error = refused(&opened, "SELECT * FROM tokens");
        assert!(error.starts_with("a link leads out of the run"), "{error}");
    }
}

#[test]
fn a_run_that_is_still_recorded_shows_what_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let writer = RunWriter::create(dir.path(), manifest(&[("blocks.1.hook_resid_post", 8, Dtype::F32)])).unwrap();
    let error = refused(&Run::open(dir.path()).unwrap(), "SELECT * FROM tokens");
    assert!(error.ends_with("hint: nothing has been recorded yet; `polariscope query RUN` lists all"), "{error}");
    write_shard(&writer, 0, 0..100, 50);
    // All files of the next shard are there but for its journal entry.
    let mut shard = writer.shard(1, 100).unwrap();
    shard.write_tokens(&tokens(100..150)).unwrap();
    shard.write_acts(0, Dtype::F32, to_bytes(&numbers(100..150, 0, 8))).unwrap();
    shard.write_documents(&documents(100..150)).unwrap();
    let count = || collect(&Run::open(dir.path()).unwrap(), "SELECT count(*) FROM tokens").unwrap();
    assert_eq!(count(), [[Value::UInt(100)]]);
    shard.commit(serde_json::Value::Null, Counts::captured(5, 50)).unwrap();
    assert_eq!(count(), [[Value::UInt(150)]]);
}

#[test]
fn answers_become_files() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), 8, Dtype::F32, &[100]);
    let write = |format: Format, sql: &str| {
        let mut answer = ask(&run, sql).unwrap();
        let mut bytes = Vec::new();
        let mut writer = RowWriter::new(format, &mut bytes, &answer).unwrap();
        while let Next::Rows(rows) = answer.next_within(Duration::from_mins(1)).unwrap() {
            writer.write(&rows).unwrap();
        }
        writer.finish().unwrap();
        bytes
    };
    let sql = "SELECT token, nll, 'a,\"b' AS text, [3, 7] AS list FROM tokens WHERE token_idx < 2 ORDER BY token_idx";
    let csv = String::from_utf8(write(Format::Csv, sql)).unwrap();
    assert_eq!(csv, "token,nll,text,list\nt0▁é,,\"a,\"\"b\",\"[3,7]\"\nt1▁é,0.25,\"a,\"\"b\",\"[3,7]\"\n");
    let json = String::from_utf8(write(Format::Json, sql)).unwrap();
    assert!(json.starts_with("{\"token\":\"t0▁é\",\"nll\":null,\"text\":\"a,\\\"b\",\"list\":[3,7]}\n{"), "{json}");

    let path = dir.path().join("answer.parquet");
    for (sql, n) in [
        ("SELECT token_idx, act FROM blocks_1_hook_resid_post ORDER BY token_idx", 100),
        ("SELECT token_idx, act FROM blocks_1_hook_resid_post WHERE token_idx > 1000", 0),
    ] {
        fs_err::write(&path, write(Format::Parquet, sql)).unwrap();
        let file = crate::parquet_io::TableFile::open(&path).unwrap();
        assert_eq!(file.n_rows(), n, "{sql}");
        file.require("act").unwrap();
        if n > 0 {
            let batch = file.rows(&["act"], 7..8).unwrap();
            let list = arrow::array::AsArray::as_list::<i64>(file.column(&batch, "act").unwrap()).value(0);
            let row = arrow::array::AsArray::as_primitive::<arrow::datatypes::Float32Type>(&list).values().to_vec();
            assert_eq!(row, (0..8).map(|column| number(7, 0, column)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_dropped_answer_stops() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), 8, Dtype::F32, &[40_000, 40_000]);
    let mut answer = ask(&run, "SELECT * FROM tokens ORDER BY token_idx").unwrap();
    let Next::Rows(rows) = answer.next_within(Duration::from_mins(1)).unwrap() else { panic!("no rows") };
    assert!(rows.len() <= STRETCH && !rows.is_empty());
    drop(answer);
    // The same tables can be asked again.
    assert_eq!(collect(&run, "SELECT count(*) FROM tokens").unwrap(), [[Value::UInt(80_000)]]);
}
