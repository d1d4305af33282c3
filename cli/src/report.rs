//! How does an evaluation become one page that can be printed, or put into an appendix?
//!
//! One file with everything in it: no scripts, no fonts, no pictures from elsewhere. Every number has its baselines beside it,
//! and the notes at the end say how each was measured.

mod html;
mod probes;
mod svg;

use std::collections::BTreeSet;

use data::Run;
use data::manifest::Provenance;
use scope::metrics::recovered::{PositionPredictions, Predictions, Recovered, Replaced};
use scope::metrics::{DENSITY_BINS, Evaluation, geometry, groups};

use self::html::{escape, figure, fixed, table};
use self::svg::{CODER, OTHER, Plot, RANDOM, RULE, Series};
use crate::evaluate::{self, Found, summary};
use crate::output;

/// The page. `command` is the command line as one would type it again.
pub(crate) fn page(run: &Run, coders: &[Found], made: &Provenance, command: &str) -> String {
    let title = match coders {
        [one] => format!("Evaluation of the sparse coder {}", one.name),
        several => format!("Evaluation of {} sparse coders", several.len()),
    };
    let mut body = format!("<h1>{}</h1>\n{}", escape(&title), header(run, made, command));
    if coders.len() > 1 {
        body.push_str(&by_layer(coders));
    }
    for coder in coders {
        body.push_str(&section(coder));
    }
    body.push_str(&notes(coders));
    html::page(&title, &body)
}

fn header(run: &Run, made: &Provenance, command: &str) -> String {
    let manifest = run.manifest();
    let model = &manifest.model;
    let quantization = model.quantization.as_ref().map_or_else(String::new, |name| format!(", weights in {name}"));
    let mut facts = vec![
        ("Model", format!("{} ({}, computed in {}{quantization})", model.id, model.architecture, model.dtype)),
        ("Run", run.dir().display().to_string()),
        ("Text", manifest.corpus.sources.join(", ")),
        (
            "Recorded",
            format!(
                "{} tokens of {} documents, {}",
                output::count(run.n_tokens()),
                output::count(run.n_documents()),
                manifest.created_at
            ),
        ),
    ];
    if let Some((file, sum)) = model.sha256.iter().next() {
        facts.push(("Weights", format!("{file}, SHA-256 {sum}")));
    }
    facts.push(("Measured", format!("{} with {}", made.created_at, made.created_by)));
    let rows = facts.iter().map(|(name, fact)| format!("<dt>{name}</dt><dd>{}</dd>", escape(fact)));
    let rows: String = rows.collect();
    format!("<dl>{rows}<dt>Command</dt><dd><code>{}</code></dd></dl>\n", escape(command))
}

/// Pictures side by side; those that have nothing to show are left out.
fn figures(pictures: impl IntoIterator<Item = (Plot, String)>) -> String {
    let drawn: String =
        pictures.into_iter().filter_map(|(plot, caption)| Some(figure(&plot.svg()?, &caption))).collect();
    if drawn.is_empty() { drawn } else { format!("<div class=\"figures\">{drawn}</div>\n") }
}

