//! `polariscope import`: a coder of another tool becomes one of ours, and is tried on a run.

use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use clap::Args;
use data::{Place, Run};
use scope::selftest::Reading;
use scope::{Coder, ImportOptions, Metrics, Sae, SelfTest, SparseCoder as _};
use serde_json::{Value, json};

use crate::failure::unless_interrupted;
use crate::location::Location;
use crate::{interrupt, output, place};

/// Brings a coder of another tool into our layout: Gemma Scope 1 and 2, SAELens, sparsify, Llama Scope, circuit-tracer
///
/// SOURCE is a folder, a file of it where it holds one for each layer, or either within `OWNER/REPOSITORY/` of the Hugging
/// Face hub, from which its own program `hf` brings it (`pip install huggingface_hub`; `HF_ENDPOINT` names another server).
/// Nothing is unpickled: `.pt` files are refused with what converts them. `--check` tries the coder on the activations of
/// a run: where L0 and explained variance do not fit, it tries the other hook points, scales and biases, and says what does.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  polariscope import google/gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium \
                        --out runs/news/saes/scope-9 --check runs/news"
)]
pub(crate) struct Import {
    /// A folder, a file, or one of a repository of the hub
    source: String,

    /// The folder to write the coder to, or its URL; `RUN/saes/NAME` is where the other commands look
    #[arg(long, value_name = "SAE")]
    out: Location,

    /// The hook point that the coder reads, whatever its files say
    #[arg(long, value_name = "NAME")]
    hook_point: Option<String>,

    /// The hook point that a transcoder speaks of, whatever its files say
    #[arg(long, value_name = "NAME")]
    hook_point_out: Option<String>,

    /// What activations were multiplied by in training, where the weights want that and no file says how much
    #[arg(long, value_name = "S")]
    input_scale: Option<f32>,

    /// A run on whose activations the coder is tried: a folder, or its URL
    #[arg(long, value_name = "RUN")]
    check: Option<Location>,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print what was found as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let out = self.out.place()?;
        if out.has("cfg.json")? {
            return Err(scope::Error::CoderExists { path: out.shown().to_owned() }.into());
        }
        let options = ImportOptions {
            hook: self.hook_point.as_deref().map(str::parse).transpose()?,
            hook_out: self.hook_point_out.as_deref().map(str::parse).transpose()?,
            input_scale: self.input_scale,
        };
        let run = self.check.as_ref().map(Location::run).transpose()?;
        let source = Path::new(&self.source);
        let source = if source.exists() { source.to_owned() } else { from_hub(&self.source)? };
        let coder = scope::pretrained::open(&source, &options)?;
        coder.save_at(&out)?;
        let sae = match coder {
            Coder::Sae(sae) => sae,
            Coder::Crosscoder(_) => return self.several(&coder, run.as_ref(), &out),
        };
        let found = match &run {
            Some(run) => Some(selftest(run, &sae, self.threads)?),
            None => None,
        };
        if self.json {
            return output::json(&json!({
                "sae": out.shown(), "architecture": sae.architecture(), "d_in": sae.d_in(), "d_out": sae.d_out(),
                "d_sae": sae.d_sae(), "hook_name": sae.hook_name(), "hook_name_out": sae.hook_name_out(),
                "metadata": sae.metadata, "check": found.as_ref().map(|found| value(found, &sae)),
            }));
        }
        output::text(&words(&sae, &out))?;
        if let Some(found) = found {
            output::text(&verdict(&found, &sae))?;
        }
        Ok(())
    }
}

impl Import {
    /// What is said of a coder between several hook points.
    fn several(&self, coder: &Coder, run: Option<&Run>, out: &Place) -> Result<()> {
        let trial = match (coder, run, coder.sites()?) {
            (Coder::Crosscoder(coder), Some(run), Some(sites)) => {
                output::note("trying the coder on the run");
                Some(scope::selftest::trial(run, coder, &sites, self.threads)?)
            }
            (_, Some(_), None) => bail!("the files of the coder do not name its hook points, so it cannot be tried"),
            _ => None,
        };
        let [inputs, outputs] = coder.hook_names();
        if self.json {
            return output::json(&json!({
                "sae": out.shown(), "architecture": coder.architecture(), "d_in": coder.d_in(), "d_out": coder.d_out(),
                "d_sae": coder.d_sae(), "hook_names": inputs, "hook_names_out": outputs, "metadata": coder.metadata(),
                "check": trial.as_ref().map(|trial| json!({
                    "fits": trial.fits, "label_l0": trial.label, "l0": trial.metrics.l0,
                    "explained_variance": trial.metrics.explained_variance,
                    "dead_fraction": trial.metrics.dead_fraction, "l2_ratio": trial.metrics.l2_ratio,
                })),
            }));
        }
        let list = |names: Vec<Option<&str>>| {
            names.into_iter().map(|name| name.unwrap_or("a hook point without a name")).collect::<Vec<_>>().join(", ")
        };
        let speaks = if inputs == outputs { String::new() } else { format!("\nwrites {}", list(outputs)) };
        output::text(&format!(
            "{} with {} latents\nreads {}{speaks}\ncoder in `{}`",
            coder.architecture(),
            output::count(coder.d_sae() as u64),
            list(inputs),
            out.shown().display()
        ))?;
        if let Some(trial) = trial {
            let fits = if trial.fits { "it fits" } else { "it does not fit" };
            output::text(&format!("as its files say: {}\ncheck: {fits}", of_metrics(&trial.metrics, trial.label)))?;
        }
        Ok(())
    }
}

