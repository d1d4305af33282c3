//! Can a person ask a run in SQL, and does everything that is left out get said?

use fs_err as fs;

use crate::support::{end, fails, polariscope, refused, small_run, succeeds, text};

#[test]
fn tables_questions_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));

    let tables = succeeds(&["query", &run]);
    insta::assert_snapshot!("query-tables", tables);
    assert_eq!(succeeds(&["query", &run, "--tables"]), tables);
    let lines = succeeds(&["query", &run, "--json"]);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["table"], &first["columns"][0]["name"]), (&"tokens".into(), &"token_idx".into()));

    let sql = "SELECT t.doc_id, t.pos, t.token_id, round(a.act[1], 4) AS x, round(array_sum(a.act), 3) AS sum \
               FROM blocks_2_hook_resid_post a JOIN tokens t USING (token_idx) ORDER BY t.token_idx LIMIT 3";
    insta::assert_snapshot!("query-table", succeeds(&["query", &run, sql]));
    let csv = succeeds(&["query", &run, sql, "--format", "csv"]);
    assert!(csv.starts_with("doc_id,pos,token_id,x,sum\n0,0,") && csv.lines().count() == 4, "{csv}");
    let json = succeeds(&["query", &run, sql, "--json"]);
    let row: serde_json::Value = serde_json::from_str(json.lines().nth(2).unwrap()).unwrap();
    assert_eq!((&row["pos"], json.lines().count()), (&2.into(), 3));

    // A table on the screen ends somewhere, and says so.
    let all: usize = succeeds(&["query", &run, "SELECT count(*) AS n FROM tokens", "--format", "csv"])
        .lines()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(all > 1000);
    let shown = end(&mut polariscope(&["query", &run, "SELECT pos FROM tokens"]));
    assert_eq!(shown.stdout.lines().count(), 1001);
    assert!(
        shown.stderr.starts_with("note: these are the first 1,000 rows; there are more\nhint: "),
        "{}",
        shown.stderr
    );
    let whole = end(&mut polariscope(&["query", &run, "SELECT pos FROM tokens", "--format", "csv"]));
    assert_eq!((whole.stdout.lines().count(), whole.stderr.as_str()), (all + 1, ""));
    let exact = end(&mut polariscope(&["query", &run, "SELECT pos FROM tokens LIMIT 7", "--limit", "7"]));
    assert_eq!((exact.stdout.lines().count(), exact.stderr.as_str()), (8, ""));

    let out = text(&dir.path().join("answer.parquet"));
    let sql = "SELECT * FROM blocks_4_hook_mlp_out";
    succeeds(&["query", &run, sql, "--format", "parquet", "--out", &out]);
    let bytes = fs::read(&out).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    let error = fails(&["query", &run, sql, "--format", "parquet", "--out", &out]);
    assert!(error.contains("exists already") && error.contains("hint: "), "{error}");
    assert_eq!(fs::read(&out).unwrap(), bytes);
}

#[test]
fn wrong_questions() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));
    insta::assert_snapshot!("query-no-table", fails(&["query", &run, "SELECT * FROM token"]));
    insta::assert_snapshot!("query-no-column", fails(&["query", &run, "SELECT tokn FROM tokens"]));
    insta::assert_snapshot!("query-no-sql", fails(&["query", &run, "SELECT token tokens WHERE"]));
    insta::assert_snapshot!("query-not-the-run", fails(&["query", &run, "SELECT * FROM read_parquet('/etc/passwd')"]));
    insta::assert_snapshot!("query-no-question", fails(&["query", &run, "DROP TABLE tokens"]));
    let ended = end(&mut polariscope(&["query", &text(dir.path()), "SELECT 1"]));
    assert!(refused(&ended).starts_with("error: no run: `manifest.json` is missing"), "{ended:?}");
}