fn by_layer(coders: &[Found]) -> String {
    let (head, mut rows) = summary(coders);
    let (names, numbered) = short_names(coders);
    if numbered {
        for (row, name) in rows.iter_mut().zip(&names) {
            row[0] = format!("{name} {}", row[0]);
        }
    }
    let caption = "All coders. EV: explained variance; random: the random dictionary; PCA: as many principal components as \
                   latents fire; AUC: of probes, in the mean over concepts.";
    let at = |of: &dyn Fn(&Found) -> Option<f64>| -> Vec<(f64, f64)> {
        coders.iter().enumerate().filter_map(|(i, coder)| Some((i as f64, of(coder)?))).collect()
    };
    let ticks: Vec<(f64, String)> = names.into_iter().enumerate().map(|(i, name)| (i as f64, name)).collect();
    let plot = |title: &str, y: &str, range, series| Plot {
        title: title.to_owned(),
        x: String::new(),
        y: y.to_owned(),
        ticks: ticks.clone(),
        range,
        bars: true,
        series,
    };
    let baselines = |coder: &Found| coder.evaluation.baselines.clone();
    let explained = plot(
        "Explained variance by coder",
        "explained variance",
        Some((0.0, 1.0)),
        vec![
            Series::new("coder", CODER, at(&|coder| Some(coder.evaluation.metrics.explained_variance))),
            Series::new("random", RANDOM, at(&|coder| Some(baselines(coder).random_dictionary?.explained_variance))),
            Series::new("PCA", OTHER, at(&|coder| Some(baselines(coder).pca.explained_variance))),
        ],
    );
    let scores = |of: fn(&Predictions) -> Option<&Replaced>| {
        at(&|coder| {
            coder.recovered.as_ref().and_then(|found| of(&found.all)).map(|replaced| replaced.ce_loss_score_mean)
        })
    };
    let model = plot(
        "Cross-entropy recovered by coder",
        "CE score against mean ablation",
        Some((0.0, 1.0)),
        vec![
            Series::new("coder", CODER, scores(|found| Some(&found.coder))),
            Series::new("random", RANDOM, scores(|found| found.random_dictionary.as_ref())),
            Series::new("PCA", OTHER, scores(|found| found.pca.as_ref())),
        ],
    );
    format!(
        "<h2>By coder</h2>\n{}{}",
        table(caption, &head, &rows),
        figures([
            (explained, "Explained variance, beside a random dictionary and principal components.".to_owned()),
            (model, "Cross-entropy recovered in the model, 0 being mean ablation and 1 the model as it is.".to_owned()),
        ])
    )
}

/// What coders are called below a plot: their layers where these tell them apart, their names where there is room for them,
/// otherwise numbers; and whether they are numbers.
fn short_names(coders: &[Found]) -> (Vec<String>, bool) {
    // One that writes several hook points is of no layer.
    let layer = |coder: &Found| coder.sites.outputs[0].layer.filter(|_| coder.sites.outputs.len() == 1);
    let layers: Option<Vec<usize>> = coders.iter().map(layer).collect();
    let names = coders.iter().map(|coder| coder.name.as_str()).collect();
    labels(layers, names)
}

fn labels(layers: Option<Vec<usize>>, names: Vec<&str>) -> (Vec<String>, bool) {
    let differ = |layers: &Vec<usize>| layers.iter().collect::<BTreeSet<_>>().len() == layers.len();
    if let Some(layers) = layers.filter(differ) {
        return (layers.into_iter().map(|layer| format!("layer {layer}")).collect(), false);
    }
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    if widest * names.len() <= svg::TICK_CHARACTERS {
        return (names.into_iter().map(str::to_owned).collect(), false);
    }
    ((1..=names.len()).map(|number| format!("({number})")).collect(), true)
}

fn section(coder: &Found) -> String {
    let Found { coder: sae, sites, evaluation, .. } = coder;
    let (speaks, width) = if sites.same() {
        (String::new(), output::count(sae.d_in() as u64))
    } else {
        let widths = [sae.d_in(), sae.d_out()].map(|width| output::count(width as u64));
        (format!(", speaks of <code>{}</code>", evaluate::shown(&sites.outputs)), widths.join(" → "))
    };
    let mut out = format!(
        "<h2>{}</h2>\n<p>{} with {} latents, reads <code>{}</code>{speaks} ({width} dimensions). Measured on {} tokens; \
         special tokens and rows of more than ten times the median norm are left out.</p>\n",
        escape(&coder.name),
        escape(&sae.architecture()),
        output::count(sae.d_sae() as u64),
        evaluate::shown(&sites.inputs),
        output::count(evaluation.metrics.n_tokens),
    );
    out.push_str("<h3>Reconstruction</h3>\n");
    for part in [
        "<div class=\"figures\"><div>",
        &reconstruction(coder),
        "</div><div>",
        &baselines(evaluation),
        "</div></div>\n",
    ] {
        out.push_str(part);
    }
    let always = [density(evaluation), positions(evaluation), geometry(evaluation), code(evaluation)];
    out.push_str(&figures(always.into_iter().chain(alignment(evaluation))));
    out.push_str(&by_site(evaluation));
    out.push_str(&sources(evaluation));
    if let Some(found) = &coder.recovered {
        out.push_str("<h3>In the model</h3>\n");
        out.push_str(&predictions(&found.all));
        out.push_str(&figures(losses_by_position(found)));
        out.push_str(&table_of_positions(found));
    }
    if let Some(found) = &coder.probing {
        out.push_str(&probes::section(found));
    }
    out
}

