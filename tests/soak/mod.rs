//! Is anything lost when a command is killed, or when the disk fails below it?
//!
//! Every row of [`SUBJECTS`] is run once undisturbed, each on what the rows before it wrote. Then it is disturbed, started
//! again until it is done, and every byte is compared. `cargo xtask test` does a little of it, `cargo xtask soak` all.

mod faults;
mod fuzz;
mod kills;
mod random;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

pub use faults::{FaultReport, full_disks};
pub use fuzz::{FuzzReport, Seeds, fuzz};
pub use kills::KillReport;
pub use random::Random;
pub use work::files;
use work::{Attempt, Ended, Fault, Work};

/// A command that is disturbed.
pub struct Subject {
    pub name: &'static str,
    /// The subcommand and what comes after it; `{model}` is the model's folder. Paths are within the work folder.
    args: &'static str,
    /// What is added when it goes on where it was disturbed.
    resume: &'static str,
}

/// In the order in which each needs what the ones before it wrote. Small, with many files and many commits.
pub const SUBJECTS: &[Subject] = &[
    Subject {
        name: "record",
        args: "record {model} --corpus corpus.txt --lines --out run --hook-points blocks.1.hook_resid_post --nll --context 64 \
               --batch-tokens 64 --shard-tokens 200 --threads 1",
        resume: "--resume",
    },
    Subject { name: "shuffle", args: "shuffle run --out shuffled --memory 400KB --seed 3", resume: "--resume" },
    Subject {
        name: "train",
        args: "train run --hook-point blocks.1.hook_resid_post --out run/saes/coder --d-sae 64 --k 4 --batch-tokens 64 \
               --steps 60 --checkpoint-every 7 --threads 1",
        resume: "--resume",
    },
    // So little memory that it sorts by way of the disk.
    Subject {
        name: "encode",
        args: "encode run --sae run/saes/coder --model {model} --memory 4KB --threads 1",
        resume: "",
    },
    Subject {
        name: "worker",
        args: "record {model} --corpus corpus.txt --lines --out shared --hook-points blocks.1.hook_resid_post --nll \
               --context 64 --batch-tokens 64 --shard-tokens 200 --threads 1 --shard 0/1",
        resume: "",
    },
    Subject { name: "merge", args: "merge shared", resume: "" },
];

/// Lines of the corpus.
const LINES: usize = 60;

/// The programs, the model, and what every subject writes when nothing disturbs it.
pub struct Bench {
    folder: tempfile::TempDir,
    program: PathBuf,
    /// `None` where programs cannot be loaded with it.
    faults: Option<PathBuf>,
    model: PathBuf,
    /// One for each subject.
    whole: Vec<Whole>,
}

/// An undisturbed subject.
struct Whole {
    files: BTreeMap<String, Vec<u8>>,
    /// Calls that changed files below the work folder, in order: which, and the file.
    calls: Vec<(String, String)>,
    seconds: f64,
}

/// What happened to every subject.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub seed: u64,
    pub kills: Vec<KillReport>,
    pub faults: Vec<FaultReport>,
    pub fuzz: Vec<FuzzReport>,
    /// What could not be tried here, and why.
    pub left_out: Vec<String>,
}

impl Bench {
    /// Runs every subject undisturbed.
    pub fn new() -> Result<Self> {
        let here = std::env::current_exe()?;
        let built = here.ancestors().find(|folder| folder.join("polariscope").is_file());
        let built = built.context(
            "no program `polariscope` beside this one\nhint: `cargo build --workspace --bin polariscope` makes it",
        )?;
        let faults = built.join("examples/libfaults.so");
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut bench = Self {
            // Paths of open files are told by the system without links in them.
            folder: tempfile::tempdir_in(tempfile::env::temp_dir().canonicalize()?)?,
            program: built.join("polariscope"),
            faults: (cfg!(target_os = "linux") && faults.is_file()).then_some(faults),
            model: checkout.join("data/mini").canonicalize()?,
            whole: Vec::new(),
        };
        fs_err::create_dir(bench.stage(0))?;
        fs_err::write(bench.stage(0).join("corpus.txt"), corpus())?;
        for (at, subject) in SUBJECTS.iter().enumerate() {
            let work = Work::copy(&bench.stage(at), &bench.stage(at + 1))?;
            let begun = std::time::Instant::now();
            let attempt = bench.attempt(at, &work, false, None)?;
            ensure!(attempt.ended == Ended::Done, "`{}` fails undisturbed:\n{}", subject.name, attempt.stderr);
            let seconds = begun.elapsed().as_secs_f64();
            bench.whole.push(Whole { files: work.files()?, calls: attempt.calls, seconds });
        }
        Ok(bench)
    }

    /// Whether faults can be put below the program here.
    pub fn has_faults(&self) -> bool {
        self.faults.is_some()
    }

    /// What is there before the subject `at` begins; one more for what the last one wrote.
    fn stage(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("stage-{at}"))
    }

    /// A place where the subject `at` can begin, or begin again.
    fn work(&self, at: usize) -> Result<Work> {
        let folder = self.folder.path().join("work");
        Work::copy(&self.stage(at), &folder)
    }

    /// Starts the subject and waits for its end.
    fn attempt(&self, at: usize, work: &Work, resume: bool, fault: Option<&Fault>) -> Result<Attempt> {
        let subject = &SUBJECTS[at];
        let model = self.model.display().to_string();
        let words = format!("{} {}", subject.args, if resume { subject.resume } else { "" });
        let args: Vec<String> = words.split_whitespace().map(|word| word.replace("{model}", &model)).collect();
        work.start(&self.program, &args, self.faults.as_deref(), fault)
    }

    /// Wants what an undisturbed subject writes, to the byte.
    fn compare(&self, at: usize, work: &Work) -> Result<()> {
        let (found, expected) = (work.files()?, &self.whole[at].files);
        let names = found.keys().chain(expected.keys()).collect::<std::collections::BTreeSet<_>>();
        let different: Vec<_> = names.into_iter().filter(|name| found.get(*name) != expected.get(*name)).collect();
        ensure!(different.is_empty(), "not what an undisturbed `{}` writes: {different:?}", SUBJECTS[at].name);
        Ok(())
    }

    /// Goes on without any disturbance, and compares.
    fn finish(&self, at: usize, work: &Work) -> Result<()> {
        let attempt = self.attempt(at, work, true, None)?;
        ensure!(attempt.ended == Ended::Done, "`{}` does not go on:\n{}", SUBJECTS[at].name, attempt.stderr);
        self.compare(at, work)
    }
}

/// Documents of one line each, always the same.
fn corpus() -> String {
    const WORDS: &str = "the a stone light strain between two of glass house river which was old and very seen in by time \
                         people who came from there with his her great small country state every day under over";
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = Random::new(7);
    let mut text = String::new();
    for _ in 0..LINES {
        let line: Vec<&str> = (0..5 + random.below(40)).map(|_| words[random.below(words.len())]).collect();
        text.push_str(&line.join(" "));
        text.push_str(".\n");
    }
    text
}
