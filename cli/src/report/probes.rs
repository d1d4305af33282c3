//! How is what probes found shown: bars beside a dense probe, curves of ablation, a table of letters?

use std::collections::BTreeMap;
use std::fmt::Write as _;

use scope::metrics::probe::Probing;
use scope::metrics::probe::ablation::{Removal, Scr, Tpp};
use scope::metrics::probe::absorption::Absorption;
use scope::metrics::probe::sparse::{ConceptProbes, LatentProbe, REGIME_LATENTS, Regime};

use super::figures;
use super::html::{escape, fixed, table};
use super::svg::{CODER, DENSE, Plot, RANDOM, Series};
use crate::evaluate::missing;
use crate::output;

/// How probes were fitted and tried.
pub(super) const NOTES: [&str; 4] = [
    "Probes are logistic regressions with a ridge penalty chosen on a fifth of the training examples, on as many positive as \
     negative examples, so that saying always the same has accuracy 0.5. Labels of tokens are read off their text; since \
     that follows from the token id, no id is in both training and test. Documents (the mean over their first 128 tokens) are \
     parted by document. k latents: those whose means differ most between the classes of the training examples.",
    "TPP: a concept's latents, by their attribution to its dense probe, are ablated at the site that the coder writes to; the accuracy that \
     its probe loses, less the mean of what probes of the other concepts lose. SCR: a probe was fitted where a second label \
     always agreed; after ablating that label's latents, the part of the lost accuracy that comes back.",
    "Absorption as in SAEBench 0.6, on tokens that begin a word: full where no main latent of the letter fires, and one other \
     latent contributes at least 0.4 of the activation along the letter's probe; in part as the fraction variant.",
    "A dense probe that is better than a few latents is no fault of the coder; a random dictionary that is as good as the coder \
     is a warning not to read much into the number.",
];

pub(super) fn section(found: &Probing) -> String {
    let mut out = String::from("<h3>Probes</h3>\n");
    let Some(mean) = &found.mean else {
        out.push_str("<p>No label of the run has enough examples for a probe.</p>\n");
        return out;
    };
    let _ = writeln!(
        out,
        "<p>{} concepts of {} tokens and {} documents; mean AUC of a dense probe of the activation {}.</p>",
        found.concepts.len(),
        output::count(found.n_tokens as u64),
        output::count(found.n_documents as u64),
        fixed(mean.dense.auc, 3),
    );
    let label = |k: usize| format!("k = {k}");
    let bars = |probes: &[scope::metrics::probe::MeanProbe]| -> Vec<(f64, f64)> {
        probes.iter().enumerate().map(|(at, probe)| (at as f64, probe.score.auc)).collect()
    };
    let n = mean.coder.len() as f64;
    let few = Plot {
        title: "Probes on a few latents".into(),
        x: "latents of the probe".into(),
        y: "mean AUC".into(),
        ticks: mean.coder.iter().enumerate().map(|(at, probe)| (at as f64, label(probe.k))).collect(),
        range: Some((0.5, 1.0)),
        bars: true,
        series: vec![
            Series::new("coder", CODER, bars(&mean.coder)),
            Series::new("random dictionary", RANDOM, bars(&mean.random_dictionary)),
            Series::new("dense probe", super::svg::RULE, [(-0.5, mean.dense.auc), (n - 0.5, mean.dense.auc)]),
        ],
    };
    let scarce = regimes("training examples", &found.scarce, f64::log2, svg_count);
    let imbalanced = regimes("positive part of the training examples", &found.imbalanced, |at| at, super::svg::number);
    out.push_str(&figures([
        (few, "Probes on the few latents whose means differ most, beside a dense probe of the activation.".to_owned()),
        (scarce, format!("With few training examples: a dense probe, and probes on {REGIME_LATENTS} latents.")),
        (imbalanced, "With few of one class among the training examples.".to_owned()),
    ]));
    out.push_str(&concepts(&found.concepts));
    out.push_str(&figures(found.tpp.iter().map(tpp).chain(scr(&found.scr))));
    for missing in missing(found) {
        let _ = writeln!(out, "<p>{}.</p>", escape(&missing));
    }
    if let Some(absorption) = &found.absorption {
        out.push_str(&letters(absorption, found.random_dictionary_absorption.as_ref()));
    }
    out
}

fn svg_count(n: f64) -> String {
    output::count(n as u64)
}

fn regimes(x: &str, found: &[Regime], place: fn(f64) -> f64, name: fn(f64) -> String) -> Plot {
    let line = |of: fn(&Regime) -> f64| found.iter().map(move |regime| (place(regime.at), of(regime)));
    Plot {
        title: format!("Probes by {x}"),
        x: x.to_owned(),
        y: "mean AUC".into(),
        ticks: found.iter().map(|regime| (place(regime.at), name(regime.at))).collect(),
        range: Some((0.5, 1.0)),
        bars: false,
        series: vec![
            Series::new("dense probe", DENSE, line(|regime| regime.dense_auc)),
            Series::new("coder", CODER, line(|regime| regime.coder_auc)),
            Series::new("random dictionary", RANDOM, line(|regime| regime.random_dictionary_auc.unwrap_or(f64::NAN))),
        ],
    }
}

