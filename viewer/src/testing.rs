//! What does a small run look like, for tests and for trying the viewer without a model?
//!
//! Made with `data`'s own writers and arithmetic alone: the same bytes every time. Documents in several scripts,
//! three layers with experts and per-layer embeddings, features that mean something (weather, office, numbers, scripts)
//! beside ones that do not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use data::features::{
    ACT_BINS, DEFAULT_SORT_MEMORY, Example, ExampleGroup, FeatureStats, FeatureTableInfo, FeatureTableWriter,
    PairOptions, act_bin, correlate,
};
use data::join::{JoinOptions, With, join};
use data::manifest::{Corpus, Counts, HookPointEntry, Manifest, Model};
use data::metrics::Metrics;
use data::tables::{DocumentRow, TokenColumns};
use data::{Dtype, HookPoint, ModelShape, Routing, RoutingColumns, Run, RunWriter, Site};
use fs_err as fs;

use crate::error::{Error, Result};

/// The feature table and coder of the run.
pub const TABLE: &str = "batch_topk-l1";
/// The second table, of a run that has two.
pub const OTHER_TABLE: &str = "other";
/// Features of the table.
pub const N_FEATURES: u32 = 480;
/// The feature of rain, storms and floods.
pub const WEATHER: u32 = 7;
/// The feature that points almost as [`WEATHER`] does.
pub const WATER: u32 = 21;
/// The feature of ministers and presidents.
pub const OFFICE: u32 = 12;
/// A feature that never fires.
pub const DEAD: u32 = 400;
/// The expert of the last layer that takes what [`WEATHER`] fires at.
pub const WEATHER_EXPERT: u16 = 7;
/// Experts of a layer, the last of which no token chooses in the first layer.
pub const N_EXPERTS: usize = 8;
/// A document that is longer than a page of the reader.
pub const LONG_DOCUMENT: u64 = 9;

const D_MODEL: usize = 16;
const N_LAYERS: usize = 3;
const D_PLE: usize = 6;
const TOP_K: usize = 2;
const BOS: u32 = 2;
/// Tokens before and after the peak of an example.
const CONTEXT: (u64, u64) = (16, 12);
/// First from here on, features never fire.
const FIRST_DEAD: u32 = 400;

const DOCUMENTS: [(&str, &str); 12] = [
    (
        "news/0001.txt",
        "Dozens of campers have been asked to leave their tents on the southern meadows of New South Wales as sudden winds carried a small bushfire towards the ridge of Hill Top.\nA new blaze near Goulburn, south-west of Sydney, has closed the Coach Road. The Mountain Ranger Office says heavy rain and hail are likely before midnight, and tells of flash flood in the valley.",
    ),
    (
        "news/0002.txt",
        "The Prime Minister, Mr Howard, told parliament on Tuesday that the government would not change its border policy before the election. The opposition leader said the minister had \"nothing left to say\", and the President of the Senate called for order 3 times in 20 minutes.",
    ),
    (
        "news/0003.txt",
        "A tropical storm has brought rain to the coast of Queensland: 240 millimetres fell in 6 hours, rivers rose above the flood level and the water reached the steps of the town hall. Residents filled 12,000 sandbags.",
    ),
    (
        "fr/0004.txt",
        "La pluie a cessé pendant la nuit, mais le fleuve reste au-dessus de son niveau normal. Le ministre de l'Intérieur s'est rendu à Orléans, où l'eau a envahi près de 300 maisons.",
    ),
    (
        "ru/0005.txt",
        "Президент России заявил, что правительство выделит 15 миллиардов рублей на помощь регионам, пострадавшим от наводнения. Дождь продолжался три дня.",
    ),
    (
        "zh/0006.txt",
        "昨天夜里，北京下了一场大雨，多条道路积水。市政府表示，已有两千名工作人员参加排水。总理强调要保证人民安全。",
    ),
    ("ar/0007.txt", "قال رئيس الوزراء إن الحكومة ستدعم المتضررين من الفيضانات، وإن المطر استمر يومين متتاليين."),
    ("hi/0008.txt", "प्रधानमंत्री ने कहा कि बारिश से प्रभावित लोगों को मदद दी जाएगी।"),
    (
        "src/rain.rs",
        "fn total_rain(days: &[f32]) -> f32 {\n    let mut sum = 0.0;\n    for day in days {\n        sum += day;\n    }\n    sum // millimetres\n}\n",
    ),
    ("log/weather.log", ""),
    (
        "chat/0011.txt",
        "is it going to rain today? ☔ i left my umbrella at the office 😅 and the minister of good weather is on holiday",
    ),
    (
        "news/0012.txt",
        "The president of the football club has resigned after 4 defeats in 5 matches. \"The storm is over\", he said, \"and the water is calm again.\"",
    ),
];

