//! `bench ENDPOINT`: a sweep.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use gemma4_plan::Plan;

use super::progress::Progress;
use super::report::table;
use crate::apply::state::Store;
use crate::apply::{self, interrupt};
use crate::bench::endpoint::{Endpoint, EndpointError, Facts, PlanName, Pool};
use crate::bench::point::{CONTEXTS, Grid, Load, USERS};
use crate::bench::record::{Lock, Run, Settings, Status};
use crate::bench::report::{Report, outcome};
use crate::bench::sweep::{End, Sweep};
use crate::cli::apply::launch_name;
use crate::cli::output::{note, report, write_atomically};
use crate::cli::runtime::raise_open_files;
use crate::cli::{FINDINGS, Output, ResultFormat};

#[derive(Debug, clap::Args)]
#[group(id = "sweep")]
pub(super) struct Arguments {
    /// Address of the endpoint, such as http://127.0.0.1:8000, or the name of a launch or its profile
    #[arg(required = true)]
    endpoint: Option<String>,
    /// Where the run is kept; written after each point
    #[arg(long, value_name = "FILE", default_value = "bench.json")]
    out: PathBuf,
    /// Go on with the run in --out
    #[arg(long)]
    resume: bool,
    /// Name of the run in reports; the plan's profile or the model without it
    #[arg(long)]
    name: Option<String>,
    /// Something to show with the run in reports, for example `cold start=24 min`
    #[arg(long, value_name = "KEY=VALUE")]
    note: Vec<String>,
    /// Numbers of users, who each wait for an answer before they ask again (a closed loop)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = USERS,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    users: Vec<u64>,
    /// Requests a second instead of users: they come at random moments, whatever becomes of others (an open loop)
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "users", value_parser = positive)]
    rates: Vec<f64>,
    /// Contexts in tokens, prompt and output together
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = CONTEXTS,
          value_parser = clap::value_parser!(u64).range(2..=16_777_216))]
    contexts: Vec<u64>,
    /// Only the diagonal of the grid: few users with long contexts to many with short ones
    #[arg(long)]
    diagonal: bool,
    /// Tokens of an answer; half the context where that is less
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    output_tokens: u64,
    /// With users: requests of each at a point
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    requests_per_user: u64,
    /// With rates: for how long requests come at a point
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = positive)]
    seconds: f64,
    /// Requests before each point that are not counted
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    warm_up: u64,
    /// After so long a request has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = positive)]
    timeout: f64,
    /// What prompts and arrivals are drawn by; a new number for each run without it
    #[arg(long)]
    seed: Option<u64>,
    /// The model to ask for; the endpoint's first without it
    #[arg(long)]
    model: Option<String>,
    /// Tokens that the KV pool holds; the plan or the endpoint says so without it
    #[arg(long, value_name = "TOKENS")]
    kv_tokens: Option<u64>,
    /// The plan file that the endpoint runs, for its name, digest and KV pool
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Ids of tokens to make prompts of, if the endpoint has no /tokenize, such as 1000-9999
    #[arg(long, value_name = "FIRST-LAST", value_parser = id_range)]
    token_ids: Option<(u32, u32)>,
    /// The environment variable with the endpoint's API key
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
    /// How to print the result
    #[arg(long, value_enum, default_value = "text")]
    format: ResultFormat,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err("it is no number above 0 and up to 1000000".to_owned()),
    }
}

fn id_range(text: &str) -> Result<(u32, u32), String> {
    let range = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    range.filter(|(first, last)| first < last).ok_or_else(|| "it is no range of ids such as 1000-9999".to_owned())
}

/// Who is measured.
struct Whom {
    address: String,
    key: Option<String>,
    plan: Option<Plan>,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let notes = notes(&arguments.note)?;
    let whom = whom(arguments, output)?;
    let endpoint = Endpoint::new(&whom.address, whom.key.as_deref())?;
    let lock = Lock::of(&arguments.out)?;
    if !arguments.resume && arguments.out.exists() {
        let shown = arguments.out.display();
        bail!("{shown} is there already: `--resume` goes on with the run in it, another `--out` begins a new one");
    }
    let before = if arguments.resume { Some(Run::read(&arguments.out)?) } else { None };
    raise_open_files();
    interrupt::catch().context("cannot catch signals")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let prepared = runtime.block_on(async {
        let facts = endpoint.facts(arguments.model.as_deref()).await?;
        let tokens = match arguments.token_ids {
            Some((first, last)) => (first..=last).collect(),
            None => endpoint.tokens(&facts.model).await?,
        };
        Ok::<_, EndpointError>((facts, tokens))
    });
    let (facts, tokens) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            report(&error.into());
            return Ok(FINDINGS);
        }
    };
    let facts = settle(facts, whom.plan.as_ref(), arguments.kv_tokens)?;
    let seed = arguments.seed.or(before.as_ref().map(|run| run.settings.seed)).unwrap_or_else(drawn);
    let asked = Run::new(name(arguments, &facts), notes, facts, settings(arguments, seed));
    let mut run = match before {
        Some(run) => {
            if let Some(differences) = run.differs(&asked) {
                bail!("{} is another run: {differences}", arguments.out.display());
            }
            run
        }
        None => asked,
    };
    let sweep = Sweep { endpoint: &endpoint, tokens: &tokens, stop: interrupt::is_asked };
    let end = measure(&runtime, &sweep, &mut run, &arguments.out)?;
    drop(lock);
    finish(arguments, &run, end, output)
}

