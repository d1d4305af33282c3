//! Does the window stay quick on a run of 10⁸ tokens with a coder of a million features?
//!
//! ```sh
//! cargo run -p viewer --example scale -- /tmp/large 100000000 1000000
//! ```
//!
//! Makes the run where there is none (some minutes, about 20 bytes a token), then opens it and tells, for each view, how
//! long it takes until something is painted, until all is there, and how long a pass takes that draws it.

#![expect(clippy::print_stdout, reason = "this is a program")]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use data::features::{DEFAULT_SORT_MEMORY, Example, FeatureStats, FeatureTableInfo, FeatureTableWriter};
use data::manifest::{Corpus, Counts, Manifest, Model};
use data::tables::{DocumentRow, TokenColumns};
use data::{ModelShape, Routing, RoutingColumns, Run, RunWriter};
use viewer::probe::Probe;

/// Tokens of a document, and of a shard.
const DOCUMENT: u64 = 1_000;
const SHARD: u64 = 1_000_000;
/// One token of so many has an active feature.
const EVERY: u64 = 10;
/// Features that are written at a time.
const BLOCK: u32 = 8_192;
const WORDS: [&str; 16] = [
    " rain",
    " the",
    " of",
    " minister",
    ".",
    " storm",
    " and",
    " to",
    " water",
    " a",
    " in",
    " flood",
    " Sydney",
    ",",
    " said",
    " wind",
];
const LAYERS: usize = 2;
const EXPERTS: usize = 128;
const TOP_K: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("expected a folder, a number of tokens and a number of features")?;
    let mut number = |default: u64| args.next().map_or(Ok(default), |text| text.parse());
    let (n_tokens, n_features) = (number(100_000_000)?, u32::try_from(number(1_000_000)?)?);
    let dir = Path::new(&dir);
    if !dir.join("features").exists() {
        let start = Instant::now();
        write(dir, n_tokens, n_features)?;
        println!("written in {:.0} s", start.elapsed().as_secs_f64());
    }
    measure(dir)
}