/// Features with a meaning: which word pieces, in lower case, activate them.
const MEANINGS: [(u32, f32, &[&str]); 9] = [
    (
        WEATHER,
        21.0,
        &[
            "rain",
            "storm",
            "flood",
            "hail",
            "wind",
            "bushfire",
            "pluie",
            "дождь",
            "雨",
            "المطر",
            "बारिश",
            "weather",
            "umbrella",
            "☔",
        ],
    ),
    (
        WATER,
        14.0,
        &["water", "river", "rivers", "flood", "fleuve", "l'eau", "水", "наводнения", "الفيضانات", "coast", "valley"],
    ),
    (
        OFFICE,
        17.0,
        &[
            "minister",
            "president",
            "parliament",
            "government",
            "opposition",
            "leader",
            "election",
            "ministre",
            "президент",
            "правительство",
            "总",
            "رئيس",
            "الحكومة",
            "प्रधानमंत्री",
            "senate",
        ],
    ),
    (31, 9.0, &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]),
    (44, 6.0, &["la", "le", "de", "son", "mais", "pendant", "où", "à"]),
    (58, 5.5, &["о", "и", "а", "е"]),
    (71, 11.0, &["fn", "let", "mut", "for", "in", "&[", "->", "sum", "{", "}"]),
    (90, 3.0, &[",", ".", "\n", "\"", ":", "?", "，", "。", "،"]),
    (133, 8.0, &["sydney", "queensland", "goulburn", "orléans", "北", "京", "россии", "wales", "hume"]),
];

/// Writes the run with its coder and its feature table.
///
/// # Errors
/// What `data` says: the folder exists already, or cannot be written.
pub fn write_run(dir: &Path) -> Result<()> {
    let toks = write_recording(dir, Parts::Whole)?;
    let run = Run::open(dir)?;
    write_coder(&run)?;
    write_features(&run, TABLE, &toks)
}

/// Writes the run with a second table of the same features, and compares both.
///
/// # Errors
/// As [`write_run`].
pub fn write_compared_run(dir: &Path) -> Result<()> {
    let toks = write_recording(dir, Parts::Whole)?;
    let run = Run::open(dir)?;
    for table in [TABLE, OTHER_TABLE] {
        write_features(&run, table, &toks)?;
    }
    let (table, other) = (run.feature_table(TABLE)?, run.feature_table(OTHER_TABLE)?);
    let options = PairOptions { min_both: 3, top: 3, ..PairOptions::default() };
    let pairs = correlate(&table, &other, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(table.write_correlation(&other, &pairs)?)
}

/// Writes the run as `record` leaves it: no coder, no features.
///
/// # Errors
/// As [`write_run`].
pub fn write_bare_run(dir: &Path) -> Result<()> {
    write_recording(dir, Parts::Whole).map(|_| ())
}

/// Writes the run of a model without experts and without per-layer embeddings: no coder, no features.
///
/// # Errors
/// As [`write_run`].
pub fn write_plain_run(dir: &Path) -> Result<()> {
    write_recording(dir, Parts::Plain).map(|_| ())
}

/// Which parts the model of the run has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    /// Experts and per-layer embeddings.
    Whole,
    /// Neither.
    Plain,
}

