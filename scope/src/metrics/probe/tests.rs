//! Are planted features found, is planted absorption, and does a random dictionary stay behind?

use data::HookPoint;

use super::*;
use crate::{
    Activation, Sae,
    metrics::{EvaluateOptions, measure},
    random::Random,
    testing::{Written, hook, write_sites},
};

const WIDTH: usize = 64;
/// Axes: 26 letters, then these.
const CAPITAL: usize = 26;
const BEGINS: usize = 27;
const NUMBER: usize = 28;
const TOPICS: usize = 29;
/// Words that do not begin with a space; a little weaker.
const CONTINUES: usize = 32;
/// Axes of words with `s` that have a latent of their own.
const OWN: usize = 40;
const N_OWN: u64 = 10;
const S: usize = 18;
/// Words of each letter.
const WORDS: u64 = 40;
const DOCUMENTS: u64 = 150;
const TOKENS: usize = 90;

/// By how many axes what is written stands beside what is read.
const SHIFT: usize = 7;

fn output() -> HookPoint {
    "blocks.0.hook_mlp_out".parse().unwrap()
}

/// Every property of a token, and the topic of its document, is one axis; at [`output`], the axis [`SHIFT`] further.
fn run(dir: &std::path::Path) -> Run {
    let mut random = Random::new(21);
    let (mut rows, mut documents) = (Vec::new(), Vec::new());
    for document in 0..DOCUMENTS {
        let topic = (document % 3) as usize;
        let mut tokens = vec![(0, "<bos>".to_owned())];
        rows.extend([900.0; WIDTH]);
        while tokens.len() < TOKENS {
            let mut row = [0.0_f64; WIDTH];
            row.fill_with(|| 0.05 * random.normal());
            row[TOPICS + topic] += 0.5 + random.uniform();
            if random.below(10) == 0 {
                row[NUMBER] += 2.0 + random.uniform();
                tokens.push((50_000 + random.below(60) as u32, format!(" {}", random.below(60))));
            } else {
                let (letter, word) = (random.below(26) as usize, random.below(WORDS));
                let (capital, begins) = (random.below(2), random.below(2));
                row[letter] += 2.0 + random.uniform();
                row[CAPITAL] += 2.0 * capital as f64;
                row[if begins == 1 { BEGINS } else { CONTINUES }] += if begins == 1 { 2.0 } else { 1.7 };
                if letter == S && word < N_OWN {
                    row[OWN + word as usize] += 2.5;
                }
                let first = char::from(b'a' + letter as u8);
                let first = if capital == 1 { first.to_ascii_uppercase() } else { first };
                let space = if begins == 1 { " " } else { "" };
                let id = (letter as u64 * 1000 + word * 4 + capital * 2 + begins + 1) as u32;
                tokens.push((id, format!("{space}{first}word")));
            }
            rows.extend(row.map(|x| x as f32));
        }
        let meta = Some(format!(r#"{{"topic": "topic {topic}", "number": {document}}}"#));
        documents.push(Written { source: "test".into(), meta, tokens });
    }
    let mut written = rows.clone();
    written.chunks_exact_mut(WIDTH).for_each(|row| row.rotate_right(SHIFT));
    write_sites(dir, WIDTH, &documents, &[(hook(), &rows), (output(), &written)])
}

/// One latent for each axis.
fn oracle() -> Sae {
    let mut axes = Matrix::zeros(WIDTH, WIDTH);
    (0..WIDTH).for_each(|axis| axes.row_mut(axis)[axis] = 1.0);
    Sae {
        w_enc: axes.clone(),
        w_dec: axes,
        b_enc: vec![0.0; WIDTH],
        b_dec: vec![0.0; WIDTH],
        activation: Activation::JumpRelu { threshold: vec![0.6; WIDTH] },
        ..Sae::default()
    }
}

/// The same, but that the latent for `s` is silent where a word with a latent of its own says it.
fn absorbing() -> Sae {
    let mut sae = oracle();
    for axis in OWN..OWN + N_OWN as usize {
        sae.w_enc.row_mut(axis)[S] = -1.5;
        sae.w_dec.row_mut(axis)[S] = 1.0;
    }
    sae
}

fn found(run: &Run, sae: &Sae) -> Probing {
    found_at(run, [hook(); 2], sae)
}

fn found_at(run: &Run, hooks: [HookPoint; 2], sae: &Sae) -> Probing {
    let go_on = &mut |_| ControlFlow::Continue(());
    let evaluate = EvaluateOptions { threads: 2, ..EvaluateOptions::default() };
    let sites = hooks.into();
    let (_, references) = measure(run, &sites, sae, &evaluate, go_on).unwrap();
    let options = ProbeOptions { tokens: 8000, threads: 2, ..ProbeOptions::default() };
    probe(run, &sites, sae, &references, &options, go_on).unwrap()
}

#[test]
fn planted_features_are_found_by_one_latent_each() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(&folder.path().join("run"));
    let found = found(&run, &oracle());
    assert!(found.n_tokens > 5000 && found.n_documents == DOCUMENTS as usize);
    let concept = |label: &str, class: &str| {
        let is = |concept: &&ConceptProbes| concept.label == label && concept.class == class;
        found.concepts.iter().find(is).unwrap_or_else(|| panic!("{label} {class}"))
    };
    let axes = [
        ("capital", "yes", CAPITAL),
        ("leading_space", "yes", BEGINS),
        ("first_letter", "q", 16),
        ("kind", "number", NUMBER),
        ("meta.topic", "topic 2", TOPICS + 2),
    ];
    for (label, class, axis) in axes {
        let concept = concept(label, class);
        assert_eq!(concept.coder[0].latents, [axis as u32], "{label} {class}");
        assert!(concept.coder[0].score.auc > 0.95 && concept.dense.auc > 0.95, "{concept:?}");
        assert_eq!(concept.majority, 0.5);
        assert!(concept.n_train.is_multiple_of(2) && concept.n_test >= 10);
    }
    assert!(
        found.concepts.iter().all(|concept| concept.label != "meta.number"),
        "a number for each document is no class"
    );
    let vowel = concept("vowel", "yes");
    assert!(vowel.coder[2].score.auc > 0.95 && vowel.coder[0].score.auc < 0.75, "it takes five latents: {vowel:?}");

    let mean = found.mean.unwrap();
    let (one, random) = (mean.coder[0].score.auc, mean.random_dictionary[0].score.auc);
    assert!(one > random + 0.1, "{one} {random}");
    assert!(mean.dense.auc >= one - 0.02);
    // More examples do not harm, and a few latents that were found with few are as good as all dimensions.
    assert_eq!(found.scarce.iter().map(|at| at.at).collect::<Vec<_>>()[..2], [16.0, 32.0]);
    assert!(found.scarce.last().unwrap().dense_auc > found.scarce[0].dense_auc);
    assert_eq!(found.imbalanced.len(), 5);
}

#[test]
fn ablating_planted_features_is_selective() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(&folder.path().join("run"));
    let found = found(&run, &oracle());
    let letters = found.tpp.iter().find(|tpp| tpp.label == "first_letter").unwrap();
    assert!(letters.classes.len() > 20 && letters.accuracy > 0.95);
    let (two, random) = (&letters.coder[0], &letters.random_dictionary[0]);
    assert_eq!(two.n, 2);
    assert!(two.own > 0.3 && two.others < 0.05 && (two.tpp - two.own + two.others).abs() < 1e-12, "{two:?}");
    assert!(random.tpp < two.tpp / 2.0, "{random:?}");
    assert!(found.tpp.iter().any(|tpp| tpp.label == "meta.topic"));

    let is = |scr: &&Scr| scr.target == "capital" && scr.spurious == "leading_space";
    let scr = found.scr.iter().find(is).unwrap();
    assert!(scr.accuracy_clean > 0.95 && scr.accuracy_before < 0.9, "{scr:?}");
    assert!(scr.coder[0].scr > 0.7, "without the two latents of spaces, the probe sees capitals: {scr:?}");
}