/// A number that depends on its argument only.
fn noise(seed: u64) -> u64 {
    let mut hash = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn write(dir: &Path, n_tokens: u64, n_features: u32) -> Result<(), Box<dyn Error>> {
    let shape = ModelShape {
        n_layers: LAYERS,
        n_heads: 4,
        n_kv_heads: 1,
        d_model: 64,
        d_head: 16,
        d_mlp: 64,
        d_vocab: 262_144,
        n_ctx: 1_024,
        n_experts: EXPERTS,
        top_k: TOP_K,
        ..ModelShape::default()
    };
    let routing = Routing { n_experts: EXPERTS, top_k: TOP_K, layers: (0..LAYERS).collect(), router_logits: false };
    let manifest =
        Manifest { routing: Some(routing), ..Manifest::new(Model::new("large", shape), Corpus::default(), Vec::new()) };
    let writer = RunWriter::create(dir, manifest)?;
    let mut first = 0;
    for index in 0.. {
        let n = SHARD.min(n_tokens - first);
        if n == 0 {
            break;
        }
        let mut shard = writer.shard(index, first)?;
        let mut columns = TokenColumns::default();
        let mut routes = RoutingColumns::default();
        for token in first..first + n {
            let word = (noise(token) % WORDS.len() as u64) as usize;
            let at = token % DOCUMENT;
            columns.push(
                token / DOCUMENT,
                at as u32,
                word as u32 + 300,
                WORDS[word],
                Some((at, at + 1)),
                false,
                Some(1.0),
            );
            for slot in 0..TOP_K {
                routes.expert_ids.push(((noise(token ^ 0x4d) + slot as u64 * 17) % EXPERTS as u64) as u16);
                routes.weights.push(1.0 / TOP_K as f32);
                routes.probs.push(0.05);
            }
            routes.entropy.push(4.0);
            routes.dense_norm.push(9.0);
            routes.moe_norm.push(5.0);
        }
        shard.write_tokens(&columns)?;
        let documents: Vec<DocumentRow> = (first / DOCUMENT..(first + n).div_ceil(DOCUMENT))
            .map(|doc_id| DocumentRow {
                doc_id,
                source: format!("text/{doc_id}.txt"),
                n_tokens: DOCUMENT.min(first + n - doc_id * DOCUMENT),
                first_token_idx: doc_id * DOCUMENT,
                ..DocumentRow::default()
            })
            .collect();
        shard.write_documents(&documents)?;
        for layer in 0..LAYERS {
            shard.write_routing(layer, &routes)?;
        }
        shard.commit(serde_json::Value::Null, Counts::captured(documents.len() as u64, n))?;
        first += n;
    }
    writer.finish("large")?;
    write_features(&Run::open(dir)?, n_features)
}

fn write_features(run: &Run, n_features: u32) -> Result<(), Box<dyn Error>> {
    let n_tokens = run.n_tokens();
    let info = FeatureTableInfo {
        coder: "main".to_owned(),
        hook_point: "blocks.1.hook_resid_post".parse()?,
        d_sae: n_features,
        groups: Vec::new(),
        n_tokens,
        n_ordinary_tokens: n_tokens,
        notes: serde_json::Value::Null,
    };
    let mut writer = FeatureTableWriter::create(run, "main", info, DEFAULT_SORT_MEMORY)?;
    for start in (0..n_tokens).step_by(SHARD as usize) {
        let tokens: Vec<u64> = (start..n_tokens.min(start + SHARD)).step_by(EVERY as usize).collect();
        let features: Vec<u32> = tokens.iter().map(|token| (noise(*token) % u64::from(n_features)) as u32).collect();
        let acts: Vec<f32> = tokens.iter().map(|token| 0.5 + (noise(token ^ 0x5) % 1_000) as f32 / 100.0).collect();
        writer.write(&tokens, &features, &acts)?;
    }
    let mut sorted = writer.sort()?;
    for start in (0..n_features).step_by(BLOCK as usize) {
        let (mut stats, mut examples) = (Vec::new(), Vec::new());
        for feature in start..n_features.min(start + BLOCK) {
            stats.push(FeatureStats {
                feature,
                n_active: 1 + noise(u64::from(feature)) % 1_000,
                frac_nonzero: (noise(u64::from(feature)) % 1_000) as f64 * 1e-6,
                mean_act: 2.0,
                max_act: (noise(u64::from(feature) ^ 0x9) % 4_000) as f32 / 100.0,
                act_hist: vec![1; data::features::ACT_BINS],
                top_logits: (0..8).map(|i| (300 + (feature + i) % 16, 1.0)).collect(),
                bottom_logits: (0..8).map(|i| (300 + (feature + 3 * i) % 16, -1.0)).collect(),
                decoder_norm: 1.0,
                ..FeatureStats::default()
            });
            let peak = noise(u64::from(feature) ^ 0x3) % n_tokens;
            let context_start = (peak / DOCUMENT * DOCUMENT).max(peak.saturating_sub(16));
            examples.push(Example {
                feature,
                group: "top".to_owned(),
                token_idx: peak,
                act: 3.0,
                context_start,
                context_len: 24.min((n_tokens - context_start) as u32),
                ..Example::default()
            });
        }
        sorted.write_stats(&stats)?;
        sorted.write_examples(&examples)?;
    }
    Ok(sorted.finish()?)
}

fn measure(dir: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut window = Probe::open(dir)?;
    window.pass();
    println!("first paint of the window  {:>8.1} ms", ms(start.elapsed()));
    settle(&mut window);
    println!("overview complete          {:>8.1} ms   {} MB", ms(start.elapsed()), resident());
    let views = [
        ("features", "view=features"),
        ("features, filter max>39", "view=features&filter=max%3E39"),
        ("features, filter density", "view=features&filter=density%3C0.0001%20max%3E5"),
        ("features, sorted by density", "view=features&sort=density"),
        ("feature 777,777", "view=feature&feature=777777"),
        ("reader, document 55,555", "view=reader&doc=55555&token=500"),
        ("layers, router entropy", "view=layers&doc=55555&token=500&metric=entropy"),
        ("routing of a document", "view=routing&doc=77777&token=500&layer=1"),
        ("expert, sample only", "view=routing&doc=99999&token=1&layer=0&expert=5"),
        ("query, first rows", "view=query&sql=SELECT%20*%20FROM%20tokens%20LIMIT%20200"),
    ];
    for (name, link) in views {
        let start = Instant::now();
        window.follow(&format!("polariscope://large?{link}"));
        window.pass();
        let painted = start.elapsed();
        settle(&mut window);
        let whole = start.elapsed();
        let mut passes: Vec<Duration> = (0..60)
            .map(|_| {
                let start = Instant::now();
                window.pass();
                start.elapsed()
            })
            .collect();
        passes.sort();
        println!(
            "{name:<28} painted {:>6.1} ms, complete {:>8.1} ms, a pass {:>5.2} ms (worst {:>5.2}), {} MB",
            ms(painted),
            ms(whole),
            ms(passes[30]),
            ms(passes[59]),
            resident()
        );
    }
    Ok(())
}

/// Draws until nothing is being loaded.
fn settle(window: &mut Probe) {
    loop {
        window.pass();
        if window.is_settled() {
            window.pass();
            if window.is_settled() {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Resident memory in MB, where the system tells.
fn resident() -> u64 {
    let text = fs_err::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4_096 / 1_000_000
}