/// Runs the sweep and keeps it.
fn measure(runtime: &tokio::runtime::Runtime, sweep: &Sweep<'_>, run: &mut Run, out: &Path) -> anyhow::Result<End> {
    let keep = |run: &Run| write_atomically(out, &run.to_json().context("the run cannot be written as JSON")?);
    let pool = run.endpoint.kv_pool.as_ref();
    let pool = pool.map_or_else(
        || "no KV pool is known".to_owned(),
        |pool| format!("KV pool of {} tokens ({})", pool.tokens, pool.from),
    );
    note(&format!("{} at {}, {pool}, seed {}", run.endpoint.model, run.endpoint.url, run.settings.seed));
    note(&outcome(run));
    keep(run)?;
    let mut progress = Progress::new();
    let end = runtime.block_on(sweep.go_on(run, |run, news| {
        progress.show(run, &news);
        keep(run)
    }));
    progress.finish();
    keep(run)?;
    end
}

/// Says what came of it.
fn finish(arguments: &Arguments, run: &Run, end: End, output: &mut Output) -> anyhow::Result<u8> {
    match arguments.format {
        ResultFormat::Json => output.push(&run.to_json()?),
        ResultFormat::Text => {
            let runs = [run.clone()];
            output.push(&table(&Report::new(&runs), output.width()));
        }
    }
    let out = arguments.out.display();
    let resume = "the same command with `--resume` goes on";
    let complete = match end {
        End::Complete => true,
        End::Stopped => {
            note(&format!("interrupted; {} are kept in {out}, {resume}", outcome(run)));
            false
        }
        End::Gone(error) => {
            report(
                &anyhow::Error::new(error)
                    .context(format!("the endpoint is gone; {} are kept in {out}, {resume}", outcome(run))),
            );
            false
        }
    };
    if complete {
        note(&format!("{}; kept in {out}, `gemma4ctl bench report {out} --out bench.html` shows it", outcome(run)));
    }
    Ok(if complete && run.count(Status::Failed) == 0 { 0 } else { FINDINGS })
}

/// The endpoint, its key and its plan, as far as they are known here.
fn whom(arguments: &Arguments, output: &mut Output) -> anyhow::Result<Whom> {
    let endpoint = arguments.endpoint.as_deref().unwrap_or_default();
    let named = arguments.api_key_env.as_ref().map(|variable| {
        std::env::var(variable)
            .with_context(|| format!("`--api-key-env`: the variable {variable} is not set to a text"))
    });
    let named = named.transpose()?;
    let read = |path: &Path| -> anyhow::Result<Plan> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        gemma4_plan::read(&bytes).with_context(|| format!("{} is no plan that can be used", path.display()))
    };
    let plan = arguments.plan.as_deref().map(read).transpose()?;
    if endpoint.contains("://") {
        return Ok(Whom { address: endpoint.to_owned(), key: named, plan });
    }
    let store = Store::of_user()?;
    let name = launch_name(&store, endpoint, output).with_context(|| {
        format!("`{endpoint}` is neither an address that begins with http:// or https:// nor a launch")
    })?;
    let Some(launch) = store.read(&name)? else {
        bail!("`{endpoint}` is not launched: give an address such as http://127.0.0.1:8000, or `gemma4ctl apply` it");
    };
    let plan = plan.or_else(|| store.plan(&launch));
    let key = match (named, &plan) {
        (None, Some(plan)) => apply::secret(plan, "api_key")?,
        (named, _) => named,
    };
    Ok(Whom { address: launch.base_url, key, plan })
}

/// What the endpoint says, with what the plan and the command line say over it.
fn settle(mut facts: Facts, plan: Option<&Plan>, kv_tokens: Option<u64>) -> anyhow::Result<Facts> {
    if let Some(plan) = plan {
        let stated = PlanName { profile: plan.profile.name.clone(), digest: plan.digest.clone() };
        if let Some(running) = facts.plan.filter(|running| running.digest != stated.digest) {
            bail!(
                "the endpoint runs the plan {} ({}), not {} ({})",
                running.digest,
                running.profile,
                stated.digest,
                stated.profile
            );
        }
        facts.plan = Some(stated);
        facts.kv_pool = Some(Pool { tokens: plan.kv_cache.tokens, from: "the plan".to_owned() });
    }
    if let Some(tokens) = kv_tokens {
        facts.kv_pool = Some(Pool { tokens, from: "--kv-tokens".to_owned() });
    }
    Ok(facts)
}

fn settings(arguments: &Arguments, seed: u64) -> Settings {
    let loads = match arguments.rates.as_slice() {
        [] => arguments.users.iter().copied().map(Load::Users).collect(),
        rates => rates.iter().copied().map(Load::PerSecond).collect(),
    };
    Settings {
        grid: Grid { loads, contexts: arguments.contexts.clone(), diagonal: arguments.diagonal },
        output_tokens: arguments.output_tokens,
        requests_per_user: arguments.requests_per_user,
        seconds: arguments.seconds,
        warm_up: arguments.warm_up,
        timeout: arguments.timeout,
        seed,
    }
}

fn name(arguments: &Arguments, facts: &Facts) -> String {
    let profile = facts.plan.as_ref().map(|plan| plan.profile.clone());
    arguments.name.clone().or(profile).unwrap_or_else(|| facts.model.clone())
}

fn notes(texts: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').with_context(|| format!("`--note {text}` is not KEY=VALUE"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    texts.iter().map(pair).collect()
}

/// A seed that no run before had.
fn drawn() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
