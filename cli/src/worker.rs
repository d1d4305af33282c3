//! Is this process one of several that record a corpus together, and which one?

use anyhow::{Result, bail};
use clap::Args;
use data::Worker;

/// Which share of the corpus is recorded.
#[derive(Debug, Args)]
pub(crate) struct Share {
    /// Record the share of worker I of N, from 0; `polariscope merge` completes the run
    #[arg(long, value_name = "I/N", value_parser = worker)]
    shard: Option<Worker>,

    /// Record as one of N workers: which one is told by Slurm's array or by Kubernetes' Indexed Job
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
}

fn worker(text: &str) -> Result<Worker, String> {
    text.parse().map_err(|err: data::Error| err.to_string())
}

impl Share {
    /// Which worker this process is; `None` if it records alone.
    pub(crate) fn worker(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Worker>> {
        if let Some(worker) = self.shard {
            match self.shards {
                Some(count) if count != worker.count() => bail!("`--shard {worker}` and `--shards {count}` disagree"),
                _ => return Ok(Some(worker)),
            }
        }
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name).filter(|text| !text.is_empty()) else { return Ok(None) };
            match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => bail!("expected a number in the variable `{name}`, found `{text}`"),
            }
        };
        if let (Some(task), Some(tasks)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?) {
            let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
            return Ok(Some(in_array(task, tasks, first, step, self.shards)?));
        }
        let Some(count) = self.shards else { return Ok(None) };
        match number("JOB_COMPLETION_INDEX")? {
            Some(index) => Ok(Some(Worker::new(index, count)?)),
            None => bail!(
                "`--shards {count}` does not say which worker this is\n\
                 hint: `--shard 0/{count}` does, or a Slurm array (`SLURM_ARRAY_TASK_ID`), or a Kubernetes Indexed Job \
                 (`JOB_COMPLETION_INDEX`)"
            ),
        }
    }
}

/// The worker that a task of a Slurm array is.
fn in_array(task: usize, tasks: usize, first: usize, step: usize, shards: Option<usize>) -> Result<Worker> {
    // An array of another size than the recording, such as `--array=2` once more, names workers by their numbers.
    if let Some(count) = shards.filter(|&count| count != tasks) {
        return Ok(Worker::new(task, count)?);
    }
    match task.checked_sub(first) {
        Some(behind) if behind % step == 0 && behind / step < tasks => Ok(Worker::new(behind / step, tasks)?),
        _ => bail!(
            "expected a Slurm array of consecutive numbers, found task {task} of {tasks} that begin at {first}\n\
             hint: `--array=0-{}` numbers them so, or give `--shards N`, of which the task's number is one",
            tasks.saturating_sub(1)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(shard: Option<&str>, shards: Option<usize>, variables: &[(&str, &str)]) -> Result<Option<String>> {
        let share = Share { shard: shard.map(|text| text.parse().unwrap()), shards };
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        share.worker(variable).map(|worker| worker.map(|worker| worker.to_string()))
    }

    fn slurm<'a>(task: &'a str, count: &'a str, min: &'a str) -> [(&'static str, &'a str); 3] {
        [("SLURM_ARRAY_TASK_ID", task), ("SLURM_ARRAY_TASK_COUNT", count), ("SLURM_ARRAY_TASK_MIN", min)]
    }

    #[test]
    fn the_command_line_comes_first() {
        assert_eq!(worker(None, None, &[]).unwrap(), None);
        assert_eq!(worker(Some("2/4"), None, &slurm("1", "3", "0")).unwrap().as_deref(), Some("2/4"));
        assert_eq!(worker(Some("2/4"), Some(4), &[]).unwrap().as_deref(), Some("2/4"));
        assert!(worker(Some("2/4"), Some(5), &[]).unwrap_err().to_string().contains("disagree"));
        // An index alone, without a number of workers, may mean anything.
        assert_eq!(worker(None, None, &[("JOB_COMPLETION_INDEX", "1")]).unwrap(), None);
    }

    #[test]
    fn slurm_and_kubernetes_number_the_workers() {
        assert_eq!(worker(None, None, &slurm("3", "4", "0")).unwrap().as_deref(), Some("3/4"));
        assert_eq!(worker(None, None, &slurm("1", "4", "1")).unwrap().as_deref(), Some("0/4"));
        assert_eq!(worker(None, Some(4), &slurm("4", "4", "1")).unwrap().as_deref(), Some("3/4"));
        assert_eq!(worker(None, Some(4), &slurm("2", "1", "2")).unwrap().as_deref(), Some("2/4"), "once more");
        assert!(worker(None, None, &slurm("9", "3", "1")).unwrap_err().to_string().contains("`--array=0-2`"));
        assert!(worker(None, Some(4), &slurm("5", "1", "5")).is_err());
        assert!(worker(None, None, &slurm("x", "3", "1")).is_err());
        assert_eq!(worker(None, Some(4), &[("JOB_COMPLETION_INDEX", "0")]).unwrap().as_deref(), Some("0/4"));
        assert!(worker(None, Some(4), &[("JOB_COMPLETION_INDEX", "4")]).is_err());
    }

    #[test]
    fn a_number_of_workers_without_an_index_is_an_error() {
        for variables in [&[][..], &[("JOB_COMPLETION_INDEX", "")], &[("SLURM_ARRAY_TASK_ID", "1")]] {
            let error = worker(None, Some(4), variables).unwrap_err().to_string();
            assert!(error.contains("which worker this is\nhint: `--shard 0/4`"), "{error}");
        }
    }
}
