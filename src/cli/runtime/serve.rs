//! `runtime serve PLAN`: the process that runs a plan.
//!
//! Invariant: every setting is the plan's. What else is said on the command line is where things are and how to log.

use std::future::Future;
use std::io::IsTerminal as _;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use etcetera::BaseStrategy as _;
use gemma4_engine::runner::{Booted, Places, Stage, boot};
use gemma4_engine::settings::Settings;
use gemma4_model::chat::ChatTemplate;
use gemma4_model::generation::GenerationConfig;
use gemma4_model::tokenizer::Tokenizer;
use gemma4_plan::Plan;
use gemma4_serve::{ApiKeys, Parsers, ServeOptions, Service, logging};
use socket2::{Domain, Protocol, Socket, Type};

use super::boot_progress::BootProgress;
use crate::apply::{self, process::Process};
use crate::checkpoint;
use crate::cli::output::{note, report, write_atomically};
use crate::cli::{FINDINGS, Output};

/// Connections that may wait to be taken; the system bounds it too.
const BACKLOG: i32 = 4096;

/// The parser of tool calls and of reasoning that the bundled engine has.
const PARSER: &str = "gemma4";

/// How much earlier than whoever ends this process the last requests are cut off.
const GRACE_MARGIN: u64 = 10;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// A plan file, as `gemma4ctl plan --format json` writes it
    plan: PathBuf,
    /// The folder with the checkpoint, if it is not where the plan says
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// What to log: error, warn, info, debug or trace, or filters such as `info,gemma4_engine=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How to log
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Where to write what finds this process again
    #[arg(long, value_name = "FILE", hide = true)]
    record: Option<PathBuf>,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// An object a line
    Json,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let path = &arguments.plan;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan = match gemma4_plan::read(&bytes) {
        Ok(plan) => plan,
        Err(error) => {
            report(&anyhow::Error::new(error).context(format!("{} is not served", path.display())));
            return Ok(FINDINGS);
        }
    };
    logging::init(&arguments.log_level, arguments.log_format == LogFormat::Json)?;
    match serve(arguments, &plan, output) {
        Ok(code) => Ok(code),
        Err(error) => {
            report(&error);
            Ok(FINDINGS)
        }
    }
}

fn serve(arguments: &Arguments, plan: &Plan, output: &mut Output) -> anyhow::Result<u8> {
    let emitted = crate::emit::process(plan)?;
    let near = arguments.plan.parent();
    let checkpoint = checkpoint::folder(plan, arguments.checkpoint.as_deref(), near)?;
    let key = apply::secret(plan, "api_key")?;
    let parsers = parsers(plan)?;
    // A port that is taken is told before minutes are spent.
    let socket = bind(&plan.server.host, plan.server.port)?;
    let address = socket.local_addr()?.as_socket().context("the socket has no address")?;
    let base_url = format!("http://{}", reachable(address));
    if let Some(file) = &arguments.record {
        let process = Process::this(&plan.digest, &base_url).context("cannot say which process this is")?;
        write_atomically(file, &serde_json::to_string(&process)?)?;
    }
    raise_open_files();
    let booting = end_while_booting()?;
    let places = Places {
        plugin: super::provide_plugin(plan)?,
        programs: programs(plan)?,
        weights: cache_folder()?.join("weights"),
        checkpoint: checkpoint.clone(),
    };
    let booted = start(plan, &places)?;
    let Booted { engine, settings, .. } = booted;
    let tokenizer = Tokenizer::open(&checkpoint)?;
    let chat_template = ChatTemplate::open(&checkpoint)?;
    let generation = GenerationConfig::open(&checkpoint)?;
    let options = options(plan, &settings, key, parsers, emitted.stop_seconds)?;
    let running = engine.clone();
    let service = Service { engine, tokenizer, chat_template, generation, options };

    booting.store(false, Ordering::SeqCst);
    socket.listen(BACKLOG)?;
    let listener: TcpListener = socket.into();
    tracing::info!(url = base_url, model = plan.model.id, plan = plan.digest, "ready");
    if arguments.record.is_none() {
        output.line(&base_url);
        output.finish()?;
    }
    let outcome = gemma4_serve::serve(listener, service, shutdown())?;
    // A step must not run into the end of the process.
    running.end();
    if !outcome.is_clean() {
        note(&format!("{} requests were cut off, since they did not end in time", outcome.cut_off));
        return Ok(FINDINGS);
    }
    Ok(0)
}

fn start(plan: &Plan, places: &Places) -> anyhow::Result<Booted> {
    let progress = BootProgress::new(std::io::stderr().is_terminal());
    let booted = boot(plan, places, &|stage: Stage| progress.show(&stage))?;
    progress.finish();
    let took = &booted.durations;
    tracing::info!(
        devices_seconds = took.devices.as_secs_f64(),
        weights_seconds = took.weights.as_secs_f64(),
        programs_seconds = took.programs.as_secs_f64(),
        warm_up_seconds = took.warm_up.as_secs_f64(),
        compiled = booted.compiled,
        cached = booted.cached,
        "booted"
    );
    // The service says what really runs; whoever asks compares it with the plan.
    if let Some((name, wanted, found)) = Settings::of_plan(plan).differences(&booted.settings).into_iter().next() {
        bail!("the engine runs with {name} = {found}, and the plan says {wanted}; this is a bug");
    }
    Ok(booted)
}