fn reconstruction(coder: &Found) -> String {
    let metrics = &coder.evaluation.metrics;
    let stored = coder.storage.explained_variance;
    let rows = [
        ("L0, latents that fire for a token", fixed(metrics.l0, 2)),
        ("L1, sum of activations", fixed(metrics.l1, 3)),
        ("Explained variance", fixed(metrics.explained_variance, 4)),
        ("Fraction of variance unexplained (FVU)", fixed(metrics.fvu, 4)),
        ("Mean squared error of a vector", fixed(metrics.mse, 3)),
        ("Cosine of vector and reconstruction", fixed(metrics.cosine, 4)),
        ("Norm ratio", fixed(metrics.l2_ratio, 4)),
        ("Relative reconstruction bias", fixed(metrics.relative_reconstruction_bias, 4)),
        ("Dead latents, of all", fixed(metrics.dead_fraction, 4)),
        ("Latents on more than 1 % of the tokens", fixed(metrics.above_1_percent, 4)),
        ("Latents on more than 10 % of the tokens", fixed(metrics.above_10_percent, 4)),
        ("Tokens left out as not finite", output::count(metrics.not_finite)),
        ("Variance that storing left", stored.map_or_else(|| "unknown".to_owned(), |variance| fixed(variance, 6))),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let caption = format!("Core metrics, on rows stored as {}.", coder.storage.dtype);
    table(&caption, &["Metric", "Value"], &rows)
}

fn baselines(evaluation: &Evaluation) -> String {
    let (metrics, beside) = (&evaluation.metrics, &evaluation.baselines);
    let row = |name: &str, l0: f64, variance: f64, mse: f64| {
        vec![name.to_owned(), fixed(l0, 2), fixed(variance, 4), fixed(mse, 3)]
    };
    let refitted = beside.refitted_explained_variance;
    let refitted_mse = metrics.mse / metrics.fvu * (1.0 - refitted);
    let mut rows = vec![
        row("The coder", metrics.l0, metrics.explained_variance, metrics.mse),
        row("The coder, best scale and constant", metrics.l0, refitted, refitted_mse),
    ];
    let random = [
        ("Its encoder, random decoder*", &beside.random_decoder),
        ("Random dictionary, TopK*", &beside.random_dictionary),
    ];
    for (name, baseline) in random {
        if let Some(baseline) = baseline {
            rows.push(row(name, baseline.l0, baseline.explained_variance, baseline.mse));
        }
    }
    let shuffled = &beside.shuffled_activations;
    rows.push(row("The coder on shuffled activations", shuffled.l0, shuffled.explained_variance, shuffled.mse));
    rows.push(row("Principal components", beside.pca.rank as f64, beside.pca.explained_variance, beside.pca.mse));
    let caption = format!(
        "The coder beside dictionaries that learnt nothing, on the same tokens. Those with * have the best scale and constant. \
         It takes {} principal components to explain as much as the coder.",
        beside.pca.rank_of_equal_explained_variance
    );
    table(&caption, &["Dictionary", "L0", "Explained variance", "MSE"], &rows)
}

fn density(evaluation: &Evaluation) -> (Plot, String) {
    let metrics = &evaluation.metrics;
    let first = metrics.density.iter().position(|&n| n > 0).unwrap_or(0);
    let bins = (first..DENSITY_BINS).map(|bin| (bin as f64, metrics.density[bin] as f64));
    let decade = |bin: usize| (bin as f64 - 0.5, power_of_ten(bin / 2));
    let plot = Plot {
        title: "Density of latents".into(),
        x: "part of the tokens on which a latent fires".into(),
        y: "latents".into(),
        ticks: (first..=DENSITY_BINS).filter(|bin| bin % 2 == 0).map(decade).collect(),
        range: Some((0.0, 1.0)),
        bars: true,
        series: vec![Series::new("", CODER, bins)],
    };
    let caption = format!(
        "How often latents fire, in half decades. {} latents never fired on these tokens and are not shown.",
        output::count(metrics.dead_features as u64)
    );
    (plot, caption)
}

/// 10⁻⁸ for 0, up to 1 for 8.
fn power_of_ten(decade: usize) -> String {
    let digits = ["⁸", "⁷", "⁶", "⁵", "⁴", "³", "²"];
    match decade {
        7 => "0.1".to_owned(),
        8 => "1".to_owned(),
        decade => format!("10⁻{}", digits[decade.min(6)]),
    }
}

/// Where some positions stand on an axis of octaves.
fn octave(first: u64, last: u64) -> f64 {
    f64::midpoint((first as f64).max(0.7), last as f64).log2()
}

/// The names of octaves up to a position.
fn octaves(last: Option<u64>) -> Vec<(f64, String)> {
    let last = last.map_or(0, |last| last.max(1).ilog2());
    (0..=last).map(|octave| (f64::from(octave), (1_u64 << octave).to_string())).collect()
}

fn positions(evaluation: &Evaluation) -> (Plot, String) {
    let found = &evaluation.positions;
    let line = |of: fn(&groups::GroupMetrics) -> f64| {
        found.iter().map(move |position| (octave(position.first, position.last), of(&position.metrics)))
    };
    let plot = Plot {
        title: "Explained variance and cosine by position".into(),
        x: "position in the sequence".into(),
        y: "explained variance, cosine".into(),
        ticks: octaves(found.last().map(|position| position.last)),
        range: Some((0.0, 1.0)),
        bars: false,
        series: vec![
            Series::new("explained variance", CODER, line(|metrics| metrics.explained_variance)),
            Series::new("cosine", OTHER, line(|metrics| metrics.cosine)),
        ],
    };
    (plot, "By position in the sequence that the model saw, each bin about its own mean.".to_owned())
}

/// What stands in for the activation costs predictions, by the position that they are made from.
fn losses_by_position(found: &Recovered) -> [(Plot, String); 2] {
    let plot = |title: &str, y: &str, of: fn(&Replaced) -> f64| {
        let line = |which: fn(&Predictions) -> Option<&Replaced>| {
            let at = move |position: &PositionPredictions| {
                Some((octave(position.first, position.last), of(which(&position.predictions)?)))
            };
            found.positions.iter().filter_map(at).collect::<Vec<_>>()
        };
        Plot {
            title: title.to_owned(),
            x: "position of the token that is predicted from".into(),
            y: y.to_owned(),
            ticks: octaves(found.positions.last().map(|position| position.last)),
            range: Some((0.0, 0.0)),
            bars: false,
            series: vec![
                Series::new("coder", CODER, line(|at| Some(&at.coder))),
                Series::new("random dictionary", RANDOM, line(|at| at.random_dictionary.as_ref())),
                Series::new("PCA", OTHER, line(|at| at.pca.as_ref())),
            ],
        }
    };
    [
        (
            plot("ΔCE by position", "ΔCE in nats", |replaced| replaced.delta_ce),
            "How much more surprised the model is, by how much context the prediction has.".to_owned(),
        ),
        (
            plot("KL by position", "KL in nats", |replaced| replaced.kl_div),
            "How far its predictions move, by how much context they have.".to_owned(),
        ),
    ]
}

fn table_of_positions(found: &Recovered) -> String {
    let rows = found.positions.iter().map(|at| {
        let Predictions { n_predictions, ce_loss, coder, mean, zero, .. } = &at.predictions;
        let numbers =
            [*ce_loss, coder.delta_ce, coder.kl_div, coder.ce_loss_score, coder.kl_div_score, mean.kl_div, zero.kl_div];
        let numbers = numbers.map(|number| fixed(number, 4));
        let counts = [evaluate::positions(at.first, at.last), output::count(*n_predictions)];
        counts.into_iter().chain(numbers).collect()
    });
    let head = [
        "Position",
        "Predictions",
        "CE as it is",
        "ΔCE",
        "KL",
        "CE score, zero",
        "KL score, zero",
        "KL, mean ablation",
        "KL, zero ablation",
    ];
    let caption = "The coder in the place of the activation, by the position of the token that is predicted from.";
    table(caption, &head, &rows.collect::<Vec<_>>())
}

fn geometry(evaluation: &Evaluation) -> (Plot, String) {
    let found = &evaluation.decoder;
    let width = 1.0 / geometry::COSINE_BINS as f64;
    let bins = found.histogram.iter().enumerate().map(|(bin, &n)| (bin as f64, n as f64));
    let most = found.histogram.iter().copied().max().unwrap_or(0) as f64;
    let random = found.random_mean_max_cosine / width - 0.5;
    let plot = Plot {
        title: "Largest cosine of each decoder row to another".into(),
        x: "largest cosine to another latent".into(),
        y: "latents".into(),
        ticks: (0..=5).map(|at| (f64::from(at) * 4.0 - 0.5, svg::number(f64::from(at) * 0.2))).collect(),
        range: Some((0.0, 1.0)),
        bars: true,
        series: vec![
            Series::new("decoder rows", CODER, bins),
            Series::new("mean of random rows", RULE, [(random, 0.0), (random, most)]),
        ],
    };
    let caption = format!(
        "How close each decoder row is to its nearest other one: {} in the mean, {} for as many random directions; {} % have \
         another within cosine {}.",
        fixed(found.mean_max_cosine, 3),
        fixed(found.random_mean_max_cosine, 3),
        fixed(100.0 * found.duplicates, 2),
        geometry::DUPLICATE,
    );
    (plot, caption)
}

/// What latents read beside what they write; nothing where that are two sites.
fn alignment(evaluation: &Evaluation) -> Option<(Plot, String)> {
    let encoder = evaluation.encoder.as_ref()?;
    let found = encoder.decoder_cosine.as_ref()?;
    let bins = found.histogram.iter().enumerate().map(|(bin, &n)| (bin as f64, n as f64));
    let plot = Plot {
        title: "Cosine of encoder and decoder".into(),
        x: "cosine of what a latent reads and what it writes".into(),
        y: "latents".into(),
        ticks: (0..=4).map(|at| (f64::from(at) * 10.0 - 0.5, svg::number(f64::from(at) * 0.5 - 1.0))).collect(),
        range: Some((0.0, 1.0)),
        bars: true,
        series: vec![Series::new("", CODER, bins)],
    };
    let caption = format!(
        "How alike the direction that a latent reads is to the one that it writes: {} in the mean. Encoder directions have a \
         length of {} in the mean, and a cosine of {} to the nearest other one.",
        fixed(found.mean, 3),
        fixed(encoder.mean_norm, 3),
        fixed(encoder.neighbours.mean_max_cosine, 3),
    );
    Some((plot, caption))
}

fn code(evaluation: &Evaluation) -> (Plot, String) {
    let found = &evaluation.description_length;
    let plot = Plot {
        title: "Bits of a token against explained variance".into(),
        x: "bits for a token".into(),
        y: "explained variance".into(),
        ticks: found.by_depth.iter().map(|code| (code.bits, format!("{:.0}", code.bits))).collect(),
        range: None,
        bars: false,
        series: vec![Series::new("", CODER, found.by_depth.iter().map(|code| (code.bits, code.explained_variance)))],
    };
    let caption = format!(
        "Description length: activations told in 1, 2, 4, … bins. With {} bins a token takes {} bits ({} of them for which \
         latents fire) at explained variance {}; normal rows of this covariance would need {} bits for the same error.",
        1_u32 << found.depth,
        fixed(found.bits, 1),
        fixed(found.bits_for_support, 1),
        fixed(found.explained_variance, 3),
        fixed(found.gaussian_bits, 1),
    );
    (plot, caption)
}

fn by_site(evaluation: &Evaluation) -> String {
    if evaluation.sites.is_empty() {
        return String::new();
    }
    let rows = evaluation.sites.iter().map(|site| {
        vec![site.hook_point.to_string(), fixed(site.explained_variance, 4), fixed(site.mse, 4), fixed(site.cosine, 4)]
    });
    let head = ["Hook point", "Explained variance", "MSE", "Cosine"];
    table("By hook point that is written, each about its own mean.", &head, &rows.collect::<Vec<_>>())
}

fn sources(evaluation: &Evaluation) -> String {
    if evaluation.sources.is_empty() {
        return String::new();
    }
    let rows = evaluation.sources.iter().map(|source| {
        let metrics = &source.metrics;
        vec![
            source.source.clone(),
            output::count(metrics.n_tokens),
            fixed(metrics.l0, 2),
            fixed(metrics.explained_variance, 4),
            fixed(metrics.cosine, 4),
        ]
    });
    let head = ["Source", "Tokens", "L0", "Explained variance", "Cosine"];
    table("By source, each about its own mean.", &head, &rows.collect::<Vec<_>>())
}

fn predictions(found: &Predictions) -> String {
    let row = |name: &str, replaced: &Replaced| {
        let Replaced { ce_loss, delta_ce, kl_div, ce_loss_score, kl_div_score, ce_loss_score_mean, kl_div_score_mean } =
            *replaced;
        let numbers = [ce_loss, delta_ce, kl_div, ce_loss_score, kl_div_score, ce_loss_score_mean, kl_div_score_mean];
        std::iter::once(name.to_owned()).chain(numbers.map(|number| fixed(number, 4))).collect::<Vec<_>>()
    };
    let mut rows = vec![row("The coder", &found.coder)];
    rows.extend(found.random_dictionary.as_ref().map(|random| row("Random dictionary", random)));
    rows.extend(found.pca.as_ref().map(|pca| row("Principal components", pca)));
    rows.push(row("Mean ablation", &found.mean));
    rows.push(row("Zero ablation", &found.zero));
    let caption = format!(
        "What the model predicts where something stands in for the activation: {} predictions; the model as it is has a \
         cross-entropy of {} nats. Scores are 0 for the ablation (zero, or the mean) and 1 for the model as it is.",
        output::count(found.n_predictions),
        fixed(found.ce_loss, 4)
    );
    let head =
        ["In its place", "CE", "ΔCE", "KL", "CE score, zero", "KL score, zero", "CE score, mean", "KL score, mean"];
    table(&caption, &head, &rows)
}

fn notes(coders: &[Found]) -> String {
    let mut notes = vec![
        "All sums are taken in 64-bit floating point over all tokens that are not special. Explained variance is \
         1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²), the variance about the mean vector; it is not the mean of quotients of single \
         tokens, nor about zero, which some tools print under the same name.",
        "Relative reconstruction bias is E‖x̂‖² / E[x·x̂] (Rajamanoharan et al. 2024), below 1 where reconstructions shrink.",
        "Random decoder: the coder's encoder and activations, decoder rows replaced by random directions of the same norms. \
         Random dictionary: as many random unit vectors, of which those with the largest products with the centred row fire, as \
         many as in the coder. Both have the best single scale and constant vector by least squares, since nobody trained \
         theirs. Shuffled activations: each dimension shuffled over the tokens of a batch, so that every dimension keeps its \
         distribution and no direction is left. Principal components: the mean and as many components as latents fire, of what \
         is reconstructed.",
        "Description length as in Ayonrinde et al. 2024: an ideal code for each latent, for whether it fires and for the bin of \
         its activation; the decoder is not counted.",
    ];
    if coders.iter().any(|coder| coder.recovered.is_some()) {
        notes.push(
            "In the model: special tokens keep their activations in every pass, and a prediction counts where neither the token \
             nor the one it predicts is special. CE score = (CE ablated − CE) / (CE ablated − CE of the model as it is); KL score \
             = (KL ablated − KL) / KL ablated, with KL from the model as it is.",
        );
    }
    if coders.iter().any(|coder| coder.probing.is_some()) {
        notes.extend(probes::NOTES);
    }
    let items: Vec<String> = notes.into_iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
    format!("<h2>How it was measured</h2>\n<ul class=\"notes\">{}</ul>\n", items.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_coders_of_a_plot_have_one_name() {
        let of = |layers: &[usize], names: &[&str]| labels(Some(layers.to_vec()), names.to_vec());
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&[3, 9], &["a", "b"]), (owned(&["layer 3", "layer 9"]), false));
        assert_eq!(of(&[9, 9], &["topk-16", "topk-32"]), (owned(&["topk-16", "topk-32"]), false));
        let long =
            ["batchtopk-blocks.9.hook_resid_post-k16-lr-0.001", "batchtopk-blocks.9.hook_resid_post-k32-lr-0.001"];
        assert_eq!(of(&[9, 9], &long), (owned(&["(1)", "(2)"]), true));
        assert_eq!(labels(None, vec!["x", "y"]), (owned(&["x", "y"]), false));
    }
}