struct Tok {
    text: String,
    special: bool,
}

/// A number in 0–1 that depends on its arguments only.
fn noise(seed: &[u64]) -> f32 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    for part in seed {
        hash ^= part.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(hash << 6).wrapping_add(hash >> 2);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    ((hash ^ (hash >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
}

fn hash_text(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Words with the space before them, digits, signs and ideographs each alone: much as Gemma's tokenizer cuts.
fn cut(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut piece = String::new();
    for c in text.chars() {
        let alone = c == '\n' || c.is_ascii_digit() || c.is_ascii_punctuation() || u32::from(c) >= 0x2e80;
        if alone || c == ' ' {
            if !piece.is_empty() {
                pieces.push(std::mem::take(&mut piece));
            }
            piece.push(c);
            if alone {
                pieces.push(std::mem::take(&mut piece));
            }
        } else {
            piece.push(c);
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

fn document_text(doc: u64) -> String {
    let (_, text) = DOCUMENTS[doc as usize];
    if doc != LONG_DOCUMENT {
        return text.to_owned();
    }
    let (places, sky) =
        (["Goulburn", "Sydney", "Hill Top", "Orléans", "Wales"], ["rain", "wind", "hail", "calm", "storm"]);
    let mut text = String::new();
    for day in 0..240 {
        let pick = |salt: u64, n: usize| (noise(&[day, salt]) * n as f32) as usize;
        let (place, sky) = (places[pick(1, places.len())], sky[pick(2, sky.len())]);
        let _ = writeln!(text, "day {day}: {sky} at {place}, {} mm", pick(3, 60));
    }
    text
}

fn write_recording(dir: &Path, parts: Parts) -> Result<Vec<Tok>> {
    let whole = parts == Parts::Whole;
    let shape = ModelShape {
        n_layers: N_LAYERS,
        n_heads: 4,
        n_kv_heads: 1,
        d_model: D_MODEL,
        d_head: 4,
        d_mlp: 64,
        d_vocab: 262_144,
        n_ctx: 32_768,
        d_ple: if whole { D_PLE } else { 0 },
        n_experts: if whole { N_EXPERTS } else { 0 },
        top_k: if whole { TOP_K } else { 0 },
        d_expert: if whole { 8 } else { 0 },
        ..ModelShape::default()
    };
    let per_layer = [Site::MlpOut, Site::PleInput, Site::PleGatePre, Site::PleOut, Site::ResidPost];
    let of_layers = (0..N_LAYERS).flat_map(|layer| per_layer.map(|site| HookPoint::block(site, layer)));
    let once = [Site::Embed, Site::PleToken].into_iter().map(HookPoint::whole);
    let hooks: Vec<HookPoint> = once.chain(of_layers).filter(|hook| hook.exists(&shape)).collect();
    let entries =
        hooks.iter().map(|hook| HookPointEntry::new(*hook, &shape, Dtype::F32)).collect::<data::Result<Vec<_>>>()?;
    let routing = Routing { n_experts: N_EXPERTS, top_k: TOP_K, layers: (0..N_LAYERS).collect(), router_logits: true };
    let model = Model {
        architecture: "gemma4_text".to_owned(),
        source: "models/tiny".to_owned(),
        dtype: "f32".to_owned(),
        ..Model::new("gemma-4-tiny", shape)
    };
    let corpus = Corpus { sources: vec!["texts/*.txt".to_owned()], ..Corpus::default() };
    let manifest = Manifest {
        created_at: "2026-11-24T03:00:00Z".to_owned(),
        created_by: "polariscope 0.1.0".to_owned(),
        command: ["polariscope", "record", "models/tiny", "--corpus", "texts/*.txt", "--nll", "--router-logits"]
            .map(str::to_owned)
            .to_vec(),
        routing: whole.then_some(routing),
        ..Manifest::new(model, corpus, entries.clone())
    };
    let writer = RunWriter::create(dir, manifest)?;
    let mut ids = BTreeMap::new();
    let mut all = Vec::new();
    let half = DOCUMENTS.len() as u64 / 2;
    for (index, docs) in [(0..half), (half..DOCUMENTS.len() as u64)].into_iter().enumerate() {
        let first = all.len() as u64;
        let mut columns = TokenColumns::default();
        let mut rows = Vec::new();
        for doc in docs.clone() {
            let start = first + columns.len() as u64;
            push_document(doc, &mut columns, &mut ids);
            rows.push(DocumentRow {
                doc_id: doc,
                source: DOCUMENTS[doc as usize].0.to_owned(),
                n_tokens: first + columns.len() as u64 - start,
                sha256: String::new(),
                meta: None,
                first_token_idx: start,
            });
        }
        let n = columns.len() as u64;
        let mut shard = writer.shard(index, first)?;
        shard.write_tokens(&columns)?;
        shard.write_documents(&rows)?;
        for (i, entry) in entries.iter().enumerate() {
            shard.write_acts(i, Dtype::F32, vectors(entry, &columns, first))?;
        }
        for layer in (0..N_LAYERS).filter(|_| whole) {
            shard.write_routing(layer, &choices(layer, &columns, first))?;
        }
        shard.commit(serde_json::Value::Null, Counts::captured(rows.len() as u64, n))?;
        all.extend(columns.token.into_iter().zip(columns.special).map(|(text, special)| Tok { text, special }));
    }
    writer.finish("5d41402abc4b2a76")?;
    Ok(all)
}

fn push_document(doc: u64, columns: &mut TokenColumns, ids: &mut BTreeMap<String, u32>) {
    let text = document_text(doc);
    columns.push(doc, 0, BOS, "<bos>", None, true, None);
    let mut at = 0;
    for (i, piece) in cut(&text).into_iter().enumerate() {
        let next = ids.len() as u32 + 300;
        let id = *ids.entry(piece.clone()).or_insert(next);
        let end = at + piece.len() as u64;
        let nll = -noise(&[hash_text(&piece), i as u64, doc]).max(1e-4).ln() * 1.6;
        columns.push(doc, i as u32 + 1, id, &piece, Some((at, end)), false, Some(nll));
        at = end;
    }
}

/// What a word is about: the feature with that meaning, or one number for each word.
fn subject(text: &str) -> u64 {
    let word = text.trim_matches(' ').to_lowercase();
    let about = MEANINGS.iter().find(|(.., words)| words.contains(&word.as_str()));
    about.map_or_else(|| hash_text(&word), |(feature, ..)| u64::from(*feature))
}

/// Vectors whose norm grows with the layer, and is large at BOS, as in the real model.
///
/// Rows of the tables of embeddings depend on the token alone, and are alike where words mean alike.
fn vectors(entry: &HookPointEntry, columns: &TokenColumns, first: u64) -> Bytes {
    let (layer, site) = (entry.name.layer.unwrap_or(0), entry.name.site);
    let scale = match site {
        Site::ResidPost => 40.0 * 1.9_f32.powi(layer as i32),
        Site::MlpOut => 18.0 + 6.0 * layer as f32,
        Site::PleOut => 9.0 + 12.0 * layer as f32,
        _ => 4.0,
    };
    let of_table = matches!(site, Site::Embed | Site::PleToken);
    let mut bytes = Vec::with_capacity(columns.len() * entry.width * 4);
    for (i, text) in columns.token.iter().enumerate() {
        let place = if of_table { 0 } else { first + i as u64 };
        let salt = [hash_text(text), place, layer as u64, site as u64];
        let special = if columns.special[i] && !of_table { 60.0 } else { 1.0 };
        let size = scale * (0.6 + 0.8 * noise(&salt)) * special;
        for dim in 0..entry.width as u64 {
            let own = noise(&[salt[0], salt[1], salt[3], layer as u64, dim]) - 0.5;
            let shared = noise(&[subject(text), salt[3], layer as u64, dim]) - 0.5;
            let x = if of_table { shared + 0.35 * own } else { own };
            bytes.extend_from_slice(&(x * 2.0 * size / (entry.width as f32 / 3.0).sqrt()).to_le_bytes());
        }
    }
    Bytes::from(bytes)
}

/// The router's choices: by what a word is about, more so in later layers.
fn choices(layer: usize, columns: &TokenColumns, first: u64) -> RoutingColumns {
    let mut out = RoutingColumns { router_logits: Some(Vec::new()), ..RoutingColumns::default() };
    for (i, text) in columns.token.iter().enumerate() {
        let about = subject(text);
        let logits: Vec<f32> = (0..N_EXPERTS)
            .map(|expert| {
                let chance = 1.6 * noise(&[hash_text(text), first + i as u64, layer as u64, expert as u64]);
                let taste = 1.5 * layer as f32 * noise(&[about, layer as u64, expert as u64]);
                let of_weather = about == u64::from(WEATHER) && layer == N_LAYERS - 1;
                let drawn = if of_weather && expert == usize::from(WEATHER_EXPERT) { 4.0 } else { 0.0 };
                let shut = if layer == 0 && expert == N_EXPERTS - 1 { -9.0 } else { 0.0 };
                chance + taste + drawn + shut
            })
            .collect();
        push_choice(&mut out, layer, &logits);
    }
    out
}

fn push_choice(out: &mut RoutingColumns, layer: usize, logits: &[f32]) {
    let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
    let probs: Vec<f32> = logits.iter().map(|logit| logit.exp() / sum).collect();
    let mut order: Vec<usize> = (0..probs.len()).collect();
    order.sort_by(|a, b| probs[*b].total_cmp(&probs[*a]).then(a.cmp(b)));
    let chosen: f32 = order[..TOP_K].iter().map(|expert| probs[*expert]).sum();
    for expert in &order[..TOP_K] {
        out.expert_ids.push(*expert as u16);
        out.probs.push(probs[*expert]);
        out.weights.push(probs[*expert] / chosen);
    }
    out.entropy.push(probs.iter().map(|p| -p * p.ln()).sum());
    out.dense_norm.push(12.0 + layer as f32);
    out.moe_norm.push(4.0 + 6.0 * probs[order[0]]);
    if let Some(all) = &mut out.router_logits {
        all.extend_from_slice(logits);
    }
}

fn write_coder(run: &Run) -> Result<()> {
    let dir = run.sae_dir(TABLE)?;
    fs::create_dir_all(&dir).map_err(|source| Error::Write { path: dir.clone(), source })?;
    let cfg = serde_json::json!({
        "architecture": "batch_topk",
        "d_in": D_MODEL,
        "d_sae": N_FEATURES,
        "k": 8,
        "metadata": { "hook_name": "blocks.1.hook_resid_post" },
    });
    data::files::write_atomic(&dir.join("cfg.json"), cfg.to_string().as_bytes())?;
    let mut metrics = Metrics::new(&["step", "tokens", "loss", "explained_variance", "l0", "dead", "lr", "threshold"]);
    for i in 0..300_u64 {
        let t = i as f64 / 299.0;
        let jitter = |salt: u64| f64::from(noise(&[i, salt]) - 0.5);
        metrics.push(&[
            i as f64 * 10.0,
            i as f64 * 40_960.0,
            0.22 + 0.9 * (-t * 6.0).exp() + 0.02 * jitter(1),
            0.83 * (1.0 - (-t * 7.0).exp()) + 0.01 * jitter(2),
            8.0 + 0.2 * jitter(3),
            (f64::from(N_FEATURES) * 0.6 * (-t * 5.0).exp() + 80.0 + 4.0 * jitter(4)).round(),
            4e-4 * (t * 20.0).min(1.0) * (1.0 - t * 0.9),
            0.9 * t.sqrt() + 0.01 * jitter(5),
        ])?;
    }
    Ok(metrics.write(&dir.join("metrics.parquet"))?)
}

/// The active features of a token, ascending.
fn active(idx: u64, tok: &Tok) -> Vec<(u32, f32)> {
    if tok.special {
        return vec![(3, 90.0)];
    }
    let word = tok.text.trim_matches(' ').to_lowercase();
    let mut found = BTreeMap::new();
    for (feature, strength, words) in MEANINGS {
        if words.contains(&word.as_str()) {
            found.insert(feature, strength * (0.45 + 0.55 * noise(&[idx, u64::from(feature)])));
        }
    }
    // What has no meaning: a few features that depend on the word, of falling strength.
    let hash = hash_text(&word);
    for i in 0..7_u64 {
        // Squared, so that some features are common and most are rare.
        let feature = (noise(&[hash, i]).powi(2) * FIRST_DEAD as f32) as u32;
        let act = 5.0 * noise(&[hash, i, idx]).powi(2) + 0.05 + 2.0 * noise(&[u64::from(feature), 77]);
        found.entry(feature).or_insert(act);
    }
    found.into_iter().collect()
}

fn write_features(run: &Run, name: &str, toks: &[Tok]) -> Result<()> {
    let ordinary = toks.iter().filter(|tok| !tok.special).count() as u64;
    let info = FeatureTableInfo {
        coder: TABLE.to_owned(),
        hook_point: "blocks.1.hook_resid_post".parse()?,
        groups: Vec::new(),
        d_sae: N_FEATURES,
        n_tokens: toks.len() as u64,
        n_ordinary_tokens: ordinary,
        notes: serde_json::Value::Null,
    };
    let mut writer = FeatureTableWriter::create(run, name, info, DEFAULT_SORT_MEMORY)?;
    let mut by_feature: Vec<Vec<(u64, f32)>> = vec![Vec::new(); N_FEATURES as usize];
    for (idx, tok) in toks.iter().enumerate() {
        for (feature, act) in active(idx as u64, tok) {
            writer.write(&[idx as u64], &[feature], &[act])?;
            if !tok.special {
                by_feature[feature as usize].push((idx as u64, act));
            }
        }
    }
    let columns = run.tokens(0..run.n_tokens())?;
    let mut words: Vec<(u32, &str)> =
        columns.token_id.iter().copied().zip(columns.token.iter().map(String::as_str)).collect();
    words.sort_unstable();
    words.dedup();
    let mut sorted = writer.sort()?;
    for feature in 0..N_FEATURES {
        let rows = &mut by_feature[feature as usize];
        rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        sorted.write_stats(&[stats(feature, rows, ordinary, &words)])?;
        sorted.write_examples(&examples(feature, rows, &columns))?;
        sorted.write_groups(&groups(feature, rows))?;
    }
    let options = PairOptions { min_both: 3, ..PairOptions::default() };
    sorted.write_coactivation(&|tokens| run.special(tokens), options, &mut |_| ControlFlow::Continue(()))?;
    sorted.finish()?;
    let table = run.feature_table(name)?;
    for with in [With::Experts, With::TokenClass] {
        let options = JoinOptions { with, min_count: 5, ..JoinOptions::default() };
        table.write_join(&join(&table, &options, &mut |_| ControlFlow::Continue(()))?)?;
    }
    Ok(())
}

fn stats(feature: u32, rows: &[(u64, f32)], ordinary: u64, words: &[(u32, &str)]) -> FeatureStats {
    let mut act_hist = vec![0; ACT_BINS];
    for (_, act) in rows {
        act_hist[act_bin(*act)] += 1;
    }
    let n = rows.len() as f64;
    let own = MEANINGS.iter().find(|(f, ..)| *f == feature).map(|(.., words)| *words).unwrap_or_default();
    let promoted = words.iter().filter(|(_, text)| own.contains(&text.trim().to_lowercase().as_str()));
    let other = |salt: u64| {
        let at = move |i: u64| (noise(&[u64::from(feature), i, salt]) * words.len() as f32) as usize;
        (0..10_u64).filter_map(move |i| words.get(at(i)))
    };
    let valued = |list: Vec<&(u32, &str)>, sign: f32| -> Vec<(u32, f32)> {
        list.into_iter().take(10).enumerate().map(|(i, (id, _))| (*id, sign * (4.2 - 0.31 * i as f32))).collect()
    };
    let mut neighbours: Vec<(u32, f32)> = (1..8_u32)
        .map(|i| {
            (
                (feature + i * 37) % N_FEATURES,
                0.52 - 0.05 * i as f32 + 0.04 * noise(&[u64::from(feature), u64::from(i)]),
            )
        })
        .collect();
    match feature {
        WEATHER => neighbours.insert(0, (WATER, 0.81)),
        WATER => neighbours.insert(0, (WEATHER, 0.81)),
        _ => {}
    }
    FeatureStats {
        feature,
        n_active: rows.len() as u64,
        frac_nonzero: n / ordinary as f64,
        mean_act: if rows.is_empty() { 0.0 } else { rows.iter().map(|(_, act)| f64::from(*act)).sum::<f64>() / n },
        max_act: rows.first().map_or(0.0, |(_, act)| *act),
        act_hist,
        top_logits: valued(promoted.chain(other(1)).collect(), 1.0),
        bottom_logits: valued(other(2).collect(), -1.0),
        decoder_norm: 0.9 + 0.2 * noise(&[u64::from(feature), 5]),
        encoder_norm: Some(1.0),
        encoder_decoder_cosine: None,
        neighbours,
        first_fired: rows.iter().map(|(idx, _)| *idx).min(),
        last_fired: rows.iter().map(|(idx, _)| *idx).max(),
    }
}

/// The bounds that the intervals of [`examples`] have.
fn groups(feature: u32, rows: &[(u64, f32)]) -> Vec<ExampleGroup> {
    let Some(&(_, max)) = rows.first() else { return Vec::new() };
    let group = |interval: usize| {
        let (low, high) = (max * interval as f32 / 4.0, max * (interval + 1) as f32 / 4.0);
        let n_active = rows.iter().filter(|(_, act)| *act > low && *act <= high).count() as u64;
        ExampleGroup { feature, group: format!("interval-{interval}"), low, high, n_active }
    };
    (0..4).map(group).collect()
}

/// Up to eight strongest passages, and two of each of four intervals below.
fn examples(feature: u32, rows: &[(u64, f32)], columns: &TokenColumns) -> Vec<Example> {
    let Some(&(_, max)) = rows.first() else { return Vec::new() };
    let example = |group: String, rank: usize, (token_idx, act): (u64, f32)| {
        let doc = columns.doc_id[token_idx as usize];
        let first = columns.doc_id.partition_point(|d| *d < doc) as u64;
        let end = columns.doc_id.partition_point(|d| *d <= doc) as u64;
        let context_start = token_idx.saturating_sub(CONTEXT.0).max(first);
        let context_len = ((token_idx + CONTEXT.1).min(end) - context_start) as u32;
        Example { feature, rank: rank as u32, group, token_idx, act, context_start, context_len }
    };
    let mut out: Vec<Example> =
        rows.iter().take(8).enumerate().map(|(rank, row)| example("top".to_owned(), rank, *row)).collect();
    for interval in (0..4_usize).rev() {
        let (low, high) = (max * interval as f32 / 4.0, max * (interval + 1) as f32 / 4.0);
        let inside = rows.iter().skip(8).filter(|(_, act)| *act > low && *act <= high);
        out.extend(inside.take(2).enumerate().map(|(rank, row)| example(format!("interval-{interval}"), rank, *row)));
    }
    out
}
