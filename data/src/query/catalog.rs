//! Which tables does a run have, what are they called, and which files are theirs?

use std::collections::HashSet;
use std::path::PathBuf;

use fs_err as fs;
use polars::io::HiveOptions;
use polars::prelude::{
    Column, DataType, Expr, Field, Float32Type, IntoColumn as _, LazyFrame, ListBuilderTrait as _,
    ListPrimitiveChunkedBuilder, PlRefPath, PlSmallStr, PolarsResult, ScanArgsParquet, col, map_multiple,
};

use crate::error::{Error, Result};
use crate::features::JOINS;
use crate::manifest::Routing;
use crate::parquet_io::TableFile;
use crate::store::Run;
use crate::tables::VOCAB_FILE;
use crate::{Dtype, convert};

/// The column of activations.
pub(super) const ACT: &str = "act";

/// A table and its files, none of which has been looked at.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) about: String,
    /// Within the run; one at least.
    paths: Vec<String>,
    /// `None` where only the files know.
    n_rows: Option<u64>,
    vectors: Option<Vectors>,
}

/// A column of bytes that is shown as numbers.
#[derive(Clone, Copy)]
struct Vectors {
    column: &'static str,
    dtype: Dtype,
    width: usize,
}

/// Gathers tables.
struct Catalog<'a> {
    run: &'a Run,
    names: HashSet<String>,
    tables: Vec<Source>,
}

pub(super) fn tables(run: &Run) -> Result<Vec<Source>> {
    let mut catalog = Catalog { run, names: HashSet::new(), tables: Vec::new() };
    catalog.of_shards("tokens", "tokens", "a token", run.n_tokens(), None);
    catalog.of_shards("documents", "documents", "a document", run.n_documents(), None);
    for entry in run.hook_points() {
        let vectors = Vectors { column: ACT, dtype: entry.dtype, width: entry.width };
        let about = format!("a token at `{}`", entry.name);
        catalog.of_shards(&entry.name.to_string(), &entry.folder(), &about, run.n_tokens(), Some(vectors));
    }
    if let Some(routing) = &run.manifest().routing {
        let logits = Vectors { column: "router_logits", dtype: Dtype::F32, width: routing.n_experts };
        for &layer in &routing.layers {
            let about = format!("a token's choice of experts in layer {layer}");
            let vectors = routing.router_logits.then_some(logits);
            catalog.of_shards(&format!("routing_{layer}"), &Routing::folder(layer), &about, run.n_tokens(), vectors);
        }
    }
    for name in run.feature_tables()? {
        catalog.of_features(&name)?;
    }
    for name in run.saes()? {
        catalog.of_file(&format!("metrics_{name}"), format!("saes/{name}/metrics.parquet"), "a step of training")?;
    }
    catalog.of_file("vocab", VOCAB_FILE.to_owned(), "a token id")?;
    Ok(catalog.tables)
}

impl Catalog<'_> {
    /// A table with a file for each durable shard.
    fn of_shards(&mut self, name: &str, folder: &str, about: &str, n_rows: u64, vectors: Option<Vectors>) {
        let paths = self.run.shards().iter().map(|shard| format!("{folder}/{}", shard.file_name())).collect();
        self.add(name, about, paths, Some(n_rows), vectors);
    }

    fn of_features(&mut self, name: &str) -> Result<()> {
        let folder = format!("features/{name}");
        for (part, about) in [
            ("acts", "an active feature of a token, in the order of tokens"),
            ("by_feature", "an active feature of a token, in the order of features and falling activation"),
        ] {
            let names = self.run.place().names_in(&format!("{folder}/{part}"), false)?;
            let shards = names.iter().filter(|name| name.ends_with(".parquet"));
            let paths = shards.map(|name| format!("{folder}/{part}/{name}")).collect();
            self.add(&format!("features_{name}_{part}"), about, paths, None, None);
        }
        for (part, about) in [
            ("stats", "a feature"),
            ("examples", "a passage in which a feature is active"),
            ("groups", "which activations of a feature examples were drawn from"),
            ("coactivation", "two features that fire together"),
        ] {
            self.of_file(&format!("features_{name}_{part}"), format!("{folder}/{part}.parquet"), about)?;
        }
        for file in self.run.place().names_in(&format!("{folder}/{JOINS}"), false)? {
            if let Some(part) = file.strip_suffix(".parquet") {
                let about = "a feature and a label of tokens that go together";
                self.of_file(&format!("features_{name}_joins_{part}"), format!("{folder}/{JOINS}/{file}"), about)?;
            }
        }
        Ok(())
    }

    /// A table of one file, where there is such a file.
    fn of_file(&mut self, name: &str, path: String, about: &str) -> Result<()> {
        if self.run.place().has(&path)? {
            self.add(name, about, vec![path], None, None);
        }
        Ok(())
    }

    /// A table of some files; of none while nothing is durable, and then it is no table yet.
    fn add(&mut self, name: &str, about: &str, paths: Vec<String>, n_rows: Option<u64>, vectors: Option<Vectors>) {
        if !paths.is_empty() {
            let name = self.free_name(name);
            self.tables.push(Source { name, about: about.to_owned(), paths, n_rows, vectors });
        }
    }

    /// A name that needs no quotes in SQL and that no other table has.
    fn free_name(&mut self, name: &str) -> String {
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut free = plain.clone();
        let mut n = 2;
        while !self.names.insert(free.clone()) {
            free = format!("{plain}_{n}");
            n += 1;
        }
        free
    }
}