/// Tries a coder on a run.
pub(crate) fn selftest(run: &Run, sae: &Sae, threads: usize) -> Result<SelfTest> {
    output::note("trying the coder on the run");
    unless_interrupted(scope::selftest(run, sae, threads, &mut |_| interrupt::flow()), None)
}

fn words(sae: &Sae, out: &Place) -> String {
    let hook = |name: Option<&str>| name.unwrap_or("a hook point that its files do not name").to_owned();
    let reads = hook(sae.hook_name());
    let speaks = if sae.transcoder { format!(", speaks of {}", hook(sae.hook_name_out())) } else { String::new() };
    format!(
        "{} with {} latents, reads {reads}{speaks}\ncoder in `{}`",
        sae.architecture(),
        output::count(sae.d_sae() as u64),
        out.shown().display()
    )
}

/// What the trials say, in lines.
pub(crate) fn verdict(found: &SelfTest, sae: &Sae) -> String {
    let mut lines = Vec::new();
    match &found.as_labelled {
        Some(reading) => lines.push(format!("as its files say: {}", figures(reading, found.label))),
        None => lines.push("the run does not hold what its files say that it reads".to_owned()),
    }
    if found.passed() {
        lines.push("check: it fits".into());
        return lines.join("\n");
    }
    let differences = found.differences(sae).join("; ");
    if found.fits {
        lines.push(format!("check: it does not fit so, but it does where {differences}"));
        lines.push(format!("then: {}", figures(&found.best, found.label)));
    } else {
        lines.push(format!("check: it fits in none of the {} ways that were tried", found.tried));
        if !differences.is_empty() {
            lines.push(format!("the best is where {differences}: {}", figures(&found.best, found.label)));
        }
    }
    lines.join("\n")
}

fn figures(reading: &Reading, label: Option<f64>) -> String {
    of_metrics(&reading.metrics, label)
}

fn of_metrics(metrics: &Metrics, label: Option<f64>) -> String {
    let label = label.map_or_else(|| "unknown".to_owned(), |label| format!("{label}"));
    format!(
        "L0 {:.1} (label {label}), explained variance {:.3}, dead {:.3}, norm ratio {:.3}",
        metrics.l0, metrics.explained_variance, metrics.dead_fraction, metrics.l2_ratio
    )
}

pub(crate) fn value(found: &SelfTest, sae: &Sae) -> Value {
    let reading = |reading: &Reading| {
        json!({
            "hook_name": reading.hooks[0], "hook_name_out": reading.hooks[1], "input_scale": reading.factor,
            "apply_b_dec_to_input": reading.subtracts_bias, "l0": reading.metrics.l0,
            "explained_variance": reading.metrics.explained_variance, "dead_fraction": reading.metrics.dead_fraction,
            "l2_ratio": reading.metrics.l2_ratio,
        })
    };
    json!({
        "passed": found.passed(), "fits": found.fits, "label_l0": found.label, "tried": found.tried,
        "as_labelled": found.as_labelled.as_ref().map(reading), "best": reading(&found.best),
        "differences": found.differences(sae),
    })
}

/// Downloads a folder or a file of a repository with the hub's own program, and gives back where it lies.
fn from_hub(source: &str) -> Result<PathBuf> {
    let absent = || {
        format!(
            "no coder `{source}`: neither a folder or file, nor one within `OWNER/REPOSITORY/` of the hub\n\
             hint: `polariscope import --help` has an example"
        )
    };
    let path = Path::new(source.strip_prefix("hf://").unwrap_or(source));
    let parts: Vec<&str> = path.components().map_while(|part| part.as_os_str().to_str()).collect();
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let [owner, repository, inside @ ..] = &parts[..] else { bail!(absent()) };
    if !plain || inside.is_empty() {
        bail!(absent());
    }
    let (repo, inside) = (format!("{owner}/{repository}"), inside.join("/"));
    // With the repository's name in its path, which says what Gemma Scope 1 is.
    let dir = place::cache()?.join("dictionaries").join(owner).join(repository);
    // A file of a set has what is said of all of them beside it.
    let beside = parts[2..parts.len() - 1].iter().chain(&["config.yaml"]).copied().collect::<Vec<_>>().join("/");
    let mut hf = Command::new("hf");
    hf.args(["download", &repo, "--local-dir"]).arg(&dir);
    for pattern in [&format!("{inside}/*"), &inside, &beside] {
        hf.args(["--include", pattern]);
    }
    let by_hand = format!("hf download {repo} --include '{inside}*' --local-dir DIR, then import DIR/{inside}");
    let Ok(status) = hf.stdin(Stdio::null()).stdout(std::io::stderr()).status() else {
        bail!(
            "no `{source}` here, and the hub's program `hf` is not to be found\n\
             hint: pip install huggingface_hub; or elsewhere: {by_hand}"
        );
    };
    let found = dir.join(&inside);
    if !status.success() || !found.exists() {
        bail!("the hub gave nothing for `{source}` ({status})\nhint: look at what it says above; elsewhere: {by_hand}");
    }
    Ok(found)
}