fn options(
    plan: &Plan,
    settings: &Settings,
    key: Option<String>,
    parsers: Parsers,
    stop_seconds: u64,
) -> anyhow::Result<ServeOptions> {
    let max_model_len = usize::try_from(plan.scheduler.max_model_len)?;
    let mut options = ServeOptions::new(plan.model.id.clone(), max_model_len);
    if plan.profile.name != plan.model.id {
        options.model_names.push(plan.profile.name.clone());
    }
    options.api_keys = ApiKeys::new(key);
    options.grace = Duration::from_secs(stop_seconds.saturating_sub(GRACE_MARGIN));
    options.parsers = parsers;
    let Parsers { tool_calls, auto_tool_choice, reasoning } = options.parsers;
    options.info = serde_json::json!({
        "profile": plan.profile.name,
        "settings": settings,
        "kv_tokens": plan.kv_cache.tokens,
        "chat": { "tool_calls": tool_calls, "auto_tool_choice": auto_tool_choice, "reasoning": reasoning },
    });
    let cache = &plan.kv_cache;
    let labels = [
        ("block_size", cache.block_size.to_string()),
        ("num_gpu_blocks", settings.kv_pages.to_string()),
        ("cache_dtype", cache.dtype.clone()),
        ("gpu_memory_utilization", plan.memory.utilization.to_string()),
        ("enable_prefix_caching", settings.prefix_caching.to_string()),
    ];
    options.cache_config = labels.map(|(name, value)| (name.to_owned(), value)).to_vec();
    options.version = env!("CARGO_PKG_VERSION").to_owned();
    options.system_fingerprint = Some(plan.digest.trim_start_matches("sha256:").chars().take(16).collect());
    Ok(options)
}

/// What the plan has told apart. There is one parser of each kind.
fn parsers(plan: &Plan) -> anyhow::Result<Parsers> {
    let chat = &plan.chat;
    for (key, parser) in [("tool_call_parser", &chat.tool_call_parser), ("reasoning_parser", &chat.reasoning_parser)] {
        if let Some(parser) = parser.as_deref().filter(|name| *name != PARSER) {
            bail!("`chat.{key}` is {parser:?}, which the bundled engine does not have; it has {PARSER:?}");
        }
    }
    if chat.auto_tool_choice && chat.tool_call_parser.is_none() {
        bail!("`chat.auto_tool_choice` needs a parser of tool calls; set `chat.tool_call_parser` to {PARSER:?}");
    }
    Ok(Parsers {
        tool_calls: chat.tool_call_parser.is_some(),
        auto_tool_choice: chat.auto_tool_choice,
        reasoning: chat.reasoning_parser.is_some(),
    })
}

/// A socket that has the address and does not listen yet, so that nobody takes it for a service.
fn bind(host: &str, port: u16) -> anyhow::Result<Socket> {
    let words = || format!("cannot serve on {host}, port {port} (`server.host`, `server.port`)");
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = (host, port).to_socket_addrs().with_context(words)?.next().with_context(words)?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).with_context(words)?;
    // Connections of a process that just ended may linger.
    socket.set_reuse_address(true).with_context(words)?;
    socket.bind(&address.into()).with_context(words)?;
    Ok(socket)
}

/// Where this machine itself reaches a socket of that address.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::new([127, 0, 0, 1].into(), v4.port()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::new([127, 0, 0, 1].into(), v6.port()),
        other => other,
    }
}

/// The folder of compiled programs: the plan's, else one in the user's cache.
fn programs(plan: &Plan) -> anyhow::Result<PathBuf> {
    let Some(path) = &plan.compile_cache.path else { return Ok(cache_folder()?.join("programs")) };
    match path.strip_prefix("~/") {
        Some(rest) => Ok(etcetera::home_dir()?.join(rest)),
        None => Ok(Path::new(path).to_owned()),
    }
}

fn cache_folder() -> anyhow::Result<PathBuf> {
    Ok(etcetera::choose_base_strategy()
        .context("no folder for caches is known: set HOME")?
        .cache_dir()
        .join("gemma4ctl"))
}

/// Thousands of connections at once need as many files.
pub(in crate::cli) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}

/// As long as the flag is up, a signal ends this process at once. The first process of a container would ignore it.
fn end_while_booting() -> anyhow::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let booting = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&booting))?;
    }
    Ok(booting)
}

/// Ends with the first signal that asks for it; the second one ends the process.
async fn shutdown() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be caught; this process ends at once when it is told to");
        return std::future::pending().await;
    };
    async fn either(interrupt: impl Future<Output = Option<()>>, terminate: impl Future<Output = Option<()>>) {
        tokio::select! { _ = interrupt => {}, _ = terminate => {} }
    }
    either(interrupt.recv(), terminate.recv()).await;
    tokio::spawn(async move {
        either(interrupt.recv(), terminate.recv()).await;
        tracing::warn!("told twice to end: the requests that run are cut off");
        // Whoever says it twice does not want to wait for anything.
        #[allow(clippy::exit)]
        std::process::exit(130);
    });
}