impl Source {
    /// Whether it is the activations of a hook point.
    pub(super) fn has_acts(&self) -> bool {
        self.vectors.is_some_and(|vectors| vectors.column == ACT)
    }

    pub(super) fn n_rows(&self, run: &Run) -> Result<u64> {
        let counted = || {
            let files = self.files(run)?;
            files.iter().map(|file| Ok(TableFile::open(file)?.n_rows() as u64)).sum()
        };
        self.n_rows.map_or_else(counted, Ok)
    }

    /// Where its files are, none of which may lie outside of the run.
    fn files(&self, run: &Run) -> Result<Vec<PathBuf>> {
        let root = fs::canonicalize(run.place().dir())?;
        let inside = |relative: &String| {
            // Polars opens files by their names while it answers, so all of them must be here until then.
            let path = run.place().file_to_keep(relative)?;
            match fs::canonicalize(&path) {
                Ok(real) if real.starts_with(&root) => Ok(real),
                Ok(_elsewhere) => Err(Error::OutsideRun { path }),
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Err(Error::MissingFile { path }),
                Err(cause) => Err(cause.into()),
            }
        };
        self.paths.iter().map(inside).collect()
    }

    /// How polars reads it.
    pub(super) fn frame(&self, run: &Run) -> Result<LazyFrame> {
        let paths = self.files(run)?;
        super::guarded(|| {
            let paths = paths.iter().map(|path| PlRefPath::try_from_path(path)).collect::<PolarsResult<_>>()?;
            let arguments = ScanArgsParquet {
                glob: false,
                hive_options: HiveOptions { enabled: Some(false), ..HiveOptions::default() },
                ..ScanArgsParquet::default()
            };
            let frame = LazyFrame::scan_parquet_files(paths, arguments)?;
            Ok(match self.vectors {
                Some(vectors) => frame.with_columns([vectors.as_lists()]),
                None => frame,
            })
        })
    }
}

impl Vectors {
    /// The column as lists of f32.
    fn as_lists(self) -> Expr {
        let mut columns = vec![col(self.column)];
        if self.dtype == Dtype::I8 {
            columns.push(col("scale"));
        }
        let name = PlSmallStr::from_static(self.column);
        let field = Field::new(name.clone(), DataType::List(Box::new(DataType::Float32)));
        map_multiple(move |columns| self.decode(columns), columns, move |_, _| Ok(field.clone())).alias(name)
    }

    fn decode(self, columns: &mut [Column]) -> PolarsResult<Column> {
        let stored = columns[0].binary()?;
        let scales = columns.get(1).map(Column::f32).transpose()?;
        let (n, name) = (stored.len(), PlSmallStr::from_static(self.column));
        let mut lists = ListPrimitiveChunkedBuilder::<Float32Type>::new(name, n, n * self.width, DataType::Float32);
        let mut numbers = Vec::with_capacity(self.width);
        for (row, bytes) in stored.iter().enumerate() {
            let Some(bytes) = bytes else {
                lists.append_null();
                continue;
            };
            let scale = scales.and_then(|scales| scales.get(row)).unwrap_or(f32::NAN);
            numbers.clear();
            convert::append_f32(self.dtype, self.width, bytes, &[scale], &mut numbers);
            lists.append_slice(&numbers);
        }
        Ok(lists.finish().into_column())
    }
}