#[test]
fn absorption_is_found_where_it_was_planted() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(&folder.path().join("run"));
    let (sound, absorbing) = (found(&run, &oracle()), found(&run, &absorbing()));
    let of = |found: &Probing, letter: &str| {
        let absorption = found.absorption.as_ref().unwrap();
        absorption.letters.iter().find(|found| found.letter == letter).unwrap().clone()
    };
    assert_eq!(of(&sound, "s").full, 0.0);
    let s = of(&absorbing, "s");
    assert_eq!(s.main, [S as u32]);
    // A quarter of all words; those of the test are a draw from them.
    assert!((0.05..0.6).contains(&s.full) && s.fraction >= s.full - 1e-9, "{s:?}");
    let t = of(&absorbing, "t");
    assert_eq!((t.full, t.fraction), (0.0, 0.0));
    assert!(t.probe_f1 > 0.9 && t.main_f1 > 0.9 && t.n_words >= 5);
    let whole = absorbing.absorption.unwrap();
    assert!((whole.full - s.full / whole.letters.len() as f64).abs() < 1e-9);
    assert!(absorbing.random_dictionary_absorption.is_some());
}

#[test]
fn a_transcoder_is_ablated_where_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(&folder.path().join("run"));
    let writes_shifted = |sae: Sae| {
        let mut w_dec = sae.w_dec.clone();
        (0..WIDTH).for_each(|latent| w_dec.row_mut(latent).rotate_right(SHIFT));
        Sae { w_dec, transcoder: true, ..sae }
    };
    let sae = writes_shifted(absorbing());
    let found = found_at(&run, [hook(), output()], &sae);
    let letters = found.tpp.iter().find(|tpp| tpp.label == "first_letter").unwrap();
    let two = &letters.coder[0];
    assert!(letters.accuracy > 0.95 && two.own > 0.3 && two.others < 0.05, "{two:?}");
    let is = |scr: &&Scr| scr.target == "capital" && scr.spurious == "leading_space";
    assert!(found.scr.iter().find(is).unwrap().coder[0].scr > 0.7);
    let of = |letter: &str| {
        let letters = &found.absorption.as_ref().unwrap().letters;
        letters.iter().find(|found| found.letter == letter).unwrap().clone()
    };
    assert!(of("s").full > 0.05 && of("t").full == 0.0, "{:?}", of("s"));

    // The same latents, whose directions mean nothing there.
    let astray = Sae { transcoder: true, ..oracle() };
    let found = found_at(&run, [hook(), output()], &astray);
    let letters = found.tpp.iter().find(|tpp| tpp.label == "first_letter").unwrap();
    assert!(letters.coder[0].tpp < two.tpp / 2.0, "{:?}", letters.coder[0]);
}

#[test]
fn probing_ends_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(&folder.path().join("run"));
    let (sae, go_on) = (oracle(), &mut |_| ControlFlow::Continue(()));
    let evaluate = EvaluateOptions { threads: 2, ..EvaluateOptions::default() };
    let (_, references) = measure(&run, &hook().into(), &sae, &evaluate, go_on).unwrap();
    let options = ProbeOptions { tokens: 3000, documents: 0, threads: 2, ..ProbeOptions::default() };
    let found = probe(&run, &hook().into(), &sae, &references, &options, go_on).unwrap();
    assert!(found.n_documents == 0 && !found.concepts.is_empty());
    let stopped = probe(&run, &hook().into(), &sae, &references, &options, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(crate::Error::Interrupted)));
    let elsewhere: HookPoint = "blocks.0.hook_attn_out".parse().unwrap();
    assert!(probe(&run, &[hook(), elsewhere].into(), &sae, &references, &options, go_on).is_err());
}