/// By label: its concepts' mean, or each of them where there are few.
fn concepts(concepts: &[ConceptProbes]) -> String {
    let mut labels: BTreeMap<&str, Vec<&ConceptProbes>> = BTreeMap::new();
    for concept in concepts {
        labels.entry(&concept.label).or_default().push(concept);
    }
    let mut rows = Vec::new();
    for (label, concepts) in labels {
        if concepts.len() > 6 {
            rows.push(row(&format!("{label}, mean of {}", concepts.len()), &concepts));
        } else {
            rows.extend(concepts.iter().map(|concept| row(&format!("{label}: {}", concept.class), &[concept])));
        }
    }
    let caption =
        "AUC of probes. dense: all dimensions of the activation; k: that many latents; r: of the random dictionary.";
    table(
        caption,
        &["Concept", "train", "test", "dense", "k = 1", "r = 1", "k = 5", "r = 5", "k = 16", "r = 16"],
        &rows,
    )
}

fn row(name: &str, concepts: &[&ConceptProbes]) -> Vec<String> {
    let mean = |of: &dyn Fn(&ConceptProbes) -> Option<f64>| {
        let found: Vec<f64> = concepts.iter().filter_map(|concept| of(concept)).collect();
        fixed(found.iter().sum::<f64>() / found.len() as f64, 3)
    };
    let total = |of: fn(&ConceptProbes) -> usize| {
        output::count(concepts.iter().map(|concept| of(concept)).sum::<usize>() as u64)
    };
    let mut row = vec![
        name.to_owned(),
        total(|concept| concept.n_train),
        total(|concept| concept.n_test),
        mean(&|concept| Some(concept.dense.auc)),
    ];
    for k in [1, 5, 16] {
        let of_k = |probes: &[LatentProbe]| probes.iter().find(|probe| probe.k == k).map(|probe| probe.score.auc);
        row.push(mean(&|concept| of_k(&concept.coder)));
        row.push(mean(&|concept| of_k(&concept.random_dictionary)));
    }
    row
}

/// Numbers of ablated latents, as far apart as their logarithms.
fn ablated(n: usize) -> f64 {
    (n as f64).log2()
}

fn tpp(found: &Tpp) -> (Plot, String) {
    let plot = Plot {
        title: format!("Targeted probe perturbation of {}", found.label),
        x: "ablated latents".into(),
        y: "TPP".into(),
        ticks: found.coder.iter().map(|at| (ablated(at.n), at.n.to_string())).collect(),
        range: Some((0.0, 0.1)),
        bars: false,
        series: vec![
            Series::new("coder", CODER, found.coder.iter().map(|at| (ablated(at.n), at.tpp))),
            Series::new("random dictionary", RANDOM, found.random_dictionary.iter().map(|at| (ablated(at.n), at.tpp))),
        ],
    };
    let caption = format!(
        "Targeted probe perturbation on {} ({} classes, probe accuracy {} before): 0 is no selective effect, higher is more.",
        found.label,
        found.classes.len(),
        fixed(found.accuracy, 3)
    );
    (plot, caption)
}

/// The mean over pairs of labels that cost something.
fn scr(found: &[Scr]) -> Option<(Plot, String)> {
    let pairs: Vec<&Scr> = found.iter().filter(|scr| !scr.coder.is_empty()).collect();
    let first = pairs.first()?;
    let mean = |of: fn(&Scr) -> &Vec<Removal>| {
        let numbers = first.coder.iter().map(|removal| removal.n).enumerate();
        let line = numbers.map(|(at, n)| {
            let found: Vec<f64> = pairs.iter().filter_map(|scr| of(scr).get(at)).map(|removal| removal.scr).collect();
            (ablated(n), found.iter().sum::<f64>() / found.len() as f64)
        });
        line.collect::<Vec<_>>()
    };
    let plot = Plot {
        title: "Spurious correlation removal".into(),
        x: "ablated latents".into(),
        y: "mean SCR".into(),
        ticks: first.coder.iter().map(|at| (ablated(at.n), at.n.to_string())).collect(),
        range: Some((0.0, 0.1)),
        bars: false,
        series: vec![
            Series::new("coder", CODER, mean(|scr| &scr.coder)),
            Series::new("random dictionary", RANDOM, mean(|scr| &scr.random_dictionary)),
        ],
    };
    let names: Vec<String> = pairs.iter().map(|scr| format!("{} from {}", scr.spurious, scr.target)).collect();
    Some((
        plot,
        format!("Spurious correlation removal, mean over: {}. 1 is all that the correlation cost.", names.join(", ")),
    ))
}

fn letters(found: &Absorption, random: Option<&Absorption>) -> String {
    let mut rows: Vec<Vec<String>> = found
        .letters
        .iter()
        .map(|letter| {
            let main: Vec<String> = letter.main.iter().map(ToString::to_string).collect();
            vec![
                letter.letter.clone(),
                letter.n_words.to_string(),
                fixed(letter.probe_f1, 3),
                fixed(letter.main_f1, 3),
                main.join(", "),
                fixed(letter.full, 3),
                fixed(letter.fraction, 3),
            ]
        })
        .collect();
    let mut mean = |name: &str, of: &Absorption| {
        let empty = String::new;
        rows.push(vec![
            name.to_owned(),
            empty(),
            empty(),
            empty(),
            format!("{} in the mean", fixed(of.n_main, 1)),
            fixed(of.full, 3),
            fixed(of.fraction, 3),
        ]);
    };
    mean("Mean", found);
    if let Some(random) = random {
        mean("Random dictionary, mean", random);
    }
    let head = ["Letter", "Words", "Probe F1", "Main latents F1", "Main latents", "Full absorption", "Fraction"];
    table("Absorption of first letters, for letters whose dense probe has F1 of at least 0.6.", &head, &rows)
}
